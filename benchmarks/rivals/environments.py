"""A virtual environment per foreign package, made once and made again when its pins change."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Protocol

_STAMP = "pins.sha256"


class Foreign(Protocol):
    """A package that lives in an environment of its own."""

    @property
    def name(self) -> str:
        """Of the environment."""

    @property
    def bare(self) -> tuple[str, ...]:
        """Pins installed without what they ask for."""

    @property
    def requirements(self) -> Path:
        """All other pins."""


def python_of(package: Foreign, cache: Path) -> Path:
    """The package's Python, installed first if need be.

    Raises CalledProcessError when pip fails; what it said is in the cache folder.
    """
    folder = cache / "environments" / package.name
    python, stamp = folder / "bin" / "python", folder / _STAMP
    wanted = pins_digest(package)
    if stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{package.name}.log").open("wb") as log:

        def run(*command: str) -> None:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)

        run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = (str(python), "-m", "pip", "install", "--disable-pip-version-check")
        run(*pip, "-r", str(package.requirements))
        if package.bare:
            run(*pip, "--no-deps", "--no-build-isolation", *package.bare)
    stamp.write_text(wanted, encoding="ascii")
    return python


def pins_digest(package: Foreign) -> str:
    """SHA-256 of everything that decides what is installed."""
    text = package.requirements.read_text(encoding="utf-8") + "\0".join(package.bare)
    return hashlib.sha256(text.encode()).hexdigest()
