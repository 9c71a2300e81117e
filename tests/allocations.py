"""What torch allocates on the CPU while something runs: the process's own size also has the allocator's moods."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

from torch.profiler import ProfilerActivity, profile


def allocations(work: Callable[[], Any]) -> list[int]:
    """Bytes of every allocation, and of what was freed with a minus, in order; what `work` returns is held meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        held = work()
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    assert memory, "this torch names the events of its allocations in another way"
    del held
    return [size for _, size in sorted(memory, key=lambda event: event[0])]


def most_allocated(work: Callable[[], Any]) -> int:
    """Bytes that were there at one moment beyond those before."""
    return max(accumulate(allocations(work)))
