"""Skeleton: the transformers model of a checkpoint without weights, for its code and its shapes."""

from __future__ import annotations

import copy
from typing import Any

import torch

from alphaquant.errors import ModelError, first_line
from alphaquant.models.checkpoint import LOADING_ERRORS, Checkpoint


def skeleton_of(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """The model on the meta device. Raises ModelError when transformers cannot build it."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(checkpoint.config)
    config.use_cache = config.output_router_logits = False
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=checkpoint.trust_remote_code
            )
        list(skeleton.model.layers)
    except LOADING_ERRORS as error:
        raise ModelError(
            f"transformers cannot build the model of {checkpoint.path / 'config.json'} "
            f"({first_line(error)}). Mend it, or download the model again."
        ) from error
    return skeleton.eval()
