"""What a model makes of its last hidden states: logits, by the model's own code.

Some types scale or cap their logits behind the output projection, so the projection alone is not the head.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class Head(nn.Module):
    """A causal language model without its decoder: last hidden states, behind the final norm, to logits.

    Holds the weights that `causal`, a transformers model, has now, whatever it is given afterwards.
    """

    def __init__(self, causal: nn.Module) -> None:
        super().__init__()
        self._causal = _shallow(causal)
        self._causal.model = _Given()
        self._causal.lm_head = _shallow(self._causal.lm_head)  # type: ignore[arg-type]

    @property
    def output(self) -> nn.Module:
        """The output projection."""
        return self._causal.lm_head  # type: ignore[return-value]

    def forward(self, hidden: Tensor) -> Tensor:
        """`[..., hidden]` to logits `[..., vocabulary]`."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        logits: Tensor = self._causal(inputs_embeds=rows, use_cache=False).logits
        return logits.reshape(*hidden.shape[:-1], -1)


def _shallow(module: nn.Module) -> nn.Module:
    """The same submodules and tensors in a module of their own."""
    twin = copy.copy(module)
    twin._modules, twin._parameters = dict(module._modules), dict(module._parameters)
    return twin


class _Given(nn.Module):
    """Stands in for the decoder: its inputs are its last hidden states."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> _Answer:
        return _Answer(inputs_embeds)


class _Answer:
    """What a decoder returns: last hidden states, and nothing of all else that models ask for."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]
