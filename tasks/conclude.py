"""Stage conclude: all trials of an experiment to one page that says what alpha is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.inputs import read_table
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("conclude")
def conclude(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    name: str,
    config: dict[str, Any],
    baseline: ArtifactRef,
    alphas: dict[str, ArtifactRef],
    losses: list[ArtifactRef],
    oracles: list[ArtifactRef],
    arms: dict[str, ArtifactRef],
    trials: dict[str, ArtifactRef],
    rivals: dict[str, ArtifactRef],
) -> None:
    """Write `experiment.html`, `experiment.md`, `figures/`, `results.parquet`, one row per plan,
    `comparisons.parquet`, one row per compared pair, and `verdict.json`.
    """
    import pandas as pd

    from alphaquant.evaluation.baseline import Baseline
    from alphaquant.reporting.experiment import write_experiment
    from alphaquant.reporting.experiment_tables import ExperimentInputs, Measured

    def table(ref: ArtifactRef, kind: str) -> pd.DataFrame:
        found = read_table(store, ref, kind)
        assert found is not None
        return found

    measured = [
        Measured(
            label,
            json.loads((store.path(arms[label]) / "arm.json").read_text(encoding="utf-8")),
            table(ref, "windows"),
        )
        for label, ref in trials.items()
    ]
    inputs = ExperimentInputs(
        model=name,
        config=config,
        measured=measured,
        original_loss=Baseline(store.path(baseline)).loss.numpy(),
        alphas={kind: table(ref, "alpha") for kind, ref in alphas.items()},
        losses=[table(ref, "sensitivity") for ref in losses],
        oracles=[table(ref, "oracle") for ref in oracles],
        rivals={text: table(ref, "scores") for text, ref in rivals.items()},
    )
    verdict = write_experiment(inputs, out)
    told = {
        "helps": verdict.helps,
        "alone": list(verdict.alone),
        "adds": [list(pair) for pair in verdict.adds],
        "better": verdict.better,
    }
    (out / "verdict.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
