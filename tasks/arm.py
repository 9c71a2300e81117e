"""Stage arm: the plans of one arm of an experiment, all within the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.inputs import open_model, read_table
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import AllocationConfig, QuantizationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("arm")
def arm(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef,
    arm: str,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    hill: ArtifactRef,
    farms: ArtifactRef,
    sensitivity: ArtifactRef,
    oracle: ArtifactRef | None,
    gammas: tuple[float, ...],
    draws: int,
    seed: int,
) -> None:
    """Write `plans.parquet`, one row per draw and linear, and `arm.json`, how each draw was chosen.

    `arm` is an arm's name, or a format that every linear gets.
    """
    from alphaquant.algorithms.arm_plans import arm_plans
    from alphaquant.algorithms.arm_table import ArmTable, Knowledge
    from alphaquant.algorithms.arms import ARM_NAMES
    from alphaquant.algorithms.plan_tables import plans_table
    from alphaquant.formats.scheme import Scheme

    alphas, others = read_table(store, hill, "alpha"), read_table(store, farms, "alpha")
    losses = read_table(store, sensitivity, "sensitivity")
    assert alphas is not None
    assert others is not None
    assert losses is not None
    known = Knowledge(
        open_model(model).plannable,
        allocation,
        quantization,
        alphas,
        others,
        losses,
        read_table(store, oracle, "oracle"),
        gammas,
    )
    if arm in ARM_NAMES:
        plans = arm_plans(arm, known, draws, seed)
    else:
        scheme = Scheme.parse(
            arm, group_size=quantization.group_size, symmetric=quantization.symmetric
        )
        table = ArmTable(known)
        plans = [table.told(table.in_one_format(scheme))]
    plans_table([one.plan for one in plans]).to_parquet(out / "plans.parquet", index=False)
    told = [
        {
            "bits_per_weight": one.plan.bits_per_weight,
            "predicted_loss": one.predicted,
            "variant": one.variant,
            "tried": one.tried,
        }
        for one in plans
    ]
    (out / "arm.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
