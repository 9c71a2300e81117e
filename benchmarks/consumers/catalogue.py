"""Who reads our checkpoints: every consumer in an environment of its own, with a driver that imports nothing of ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.rivals.catalogue import RIVALS

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Reader:
    """A consumer that is asked to load checkpoints."""

    name: str
    title: str
    requirements: Path
    bare: tuple[str, ...] = ()

    @property
    def driver(self) -> Path:
        """The script that loads."""
        return HERE / "drivers" / f"with_{self.name}.py"


_REQUIREMENTS = HERE / "requirements"
READERS = {
    reader.name: reader
    for reader in (
        Reader("vllm", "vLLM", _REQUIREMENTS / "vllm.txt", bare=("vllm==0.33.0",)),
        Reader("transformers", "transformers", _REQUIREMENTS / "transformers.txt"),
        Reader(
            "gptqmodel",
            "GPTQModel",
            RIVALS["gptqmodel"].requirements,
            bare=RIVALS["gptqmodel"].bare,
        ),
    )
}
