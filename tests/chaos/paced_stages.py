"""The pipeline with stages that need no torch and a quantization that stops where a test wants it to.

A deployment (`tests.chaos.paced_stages.run_job`) and a program (`python -m tests.chaos.paced_stages run ...`)
that share it. In the folder CHAOS_FOLDER, `blocks.jsonl` tells when blocks began and ended and in which
process; while a file `hold-<bits>-<block>` is there, that block does not end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import flows.dag
from alphaquant.store.stage import Stage, Workbench
from flows.dag import STAGE_NAMES
from flows.devices import PRETENDED
from flows.job import run_job
from tests.flows import fakes

__all__ = ["run_job"]
NAME = "tests.chaos.paced_stages"
FOLDER = "CHAOS_FOLDER"
BLOCKS = 5
_BLOCK_SECONDS = 0.1


def _quantize(out: Path, store: Workbench, *, plan: Any, tokens: Any, **inputs: Any) -> None:
    cache = store.block_cache(tokens=tokens)
    bits = json.loads((store.path(plan) / "plan.json").read_text())["bits"]
    for index in range(BLOCKS):
        if cache.get(index, {"bits": bits}) is None:
            began = time.time()
            _note(bits=bits, block=index, event="began", at=began)
            time.sleep(_BLOCK_SECONDS)
            while hold_file(Path(os.environ[FOLDER]), bits, index).exists():
                time.sleep(0.02)
            text = f"{index} at {bits}"
            cache.put(index, {"bits": bits}, lambda to, text=text: _write(to, text))  # type: ignore[misc]
            _note(bits=bits, block=index, event="ended", at=time.time())
    (out / "errors.parquet").write_bytes(b"")
    (out / "refs.json").write_text(json.dumps(cache.as_refs()))


def hold_file(folder: Path, bits: float, block: int) -> Path:
    """While it is there, the block does not end."""
    return folder / f"hold-{bits}-{block}"


def _write(folder: Path, text: str) -> None:
    (folder / "block").write_text(text)


def _note(**event: Any) -> None:
    event |= {"process": os.getpid(), "device": os.environ.get(PRETENDED)}
    with (Path(os.environ[FOLDER]) / "blocks.jsonl").open("a") as log:
        log.write(json.dumps(event) + "\n")


# in a worker or a program of the test; the tests themselves import names only
if FOLDER in os.environ:
    for _name in STAGE_NAMES:
        setattr(flows.dag, _name, Stage(_name, fakes.BODIES[_name], fakes.__name__))
    flows.dag.quantize = Stage("quantize", _quantize, NAME, gpu=True)

if __name__ == "__main__":
    from flows.cli import main

    sys.exit(main())
