"""A model in memory, seen as a checkpoint: the same names, specs and blocks, without a folder."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.errors import ModelError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.experts import UnfusedExperts, is_fused_experts
from alphaquant.models.fused import Layout
from alphaquant.models.linear import HEAD
from alphaquant.models.rows import architecture_of
from alphaquant.models.tensors import TensorEntry

_MEMORY = Path("<memory>")


class LiveCheckpoint(Checkpoint):
    """A transformers model as a Checkpoint; its tensors are views, so `replace` changes the model.

    `model_type` names a row instead of the model's own, or `generic`.
    """

    def __init__(self, model: nn.Module, model_type: str = "auto") -> None:
        config: Any = model.config
        self.path = _MEMORY
        self.trust_remote_code = False
        self.raw_config = config.to_dict() | (
            {} if model_type in ("auto", "generic") else {"model_type": model_type}
        )
        tensors = dict(_named_tensors(model))
        row = architecture_of(self.raw_config, "generic" if model_type == "generic" else "auto")
        self.architecture = row.fitted({name: tuple(t.shape) for name, t in tensors.items()})
        self._tensors = {self.architecture.disk_name(n): t for n, t in tensors.items()}
        if config.tie_word_embeddings:
            self._tensors.pop("lm_head.weight", None)
        self.entries = {
            name: TensorEntry(_MEMORY, str(tensor.dtype), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        }
        self.layout = Layout(self.entries, self.entries, {})
        shapes = {name: entry.shape for name, entry in self.entries.items()}
        self.specs = self.architecture.linears(self.raw_config, shapes)
        self.blocks = int(self.raw_config["num_hidden_layers"])
        self._config = config
        self._model: Any = model
        self._opening = threading.Lock()

    @property
    def config(self) -> Any:
        """The model's own config."""
        return self._config

    def tensor(self, name: str) -> Tensor:
        """One tensor of the model, by its name on disk; a view."""
        try:
            return self._tensors[name]
        except KeyError as error:
            raise ModelError(f"the model has no tensor {name}") from error

    def dtype(self, name: str) -> torch.dtype:
        """The dtype that the model has it in."""
        return self._tensors[name].dtype

    def replace(self, linear: str, weight: Tensor) -> None:
        """Overwrite a linear's weight `[out, in]` in the model. A tied head becomes a tensor of its own."""
        if linear != HEAD:
            self.weight(linear).copy_(weight)
            return
        output = self._model.lm_head
        old = output.weight
        output.weight = nn.Parameter(
            weight.to(old.device, old.dtype, copy=True), requires_grad=old.requires_grad
        )
        self._config.tie_word_embeddings = self.raw_config["tie_word_embeddings"] = False
        self._tensors[f"{HEAD}.weight"] = output.weight.detach()
        self.entries[f"{HEAD}.weight"] = TensorEntry(_MEMORY, str(old.dtype), tuple(old.shape))


def _named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and saved buffers by module name, with fused experts as one view per expert."""
    fused = {name: m for name, m in model.named_modules() if is_fused_experts(m)}
    tensors = [
        (name, parameter.detach())
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[0] not in fused
    ]
    saved = model.state_dict().keys()
    tensors += [(name, buffer) for name, buffer in model.named_buffers() if name in saved]
    for prefix, module in fused.items():
        experts = UnfusedExperts.sharing(module)
        tensors += [(f"{prefix}.{name}", p.detach()) for name, p in experts.named_parameters()]
    return tensors
