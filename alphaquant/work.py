"""What steps have to do at the least, what a machine can do in a second, and so the seconds that physics asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TypeVar

Name = TypeVar("Name", bound=str)


@dataclass(frozen=True)
class Work:
    """Arithmetic and bytes."""

    flop: float = 0.0
    """In fp32."""
    tensor_flop: float = 0.0
    """With bf16 factors, which tensor cores multiply."""
    moved: float = 0.0
    """Bytes read from and written to memory."""
    read: float = 0.0
    """Bytes read from files."""
    written: float = 0.0
    """Bytes written to files."""

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(value * times for value in astuple(self)))


@dataclass(frozen=True)
class Rates:
    """What a machine was measured to do in a second, in the units of `Work`, and which one it was."""

    flop: float
    tensor_flop: float
    moved: float
    read: float
    written: float
    machine: str

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at the least: those of its slowest part, as if all others hid behind it."""
        *rates, _ = astuple(self)
        return float(max(a / b for a, b in zip(astuple(work), rates, strict=True)))


@dataclass(frozen=True)
class Spent:
    """What a step took, and what it had to do; no work where no formula tells."""

    seconds: float = 0.0
    work: Work = field(default_factory=Work)

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.work + other.work)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.work + other.work * -1)


def bytes_in(*folders: Path) -> int:
    """Size of all files in some folders."""
    files = (path for folder in folders for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files)


def since(now: Mapping[Name, Spent], before: Mapping[Name, Spent]) -> dict[Name, Spent]:
    """What was added to steps between two looks at a clock."""
    added = {step: spent - before.get(step, Spent()) for step, spent in now.items()}
    return {step: spent for step, spent in added.items() if spent != Spent()}
