"""Stage sensitivity: what each linear would cost the model's output in each format."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.clock import note_work
from tasks.inputs import load_tokens, open_weights
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig
    from alphaquant.models.observe import RoutingWeight
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("sensitivity", gpu=True)
def sensitivity(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    tokens: ArtifactRef,
    formats: tuple[str, ...],
    group_size: int,
    symmetric: bool,
    scale_search: str,
    damping: float,
    expert_shrinkage: float,
    routing_weight: RoutingWeight,
    execution: ExecutionConfig,
) -> None:
    """Write `sensitivity.parquet`, one row per linear and format."""
    from alphaquant import floor
    from alphaquant.algorithms.sensitivity import fisher_windows, sensitivity_table
    from alphaquant.formats.scheme import Scheme
    from alphaquant.models.device import compute_device

    schemes = [Scheme.parse(name, group_size=group_size, symmetric=symmetric) for name in formats]
    schemes = list(dict.fromkeys(schemes))
    checkpoint, windows = open_weights(store, model), load_tokens(store, tokens)
    device = compute_device(execution.device)
    table = sensitivity_table(
        checkpoint,
        windows,
        schemes,
        damping=damping,
        scale_search=scale_search,
        expert_shrinkage=expert_shrinkage,
        routing_weight=routing_weight,
        device=device,
        batch_size=execution.batch_size,
        memory_limit=execution.memory_bytes,
        scratch=out,
    )
    seen, back = (
        floor.Tokens.of(checkpoint, part.numel(), half=device.type == "cuda")
        for part in (windows, windows[: fisher_windows(windows)])
    )
    note_work(partial(floor.sensitivity, checkpoint, seen, back, schemes, scale_search))
    table.to_parquet(out / "sensitivity.parquet", index=False)
