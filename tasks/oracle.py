"""Stage oracle: what each group of linears costs alone, for models small enough to measure that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.store.stage import Skipped
from tasks.inputs import load_tokens, open_weights, read_table
from tasks.room import room_of
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import AllocationConfig, ExecutionConfig, QuantizationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("oracle", gpu=True)
def oracle(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    tokens: ArtifactRef,
    sensitivity: ArtifactRef,
    allocation: AllocationConfig,
    quantization: QuantizationConfig,
    execution: ExecutionConfig,
) -> Skipped | None:
    """Write `oracle.parquet`, one row per linear, measured at the menu's format next to the budget."""
    from alphaquant.algorithms.arm_table import ArmTable, Knowledge
    from alphaquant.evaluation.one_at_a_time import one_at_a_time, too_large

    checkpoint = open_weights(store, model)
    losses = read_table(store, sensitivity, "sensitivity")
    assert losses is not None
    none = losses.iloc[:0]
    table = ArmTable(Knowledge(checkpoint.plannable, allocation, quantization, none, none, losses))
    if reason := too_large(checkpoint.parameters, len(table.groups)):
        return Skipped(reason)
    bits = losses[losses["format"] != "bf16"].groupby("format")["bits_per_weight"].mean()
    nearest = str((bits - allocation.target_bits).abs().idxmin())
    [scheme] = [option for option in table.options if str(option) == nearest]
    found = one_at_a_time(
        checkpoint,
        table.in_one_format(scheme),
        table.groups,
        losses,
        load_tokens(store, tokens),
        quantization,
        room_of(execution),
    )
    found.to_parquet(out / "oracle.parquet", index=False)
    return None
