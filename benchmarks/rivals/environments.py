"""A virtual environment per rival, made once and made again when its pins change."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.rivals.catalogue import Rival

_STAMP = "pins.sha256"


def python_of(rival: Rival, cache: Path) -> Path:
    """The rival's Python, installed first if need be.

    Raises CalledProcessError when pip fails; what it said is in the cache folder.
    """
    folder = cache / "environments" / rival.name
    python, stamp = folder / "bin" / "python", folder / _STAMP
    wanted = pins_digest(rival)
    if stamp.is_file() and stamp.read_text(encoding="ascii") == wanted:
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{rival.name}.log").open("wb") as log:

        def run(*command: str) -> None:
            subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)

        run(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = (str(python), "-m", "pip", "install", "--disable-pip-version-check")
        run(*pip, "-r", str(rival.requirements))
        if rival.bare:
            run(*pip, "--no-deps", "--no-build-isolation", *rival.bare)
    stamp.write_text(wanted, encoding="ascii")
    return python


def pins_digest(rival: Rival) -> str:
    """SHA-256 of everything that decides what is installed."""
    text = rival.requirements.read_text(encoding="utf-8") + "\0".join(rival.bare)
    return hashlib.sha256(text.encode()).hexdigest()
