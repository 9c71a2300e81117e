"""Hooks on several modules at once, taken off again whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn


@contextlib.contextmanager
def hooked(modules: Iterable[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """While open, `hook` is a forward hook of each module."""
    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(hook).remove)
        yield


def remember(outputs: dict[nn.Module, Any]) -> Callable[..., None]:
    """A forward hook that keeps what modules return last."""

    def hook(module: nn.Module, _args: Any, output: Any) -> None:
        outputs[module] = output

    return hook


class Enough(Exception):
    """Everything was seen that was asked for, and the rest need not run."""


@contextlib.contextmanager
def given(
    modules: Mapping[Any, nn.Module],
    read: Callable[[tuple[Tensor, ...]], Any] = lambda args: args[0],
    *,
    enough: bool = False,
) -> Iterator[dict[Any, Any]]:
    """While open, what `read` finds in the last arguments of each module, by its key; raises Enough after the last if told to."""
    seen: dict[Any, Any] = {}

    def hook(key: Any) -> Callable[..., None]:
        def look(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[key] = read(args)
            if enough and len(seen) == len(modules):
                raise Enough

        return look

    with contextlib.ExitStack() as hooks:
        for key, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(hook(key)).remove)
        yield seen
