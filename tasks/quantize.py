"""Stage quantize: weights to codes and scales, one decoder block after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.store.artifacts import REFS
from tasks.inputs import load_tokens, open_weights
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig, QuantizationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("quantize", gpu=True)
def quantize(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    plan: ArtifactRef,
    tokens: ArtifactRef | None,
    quantization: QuantizationConfig,
    execution: ExecutionConfig,
) -> None:
    """Write `refs.json`, the blocks' artifacts in order, and `errors.parquet`, one row per linear.

    With tuning also `tuning.parquet`, one row per tuned block.

    Each finished block is kept at once, so an interrupted stage goes on behind the last one. Methods rtn
    and nf4 work without `tokens`.
    """
    import pandas as pd

    from alphaquant.algorithms.quantize_model import quantize_blocks
    from alphaquant.algorithms.quantized_block import load_errors, load_tuning
    from alphaquant.models.device import compute_device
    from alphaquant.plan import QuantPlan

    checkpoint = open_weights(store, model)
    blocks = store.block_cache(model=model, tokens=tokens, quantization=quantization)
    folders = quantize_blocks(
        checkpoint,
        QuantPlan.load(store.path(plan), checkpoint.plannable),
        load_tokens(store, tokens) if tokens else None,
        quantization,
        device=compute_device(execution.device),
        batch_size=execution.batch_size,
        blocks=blocks,
        memory_limit=execution.memory_bytes,
        scratch=out,
    )
    errors = pd.concat([load_errors(folder) for folder in folders], ignore_index=True)
    errors.to_parquet(out / "errors.parquet", index=False)
    tunings = [{"block": at, **found} for at, f in enumerate(folders) if (found := load_tuning(f))]
    if tunings:
        pd.DataFrame(tunings).to_parquet(out / "tuning.parquet", index=False)
    (out / REFS).write_text(json.dumps(blocks.as_refs(), indent=1), encoding="utf-8")
