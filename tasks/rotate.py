"""Stage rotate: the model in a basis without outlier channels, as the folder that later stages quantize."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import ROTATED, open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import RotationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.stage import Workbench


@stage("rotate")
def rotate(out: Path, store: Workbench, *, model: ModelRef, rotation: RotationConfig) -> None:
    """Write `model/`, a checkpoint that computes what the original does, and `rotation.json`."""
    from alphaquant.export.rotated import write_rotated

    facts = write_rotated(open_model(model), rotation, out / ROTATED)
    (out / "rotation.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
