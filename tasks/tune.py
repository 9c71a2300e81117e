"""Stage tune: scales and norms of the quantized model, moved until it predicts as the original does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from alphaquant.store.artifacts import REFS
from alphaquant.store.stage import Skipped
from tasks.inputs import load_tokens, open_weights
from tasks.stage import stage

if TYPE_CHECKING:
    from alphaquant.config import ExecutionConfig, QuantizationConfig
    from alphaquant.models.resolve import ModelRef
    from alphaquant.store.artifacts import ArtifactRef
    from alphaquant.store.stage import Workbench


@stage("tune", gpu=True)
def tune(
    out: Path,
    store: Workbench,
    *,
    model: ModelRef | ArtifactRef,
    blocks: ArtifactRef,
    tokens: ArtifactRef,
    quantization: QuantizationConfig,
    execution: ExecutionConfig,
) -> Skipped | None:
    """Write `refs.json`, the tuned blocks' artifacts in order, and `model_tuning.json`, what that brought.

    Skipped when held-out windows say that the blocks were better as they were.
    """
    from alphaquant.algorithms.quantized_block import save_retuned_block
    from alphaquant.algorithms.tune_model import tune_model
    from alphaquant.models.device import compute_device

    tuned, tuning = tune_model(
        open_weights(store, model),
        store.block_paths(blocks),
        load_tokens(store, tokens),
        quantization,
        device=compute_device(execution.device),
        batch_size=execution.batch_size,
        memory_limit=execution.memory_bytes,
    )
    if not tuning.steps:
        return Skipped(
            f"no scales and norms came closer to the original on held-out windows ({tuning.kl_before:.3g} nats)"
        )
    refs = store.artifacts.children(blocks)  # a head stays as it is
    for index in range(len(tuned.blocks)):
        with store.artifacts.draft("tune-block") as draft:
            save_retuned_block(draft.path, *tuned.stored(index))
        assert draft.ref is not None
        refs[f"block-{index:04d}"] = draft.ref
    facts = json.dumps(asdict(tuning), indent=1)
    (out / "model_tuning.json").write_text(facts, encoding="utf-8")
    listing = {name: ref.model_dump() for name, ref in refs.items()}
    (out / REFS).write_text(json.dumps(listing, indent=1), encoding="utf-8")
    return None
