"""AlphaQuant: measured, mixed-precision compression of large language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alphaquant.api import (
        CalibrationDataLoader,
        GPTQConfig,
        alpha_hill_from_model,
        gptq_quantize_model,
        load_hf_causal_lm,
        load_layer_config,
        plan_model_layer_schemes,
        rtn_quantize_model,
    )

__all__ = [
    "CalibrationDataLoader",
    "GPTQConfig",
    "alpha_hill_from_model",
    "gptq_quantize_model",
    "load_hf_causal_lm",
    "load_layer_config",
    "plan_model_layer_schemes",
    "rtn_quantize_model",
]


def __getattr__(name: str) -> Any:
    """The calls of `alphaquant.api`, imported (and torch with them) when first used."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module("alphaquant.api"), name)
    raise AttributeError(f"module 'alphaquant' has no attribute {name!r}")
