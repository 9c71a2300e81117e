"""Who computes with a checkpoint, as rows: what it reads, whether it is there, how to get it. Imports no torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alphaquant.errors import ConfigError
from alphaquant.models.originals import ORIGINALS
from alphaquant.models.packed_config import METHODS

DENSE = "dense"
"""The storage of a checkpoint that has no quantization_config."""
_FIND = """
import importlib.util, sys
found = importlib.util.find_spec(sys.argv[1])
sys.exit(found is None or found.origin is None)  # a folder that happens to have the name has no origin
"""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A program that computes with checkpoints."""

    name: str
    module: str
    """What it is imported as."""
    install: str
    """Words for who does not have it."""
    reads: tuple[str, ...]
    """Storages: dense, or a quant_method."""
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Module and command to install it, for storages that take one more."""


_OTHER = "in an environment of its own, then --python {0}=ENVIRONMENT/bin/python"
CONSUMERS = {
    row.name: row
    for row in (
        Consumer(
            "transformers",
            "transformers",
            "pip install transformers",
            (DENSE, "compressed-tensors"),
            {"compressed-tensors": ("compressed_tensors", "pip install 'alphaquant[hf]'")},
        ),
        Consumer(
            "alphaquant",
            "alphaquant",
            "pip install -e .",
            (DENSE, *ORIGINALS, *METHODS),
        ),
        Consumer(
            "gptqmodel",
            "gptqmodel",
            f"pip install gptqmodel {_OTHER.format('gptqmodel')}",
            ("gptq",),
        ),
        Consumer(
            "vllm",
            "vllm",
            f"pip install vllm {_OTHER.format('vllm')} (CUDA)",
            (DENSE, "compressed-tensors", "gptq", "quark"),
        ),
    )
}


def obstacle(consumer: Consumer, storage: str, python: Path | None) -> str | None:
    """Why `consumer`, of the environment of `python` or this one, cannot compute with a checkpoint; None: it can."""
    if not _has(consumer.module, python):
        return f"not installed: {consumer.install}"
    if storage not in consumer.reads:
        return f"does not read {storage} checkpoints, only {', '.join(consumer.reads)}"
    if (more := consumer.needs.get(storage)) and not _has(more[0], python):
        return f"reads {storage} checkpoints with {more[0]} only: {more[1]}"
    return None


def pythons(assignments: list[str]) -> dict[str, Path]:
    """Executables by consumer from `CONSUMER=PATH`. Raises ConfigError for what is not that."""
    found = {}
    for text in assignments:
        name, _, path = text.partition("=")
        if name not in CONSUMERS or not path:
            raise ConfigError(
                f"--python {text!r} is not CONSUMER=EXECUTABLE; consumers: {', '.join(CONSUMERS)}"
            )
        executable = Path(path).expanduser().absolute()  # a link decides which environment it is
        if not executable.is_file():
            raise ConfigError(
                f"--python {name}: {path} does not exist; name an environment's bin/python"
            )
        found[name] = executable
    return found


def _has(module: str, python: Path | None) -> bool:
    if python is None:
        found = importlib.util.find_spec(module)
        return found is not None and found.origin is not None
    asked = [str(python), "-P", "-c", _FIND, module]
    return subprocess.run(asked, check=False, stdout=sys.stderr).returncode == 0
