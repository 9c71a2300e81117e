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
    from alphaquant.algorithms.rotation import RotatedCheckpoint, best_seed, peak_ratio
    from alphaquant.export.rotated import export_rotated
    from alphaquant.models.checkpoint import Checkpoint
    from alphaquant.progress import reporter

    original = open_model(model)
    chosen = best_seed(original, rotation)
    rotated = RotatedCheckpoint(original, chosen)
    (out / ROTATED).mkdir()
    export_rotated(rotated, out / ROTATED)
    facts = {
        "seed": chosen.seed,
        "block": rotated.residual.block,
        "hadamard": rotated.residual.is_hadamard,
        "heads": rotated.turns_heads,
        "peak_before": peak_ratio(original),
        "peak_after": peak_ratio(Checkpoint(out / ROTATED)),
    }
    reporter().note(
        "rotation: the largest weight of 128 goes from {peak_before:.2f} to {peak_after:.2f} times the root mean "
        "square (Gaussian weights: 2.85)".format(**facts)
    )
    (out / "rotation.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
