"""The decorator that makes a stage of a function: `@stage("alpha")`.

The function's inputs are its cache key, except those named `unkeyed`. Prefect is not needed here; the flow
wraps stages as tasks.
"""

from __future__ import annotations

from collections.abc import Callable

from alphaquant.store.stage import Skipped, Stage


def stage(
    name: str, *, gpu: bool = False, unkeyed: tuple[str, ...] = ("execution",)
) -> Callable[[Callable[..., Skipped | None]], Stage]:
    """Turn `body(out, store, **inputs)` into the stage `name`; `gpu` when a GPU makes it faster."""

    def decorate(body: Callable[..., Skipped | None]) -> Stage:
        return Stage(name=name, body=body, module=body.__module__, unkeyed=unkeyed, gpu=gpu)

    return decorate
