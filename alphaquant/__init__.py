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
    from alphaquant.models.loading import load, load_tokenizer

__all__ = [
    "CalibrationDataLoader",
    "GPTQConfig",
    "alpha_hill_from_model",
    "gptq_quantize_model",
    "load",
    "load_hf_causal_lm",
    "load_layer_config",
    "load_tokenizer",
    "plan_model_layer_schemes",
    "rtn_quantize_model",
]
_ELSEWHERE = {
    "load": "alphaquant.models.loading",
    "load_tokenizer": "alphaquant.models.loading",
}
"""Modules of what does not lie in `alphaquant.api`."""


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported (and torch with it) when first used."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module(_ELSEWHERE.get(name, "alphaquant.api")), name)
    raise AttributeError(f"module 'alphaquant' has no attribute {name!r}")
