"""Experts as linears: transformers fuses a block's experts into 3-D parameters; here each is its own linear.

The names under a block equal those on disk (`experts.3.gate_proj`), so hooks, Hessians and plans
address one expert at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """One gated expert: down(act(gate(x)) * up(x))."""

    def __init__(
        self, hidden: int, intermediate: int, activation: Any, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        place = {"bias": False, "device": device, "dtype": dtype}
        self.gate_proj = nn.Linear(hidden, intermediate, **place)
        self.up_proj = nn.Linear(hidden, intermediate, **place)
        self.down_proj = nn.Linear(intermediate, hidden, **place)
        self.activation = activation

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        """`[tokens, hidden]` to the same, times the weight `[tokens]` that the router gave each token.

        The weight is an argument so that a hook on the expert sees it.
        """
        out: Tensor = self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
        return out * routing[:, None]


class UnfusedExperts(nn.ModuleList):
    """The routed experts of a block, called as transformers calls its fused ones."""

    @classmethod
    def like(cls, fused: nn.Module) -> UnfusedExperts:
        """Empty experts with the shapes, device and dtype of a fused module."""
        gate_up: Tensor = fused.gate_up_proj  # type: ignore[assignment]  # [experts, 2 * inner, hidden]
        count, double, hidden = gate_up.shape
        return cls(
            [
                Expert(hidden, double // 2, fused.act_fn, gate_up.device, gate_up.dtype)
                for _ in range(count)
            ]
        )

    @classmethod
    def sharing(cls, fused: nn.Module) -> UnfusedExperts:
        """Experts whose weights are views of a fused module's parameters: no copy is made."""
        gate_up: Tensor = fused.gate_up_proj.detach()  # type: ignore[operator]
        down: Tensor = fused.down_proj.detach()  # type: ignore[operator]
        inner = gate_up.shape[1] // 2
        experts = cls(
            [
                Expert(gate_up.shape[2], inner, fused.act_fn, "meta", gate_up.dtype)
                for _ in range(gate_up.shape[0])
            ]
        )
        for index, expert in enumerate(experts):
            for linear, weight in (
                ("gate_proj", gate_up[index, :inner]),
                ("up_proj", gate_up[index, inner:]),
                ("down_proj", down[index]),
            ):
                getattr(expert, linear).weight = nn.Parameter(weight, requires_grad=False)
        return experts

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`[tokens, hidden]`, `[tokens, k]` expert indices, `[tokens, k]` weights to `[tokens, hidden]`."""
        out = torch.zeros_like(hidden_states)
        for index in top_k_index.unique().tolist():
            token, slot = torch.where(top_k_index == index)
            result = self[index](hidden_states[token], top_k_weights[token, slot])
            out.index_add_(0, token, result.to(out.dtype))
        return out


def is_fused_experts(module: nn.Module) -> bool:
    """Whether a module is transformers' fused form of gated experts."""
    return all(
        isinstance(getattr(module, name, None), nn.Parameter) and getattr(module, name).dim() == 3
        for name in ("gate_up_proj", "down_proj")
    )


def unfuse(module: nn.Module, *, share: bool) -> None:
    """Replace every fused-experts submodule in place; `share` keeps the weights, else shapes only."""
    for name, child in list(module.named_modules()):
        if is_fused_experts(child):
            experts = UnfusedExperts.sharing(child) if share else UnfusedExperts.like(child)
            module.set_submodule(name, experts)
