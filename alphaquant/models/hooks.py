"""Hooks on several modules at once, taken off again whatever happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn


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
