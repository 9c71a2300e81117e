"""Stage trial: the plans of one arm quantized and measured on held-out windows, one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.progress import track
from tasks.inputs import load_tokens, open_model, open_weights
from tasks.room import room_of
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig, QuantizationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench

_TABLE = "windows.parquet"


@stage("trial", gpu=True)
def trial(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    plans: ArtifactRef,
    tokens: ArtifactRef,
    baseline: ArtifactRef,
    quantization: QuantizationConfig,
    execution: ExecutionConfig,
    original: ModelRef | None = None,
) -> None:
    """Write `windows.parquet`: draw, window, kl and loss, nats per token. `original` is what is measured
    against when `model` is its rotated form.

    Every finished plan is kept at once, so an interrupted stage goes on behind the last one; the quantized
    weights are not kept.
    """
    import pandas as pd

    from alphaquant.algorithms.memory_plan import least_for
    from alphaquant.algorithms.plan_tables import read_plans
    from alphaquant.evaluation.baseline import Baseline
    from alphaquant.evaluation.quantized import quantized_for_now
    from alphaquant.evaluation.ruler import BlockRuler, Ruler, ruler_for

    checkpoint = open_weights(store, model)
    table = pd.read_parquet(store.path(plans) / "plans.parquet")
    found = read_plans(table, checkpoint.plannable)
    finished = store.block_cache(
        model=model, tokens=tokens, baseline=baseline, rounding=quantization
    )
    kept, room, windows = (
        Baseline(store.path(baseline)),
        room_of(execution),
        load_tokens(store, tokens),
    )
    ruler: Ruler | BlockRuler | None = None
    parts = []
    for draw, plan in enumerate(track(found, "plan", len(found))):
        schemes = {name: str(scheme) for name, scheme in plan.schemes.items()}
        folder = finished.get(draw, schemes)
        if folder is None:
            if ruler is None:  # not before a plan has to be measured
                against = open_model(original) if original else checkpoint
                limit = room.memory_limit
                beside = least_for(limit, checkpoint, windows, [quantization], room.device)
                ruler = ruler_for(
                    checkpoint, kept.windows, room, kept.predictions(against, room.device), beside
                )
            with quantized_for_now(checkpoint, plan, windows, quantization, room) as blocks:
                ruler.put_blocks(blocks)
                scores = ruler.measure()  # before the blocks are gone: the ruler may read them now
            measured = pd.DataFrame({"kl": scores.kl.numpy(), "loss": scores.loss.numpy()})
            folder = finished.put(
                draw,
                schemes,
                lambda place, m=measured: m.to_parquet(place / _TABLE, index=False),  # type: ignore[misc]
            )
        scored = pd.read_parquet(folder / _TABLE)
        parts.append(scored.assign(draw=draw, window=range(len(scored))))
    columns = ["draw", "window", "kl", "loss"]
    pd.concat(parts, ignore_index=True)[columns].to_parquet(out / _TABLE, index=False)
