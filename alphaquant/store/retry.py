"""A second try for what may pass: memory that ran out on a smaller batch, a file system that was away.

Anything else would fail again in the same way, hours later.
"""

from __future__ import annotations

import errno
import gc
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from alphaquant.errors import AlphaQuantError, first_line
from alphaquant.progress import reporter

T = TypeVar("T")
PAUSES = (2.0, 10.0)
"""Seconds before each further try after a failure of input or output."""
_PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    errno.EREMOTEIO,
}


@runtime_checkable
class Execution(Protocol):
    """The input of a stage that says how much is worked on at once."""

    def halved(self) -> Any:
        """The same with half the batch; None when the batch is as small as it gets."""


def patiently(work: Callable[[dict[str, Any]], T], inputs: Mapping[str, Any], what: str) -> T:
    """`work(inputs)`, again with half the batch when memory runs out, and after a pause for passing I/O.

    Results do not depend on the batch, so its size is in no key. The last error passes through.
    """
    given = dict(inputs)
    pauses = iter(PAUSES)
    while True:
        try:
            return work(given)
        except Exception as error:
            if is_out_of_memory(error):
                smaller = _halved(given)
                if smaller is None:
                    raise
                given = smaller
                reporter().note(
                    f"{what}: out of memory; trying again with batches of "
                    f"{given['execution'].batch_size}"
                )
            elif is_passing(error) and (pause := next(pauses, None)) is not None:
                reporter().note(f"{what}: {first_line(error)}; trying again in {pause:.0f} s")
                time.sleep(pause)
            else:
                raise
            _forget(error)
        gc.collect()
        _empty_device_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the host; torch has no one class for both."""
    if isinstance(error, MemoryError):
        return True
    if any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def is_passing(error: BaseException) -> bool:
    """Whether a failure of input or output may be gone a moment later."""
    if isinstance(error, AlphaQuantError):
        return False
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING


def _halved(inputs: dict[str, Any]) -> dict[str, Any] | None:
    execution = inputs.get("execution")
    smaller = execution.halved() if isinstance(execution, Execution) else None
    return None if smaller is None else inputs | {"execution": smaller}


def _forget(error: BaseException) -> None:
    """Let go of the tensors that the frames of a failed try still hold."""
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None


def _empty_device_cache() -> None:
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
