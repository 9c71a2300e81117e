"""A model folder, packed or not, as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alphaquant.errors import ModelError, first_line
from alphaquant.models.checkpoint import LOADING_ERRORS, Checkpoint
from alphaquant.models.device import compute_dtype
from alphaquant.models.fused_tensors import assembled
from alphaquant.models.native import teach_transformers
from alphaquant.models.packed import PackedCheckpoint
from alphaquant.models.resolve import read_config
from alphaquant.models.rows import architecture_of


def load_model(
    folder: Path | str,
    device: torch.device,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    architecture: Literal["auto", "generic"] = "auto",
) -> nn.Module:
    """The causal language model of a folder in evaluation mode. Raises ModelError when transformers cannot build it.

    A packed model is decoded tensor by tensor, exactly as it was evaluated, without the packages of its format.
    `dtype` is that of its weights in memory; empty means what suits the device.
    """
    from transformers import AutoModelForCausalLM

    dtype = dtype or compute_dtype(device)
    try:
        config = read_config(Path(folder))
        teach_transformers(str(config.get("model_type")))
        if settings := config.get("quantization_config"):
            row = architecture_of(config, architecture, trust_remote_code=trust_remote_code)
            decoded = settings.get("quant_method") in row.decodes
            kind = Checkpoint if decoded else PackedCheckpoint
            model: Any = _from_tensors(kind(folder, trust_remote_code, architecture), dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except LOADING_ERRORS as error:
        raise ModelError(f"transformers cannot load {folder}: {first_line(error)}") from error
    loaded: nn.Module = model.to(device).eval()
    return loaded


def _from_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    config = checkpoint.config
    with torch.device("meta"):
        kind: Any = type(
            AutoModelForCausalLM.from_config(config, trust_remote_code=checkpoint.trust_remote_code)
        )
    tensors = {name: _Unread(checkpoint, name) for name in checkpoint.layout.files}
    model, info = kind.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise ModelError(f"{checkpoint.path} gives transformers no {missing[0]}")
    return model


class _Unread:
    """A tensor that is decoded when transformers slices it, which it does once, when it places it."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getitem__(self, index: Any) -> Tensor:
        checkpoint = self._checkpoint
        return assembled(checkpoint.layout, self._name, checkpoint.tensor)[index]
