"""AlphaQuant: measured, mixed-precision compression of large language models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from alphaquant.resident import keep_freed

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
    from alphaquant.export.hub import push_to_hub
    from alphaquant.models.loading import load, load_tokenizer
    from alphaquant.quant_model import AlphaQuantModel
    from alphaquant.quantize_config import EXPERT_INDEX_PLACEHOLDER, QuantizeConfig

# Threads that wait for work spin for a fraction of a millisecond and then sleep: read when torch is imported, unless somebody
# chose. Spinning for long costs tenfold CPU seconds as soon as something else wants the cores, sleeping at once a fifth more time.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
keep_freed()

__all__ = [
    "EXPERT_INDEX_PLACEHOLDER",
    "AlphaQuantModel",
    "CalibrationDataLoader",
    "GPTQConfig",
    "QuantizeConfig",
    "alpha_hill_from_model",
    "gptq_quantize_model",
    "load",
    "load_hf_causal_lm",
    "load_layer_config",
    "load_tokenizer",
    "plan_model_layer_schemes",
    "push_to_hub",
    "rtn_quantize_model",
]
_ELSEWHERE = {
    "AlphaQuantModel": "alphaquant.quant_model",
    "EXPERT_INDEX_PLACEHOLDER": "alphaquant.quantize_config",
    "QuantizeConfig": "alphaquant.quantize_config",
    "load": "alphaquant.models.loading",
    "load_tokenizer": "alphaquant.models.loading",
    "push_to_hub": "alphaquant.export.hub",
}
"""Modules of what does not lie in `alphaquant.api`."""


def __getattr__(name: str) -> Any:
    """What `__all__` names, imported (and torch with most of it) when first used."""
    if name in __all__:
        import importlib

        return getattr(importlib.import_module(_ELSEWHERE.get(name, "alphaquant.api")), name)
    raise AttributeError(f"module 'alphaquant' has no attribute {name!r}")
