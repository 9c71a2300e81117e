"""Stage analyze: every table of a run to figures and one report."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.inputs import open_model
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("analyze")
def analyze(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    name: str,
    config: dict[str, Any],
    tables: dict[str, ArtifactRef | None],
) -> None:
    """Write `report.html`, `report.md` and `figures/`. `tables` are artifacts by stage."""
    import pandas as pd

    from alphaquant.reporting.report import write_report
    from alphaquant.reporting.tables import FILES, read_inputs

    checkpoint = open_model(model)
    folders = [store.path(ref) for ref in tables.values() if ref]
    paths = {
        table: folder / file
        for table, file in FILES.items()
        for folder in folders
        if (folder / file).is_file()
    }
    inputs = read_inputs(
        paths,
        name,
        config=config,
        digest=model.digest,
        model_type=model.model_type,
        tied=checkpoint.architecture.is_tied(checkpoint.raw_config),
        parameters=sum(prod(entry.shape) for entry in checkpoint.entries.values()),
    )
    if rivals := tables.get("rivals"):
        found = pd.read_parquet(store.path(rivals) / "rivals.parquet")
        inputs = replace(inputs, scores=pd.concat([inputs.scores, found], ignore_index=True))
    write_report(inputs, out)
