"""A model folder, packed or not, as a transformers model: `alphaquant.load`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alphaquant.clock import timed
from alphaquant.config import ModelConfig
from alphaquant.errors import ModelError, first_line
from alphaquant.models.checkpoint import LOADING_ERRORS, Checkpoint, tokenizer_in
from alphaquant.models.device import compute_device, compute_dtype, dtype_named
from alphaquant.models.fused_tensors import assembled
from alphaquant.models.native import teach_transformers
from alphaquant.models.packed import PackedCheckpoint, open_checkpoint
from alphaquant.models.resolve import model_folder, read_config


def load(
    path: Path | str,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    architecture: Literal["auto", "generic"] = "auto",
) -> Any:
    """A checkpoint as a transformers model in evaluation mode, with exactly the values that were evaluated.

    Args:
        path: A folder or a hub id: dense, FP8 with block scales, compressed-tensors (also llm-compressor's), gptq
            (also GPTQModel's), auto-round, awq or quark. No package of these formats is needed.
        device: auto (the first GPU, else the CPU), cpu, cuda or cuda:N.
        dtype: That of the weights in memory, such as "bfloat16"; None or "auto" means the checkpoint's own.
        trust_remote_code: Allow Python code that comes with the model to run.
        revision: Branch, tag or commit of a hub model.
        architecture: generic for a packed model of a type without a row of its own, as `model.architecture` has it.

    Returns:
        The causal language model, `generate` included. Where it was packed, `model.config.decoded_from` says how:
        `{"quant_method": "compressed-tensors", "linears": {"int4-g32": 28}}`. In memory, and when it is saved, it is
        a dense model.

    Raises:
        ModelError: The checkpoint is missing, damaged, or of a format that is not read.
        ConfigError: `device` or `dtype` is not known.
    """
    folder = model_folder(ModelConfig(path=str(path), revision=revision))
    chosen = stored_dtype(folder) if dtype in (None, "auto") else dtype
    if isinstance(chosen, str):
        chosen = dtype_named(chosen)
    return load_model(folder, compute_device(str(device)), trust_remote_code, chosen, architecture)


def load_tokenizer(
    path: Path | str, *, trust_remote_code: bool = False, revision: str | None = None
) -> Any:
    """The tokenizer of a folder or hub id, chat template included. Raises ModelError when none loads."""
    folder = model_folder(ModelConfig(path=str(path), revision=revision))
    teach_transformers(str(read_config(folder).get("model_type")))
    return tokenizer_in(folder, trust_remote_code)


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that config.json names; float32 where it names none, as transformers has it."""
    config = read_config(folder)
    return dtype_named(str(config.get("dtype") or config.get("torch_dtype") or "float32"))


@timed("load weights")
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
        if config.get("quantization_config"):
            checkpoint = open_checkpoint(folder, trust_remote_code, architecture)
            model: Any = _from_tensors(checkpoint, dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except LOADING_ERRORS as error:
        raise ModelError(f"transformers cannot load {folder}: {first_line(error)}") from error
    loaded: nn.Module = model.to(device).eval()
    return loaded


def load_whole(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None = None
) -> Any:
    """A checkpoint that was opened as `load_model` has it. Raises as that does."""
    kind = checkpoint.architecture.kind
    return load_model(checkpoint.path, device, checkpoint.trust_remote_code, dtype, kind)


def _from_tensors(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = checkpoint.config
    if isinstance(checkpoint, PackedCheckpoint):
        config.decoded_from = {
            "quant_method": checkpoint.raw_config["quantization_config"]["quant_method"],
            "linears": dict(Counter(sorted(str(s.scheme) for s in checkpoint.stored_as.values()))),
        }
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
    model.name_or_path = config.name_or_path = str(checkpoint.path)
    if (checkpoint.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(checkpoint.path)
    return model


class _Unread:
    """A tensor that is decoded when transformers slices it, which it does once, when it places it."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._checkpoint, self._name = checkpoint, name

    def __getitem__(self, index: Any) -> Tensor:
        checkpoint = self._checkpoint
        return assembled(checkpoint.layout, self._name, checkpoint.tensor)[index]
