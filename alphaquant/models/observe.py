"""What a decoder block's linears see: hooks that gather input Hessians, output gradients and choices of experts."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from alphaquant.clock import timed
from alphaquant.linalg.hessian import HessianAccumulator, TokenWeights
from alphaquant.models.block import BlockModel
from alphaquant.models.experts import experts_cut_short
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.hooks import Enough
from alphaquant.models.linear import LinearSpec, first_readers
from alphaquant.models.shortcuts import Shortcut, along
from alphaquant.models.tensor_file import TensorFile
from alphaquant.models.unread import unread_left_out

RoutingWeight: TypeAlias = Literal["none", "p", "p2"]
"""How often a token counts in an expert's Hessian: once, or by its routing weight p or p²."""


@contextlib.contextmanager
def observing(
    model: BlockModel,
    block: nn.Module,
    index: int,
    specs: Sequence[LinearSpec],
    routing_weight: RoutingWeight = "none",
    *,
    magnitudes: bool = False,
) -> Iterator[dict[str, HessianAccumulator]]:
    """While open, what passes through a block is gathered: a Hessian for every input that `specs` read, by its key.

    Linears with one `input_key` share an accumulator; an expert's sees the tokens routed to it. A block
    adds p E(x) for each of a token's experts, so the squared error of E counts p² in its output. `magnitudes` are
    summed for who asks for them.
    """
    accumulators: dict[str, HessianAccumulator] = {}
    counted: dict[nn.Module | None, TokenWeights | None] = {}  # by expert, of the batch in it
    with contextlib.ExitStack() as hooks:
        for spec in first_readers(specs).values():
            accumulator = HessianAccumulator(spec.cols, model.device, magnitudes=magnitudes)
            accumulators[spec.input_key] = accumulator
            expert = None
            if spec.expert is not None and routing_weight != "none":
                expert = model.expert(block, index, spec.name)
                if expert not in counted:
                    counted[expert] = None

                    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
                        counted[module] = token_weights(args, routing_weight)

                    hooks.callback(expert.register_forward_pre_hook(count).remove)

            def update(
                _module: nn.Module,
                args: tuple[Tensor, ...],
                accumulator: HessianAccumulator = accumulator,
                expert: nn.Module | None = expert,
            ) -> None:
                accumulator.update(args[0], counted.get(expert))

            module = model.linear(block, index, spec.name)
            hooks.callback(module.register_forward_pre_hook(update).remove)
        yield accumulators


def gather(
    model: BlockModel,
    block: nn.Module,
    index: int,
    passes: Iterable[Sequence[LinearSpec]],
    hidden: HiddenStates,
    routing_weight: RoutingWeight = "none",
    file: TensorFile | None = None,
    *,
    onward: bool = False,
    magnitudes: bool = False,
    ways: Sequence[Shortcut] = (),
    ends: bool = False,
) -> dict[str, HessianAccumulator]:
    """What `observing` gathers in `passes` of `hidden` through a block, each for some linears; with a `file` it waits there.

    With `onward` the last pass replaces `hidden` by the block's outputs; others go by shortcuts among `ways`, or make them,
    compute only what some linear reads, and, of a block that `calls_once`, may end where all of that was seen.
    """
    seen: dict[str, HessianAccumulator] = {}
    groups, run = list(passes), partial(model.outputs, block, index)
    for number, specs in enumerate(groups, start=1):
        with (
            timed("forward and Hessians"),
            observing(model, block, index, specs, routing_weight, magnitudes=magnitudes) as found,
        ):
            if onward and number == len(groups):
                hidden.advance(run)
            else:
                with unread_left_out(model, block, index, specs):
                    for part, batch in hidden.parts():
                        tokens = batch.shape[:2].numel() if ends else None
                        with (
                            along(ways, block, part, specs),
                            _until_seen(model, block, index, specs, tokens),
                        ):
                            run(batch)
        if file:
            for accumulator in found.values():
                accumulator.put_away(file.keep)
        seen |= found
    return seen


@contextlib.contextmanager
def _until_seen(
    model: BlockModel,
    block: nn.Module,
    index: int,
    specs: Sequence[LinearSpec],
    tokens: int | None,
) -> Iterator[None]:
    """A pass of so many `tokens` that ends where the last of what `specs` read was seen; how many reach an expert nobody knows before."""
    missing = set(first_readers(specs))

    def look(key: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[:-1].numel() == tokens:
            missing.discard(key)
        if not missing:
            raise Enough

    with contextlib.ExitStack() as hooks:
        if tokens is not None and all(spec.expert is None for spec in specs):
            for key, spec in first_readers(specs).items():
                module = model.linear(block, index, spec.name)
                hooks.callback(module.register_forward_pre_hook(partial(look, key)).remove)
        with contextlib.suppress(Enough):
            yield


@timed("forward")
@torch.no_grad()
def calls_once(model: BlockModel, block: nn.Module, index: int, window: Tensor) -> bool:
    """Whether a block calls each of its linears, but for experts', once in a pass of a `window` `[1, length, hidden]`."""
    calls = Counter[str]()

    def count(name: str, *_: Any) -> None:
        calls[name] += 1

    with experts_cut_short(block), contextlib.ExitStack() as hooks:
        for spec in model.checkpoint.block_specs(index):
            if spec.expert is None:
                module = model.linear(block, index, spec.name)
                look = partial(count, spec.name)
                hooks.callback(module.register_forward_pre_hook(look).remove)
        model.outputs(block, index, window)
    return max(calls.values(), default=1) == 1


def token_weights(args: tuple[Tensor, ...], routing_weight: RoutingWeight) -> TokenWeights | None:
    """How often each token counts that reaches an expert with `args`; None where it is not told."""
    if len(args) < 2:  # an expert of a model's own code, weighted behind it
        return None
    return TokenWeights(args[1].float() ** (2 if routing_weight == "p2" else 1))


@contextlib.contextmanager
def output_gradients(
    model: BlockModel, block: nn.Module, index: int, specs: Sequence[LinearSpec]
) -> Iterator[dict[str, Tensor]]:
    """While open, backward passes add each linear's squared output gradients, summed over tokens.

    Yields `{linear: [out]}` in fp32; a linear that no token reaches stays zero.
    """
    sums = {
        spec.name: torch.zeros(spec.rows, dtype=torch.float32, device=model.device)
        for spec in specs
    }

    def hook(name: str) -> Callable[..., None]:
        def on_gradient(gradient: Tensor) -> None:
            sums[name] += gradient.reshape(-1, gradient.shape[-1]).float().square().sum(0)

        def on_forward(_module: nn.Module, _args: Any, output: Any) -> None:
            # a router returns (logits, scores, indices)
            tensor: Tensor = output[0] if isinstance(output, tuple) else output
            if tensor.requires_grad:
                tensor.register_hook(on_gradient)

        return on_forward

    with contextlib.ExitStack() as hooks:
        for spec in specs:
            module = model.linear(block, index, spec.name)
            hooks.callback(module.register_forward_hook(hook(spec.name)).remove)
        yield sums


@contextlib.contextmanager
def expert_choices(routers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """While open, gathers the experts that each router chooses, sorted, `[tokens, k]` per call, on the CPU."""
    seen: list[list[Tensor]] = [[] for _ in routers]

    def keep(calls: list[Tensor]) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls.append(output[2].detach().sort(-1).values.cpu())

        return hook

    with contextlib.ExitStack() as hooks:
        for router, calls in zip(routers, seen, strict=True):
            hooks.callback(router.register_forward_hook(keep(calls)).remove)
        yield seen
