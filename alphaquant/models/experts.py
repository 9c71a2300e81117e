"""Experts as linears: transformers fuses a block's experts into 3-D parameters; here each is its own linear.

The names under a block equal those on disk (`experts.3.gate_proj`), so hooks, Hessians and plans
address one expert at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
from torch import Tensor, nn

from alphaquant.linalg.products import passes_of

_ROWS = 32  # tokens of an expert are filled up to a multiple of it
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

Join: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Outputs of gate and up `[tokens, inner]` to what down reads."""


@contextlib.contextmanager
def experts_cut_short(block: nn.Module) -> Iterator[None]:
    """While open, routed experts hand on what they read: for who looks how the rest of a block hangs together."""
    with contextlib.ExitStack() as patches:
        for module in block.modules():
            if isinstance(module, UnfusedExperts):
                patches.enter_context(patch.object(module, "forward", _weighted))
        yield


def _weighted(hidden: Tensor, _: Tensor, weights: Tensor) -> Tensor:
    return hidden * weights.sum(-1, keepdim=True).to(hidden.dtype)


def has_experts(model: nn.Module) -> bool:
    """Whether a model sends tokens to experts, who get a different number every time."""
    return any(name.endswith("experts") for name, _ in model.named_modules())


def dense_passes(
    routed: bool, tokens: int, like: Tensor
) -> contextlib.AbstractContextManager[None]:
    """`passes_of` for a model that is not `routed`: of one that has experts, every number of tokens would be compiled."""
    return contextlib.nullcontext() if routed else passes_of(tokens, like)


class ExpertLinear(nn.Linear):
    """A linear that a different number of tokens reaches every time.

    In bf16 on a CPU they are filled up with zeros, because oneDNN compiles and keeps a kernel for every number: 500 of them take
    half of the time and 250 MB.
    """

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.shape[0]
        short = -tokens % _ROWS
        if not short or _product_dtype(input) != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)
        return super().forward(nn.functional.pad(input, (0, 0, 0, short)))[:tokens]


def _product_dtype(input: Tensor) -> torch.dtype:
    """What a product of it is computed in."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype


class Expert(nn.Module):
    """One gated expert: down(join(gate(x), up(x))), where most join by act(gate) * up."""

    def __init__(
        self, hidden: int, inner: int, join: Join, *, bias: bool, device: Any, dtype: Any
    ) -> None:
        super().__init__()
        place = {"bias": bias, "device": device, "dtype": dtype}
        self.gate_proj = ExpertLinear(hidden, inner, **place)
        self.up_proj = ExpertLinear(hidden, inner, **place)
        self.down_proj = ExpertLinear(inner, hidden, **place)
        self.join = join

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        """`[tokens, hidden]` to the same, times the weight `[tokens]` that the router gave each token.

        The weight is an argument so that a hook on the expert sees it.
        """
        out: Tensor = self.down_proj(self.join(self.gate_proj(x), self.up_proj(x)))
        return out * routing[:, None]


class UnfusedExperts(nn.ModuleList):
    """The routed experts of a block, called as transformers calls its fused ones."""

    @classmethod
    def like(cls, fused: nn.Module, device: Any = None) -> UnfusedExperts:
        """Empty experts with the shapes and dtype of a fused module, and its device unless told."""
        gate_up: Tensor = fused.gate_up_proj  # type: ignore[assignment]
        hidden, double = gate_up.shape[1:] if _is_transposed(fused) else gate_up.shape[:0:-1]
        return cls(
            [
                Expert(
                    hidden,
                    double // 2,
                    _join_of(fused),
                    bias=hasattr(fused, "gate_up_proj_bias"),
                    device=device or gate_up.device,
                    dtype=gate_up.dtype,
                )
                for _ in range(gate_up.shape[0])
            ]
        )

    @classmethod
    def sharing(cls, fused: nn.Module) -> UnfusedExperts:
        """Experts whose weights are views of a fused module's parameters: no copy is made."""
        experts = cls.like(fused, "meta")
        for kind, ending in (("weight", ""), ("bias", "_bias")):
            if not hasattr(fused, f"gate_up_proj{ending}"):
                continue
            gate_up: Tensor = getattr(fused, f"gate_up_proj{ending}").detach()
            down: Tensor = getattr(fused, f"down_proj{ending}").detach()
            if kind == "weight" and _is_transposed(fused):
                gate_up, down = gate_up.transpose(1, 2), down.transpose(1, 2)
            inner = gate_up.shape[1] // 2
            parts = (gate_up[:, :inner], gate_up[:, inner:])
            if _takes_turns(fused):
                parts = (gate_up[:, ::2], gate_up[:, 1::2])
            for index, expert in enumerate(experts):
                for name, values in zip(_PROJECTIONS, (*parts, down), strict=True):
                    parameter = nn.Parameter(values[index], requires_grad=False)
                    setattr(getattr(expert, name), kind, parameter)
        return experts

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`[tokens, hidden]`, `[tokens, k]` expert indices, `[tokens, k]` weights to `[tokens, hidden]`."""
        out = torch.zeros_like(hidden_states)
        for expert, (token, weight) in zip(
            self, self.sent(top_k_index, top_k_weights), strict=True
        ):
            if len(token):
                result = expert(hidden_states[token], weight)
                out.index_add_(0, token, result.to(out.dtype))
        return out

    def sent(self, top_k_index: Tensor, top_k_weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The numbers of the tokens that each expert gets, as it gets them, and their weights."""
        chosen = top_k_index.flatten()
        order = chosen.argsort(stable=True)
        tokens, weights = order // top_k_index.shape[-1], top_k_weights.flatten()[order]
        # one wait for the device; asking for each expert's tokens would be one an expert
        counts = torch.bincount(chosen, minlength=len(self)).tolist()
        return zip(tokens.split(counts), weights.split(counts), strict=True)


def _is_transposed(fused: nn.Module) -> bool:
    """Whether a fused module holds `[experts, in, out]` instead of `[experts, out, in]`."""
    return bool(getattr(fused, "is_transposed", False))


def _takes_turns(fused: nn.Module) -> bool:
    """Whether gate and up alternate, instead of one standing behind the other."""
    return not getattr(fused, "is_concatenated", True)


def _join_of(fused: nn.Module) -> Join:
    """How a fused module makes one of gate and up; where they take turns it has a way of its own."""
    module: Any = fused
    if _takes_turns(fused):
        return lambda gate, up: module._apply_gate(torch.stack([gate, up], -1).flatten(-2))
    return lambda gate, up: module.act_fn(gate) * up


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
