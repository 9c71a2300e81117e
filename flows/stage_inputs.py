"""What stages that several pipelines call are given, as a config has it."""

from __future__ import annotations

from typing import Any

from alphaquant.config import CalibrationConfig, ExecutionConfig, RunConfig
from alphaquant.models.resolve import ModelRef
from flows.contents import file_digests


def baseline_inputs(config: RunConfig, model: ModelRef) -> dict[str, Any]:
    """What the baseline of a run, a comparison and an experiment is made of: not the tasks."""
    return {
        "model": model,
        "dataset": config.evaluation.dataset,
        "sequence_length": config.evaluation.sequence_length,
        "limit": config.evaluation.limit,
        "files": file_digests([config.evaluation.dataset]),
        "execution": config.execution,
    }


def calibration_inputs(model: ModelRef, text: CalibrationConfig) -> dict[str, Any]:
    """What windows of a text are made of: not what becomes of them."""
    return {
        "model": model,
        "calibration": text.model_copy(update={"generated": 0.0}),
        "files": file_digests([text.dataset]),
    }


def generate_inputs(
    model: ModelRef, text: CalibrationConfig, tokens: Any, execution: ExecutionConfig
) -> dict[str, Any]:
    """What the model's own windows are made of."""
    return {
        "model": model,
        "tokens": tokens,
        "share": text.generated,
        "seed": text.seed,
        "execution": execution,
    }


def balance_inputs(
    model: ModelRef, text: CalibrationConfig, tokens: Any, execution: ExecutionConfig
) -> dict[str, Any]:
    """What windows are chosen from, and how many."""
    return {"model": model, "tokens": tokens, "samples": text.samples, "execution": execution}


def sensitivity_settings(config: RunConfig) -> dict[str, Any]:
    """What decides predicted losses: the menu, and of the rounding only that which losses depend on."""
    rounding = config.quantization
    return {
        "formats": config.allocation.formats,
        "group_size": rounding.group_size,
        "symmetric": rounding.symmetric,
        "scale_search": rounding.scale_search,
        "damping": rounding.damping,
        "expert_shrinkage": rounding.expert_shrinkage,
        "routing_weight": rounding.routing_weight,
    }


def compare_settings(config: RunConfig) -> dict[str, Any]:
    """What decides rivals, besides what they are made of."""
    return {
        "allocation": config.allocation,
        "quantization": config.quantization.by_block(*config.comparison.methods),
        "comparison": config.comparison,
    }
