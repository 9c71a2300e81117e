"""The flow `stage` as a test's worker runs it: fakes in the place of real stages.

FAKE_SECONDS: how long a GPU stage or a block takes. FAKE_FAILURE: the stage that finds a mistake of the user's.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prefect import flow

from alphaquant.errors import ModelError
from alphaquant.store.stage import Workbench
from flows.dag import StageName
from flows.job import run_job
from tests.flows.fakes import BODIES, GPU_STAGES, LINEARS, use_fake_stages


def _blocks_that_share_a_beginning(
    out: Path, store: Workbench, *, plan: Any, tokens: Any, **inputs: Any
) -> None:
    """Four blocks, of which the plan decides the last two alone."""
    bits = json.loads((store.path(plan) / "plan.json").read_text())["bits"]
    cache = store.block_cache(tokens=tokens)
    for index in range(4):
        ingredients = {"bits": bits if index >= 2 else 8}
        if cache.get(index, ingredients) is None:
            time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
            cache.put(index, ingredients, lambda folder: _write(folder / "block", str(ingredients)))  # noqa: B023
    pd.DataFrame({"linear": LINEARS, "error": 0.1}).to_parquet(out / "errors.parquet")
    (out / "refs.json").write_text(json.dumps(cache.as_refs()))


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _slow(name: str) -> Any:
    def body(out: Path, store: Workbench, **inputs: Any) -> Any:
        if os.environ.get("FAKE_FAILURE") == name:
            raise ModelError("weight x holds NaN")
        time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
        return BODIES[name](out, store, **inputs)

    return body


use_fake_stages(
    pytest.MonkeyPatch(),
    **{name: _slow(name) for name in GPU_STAGES} | {"quantize": _blocks_that_share_a_beginning},
)


@flow(name="stage")
def run_fake_job(stage: StageName, key: str, store: str, force: bool = False) -> Any:
    """The flow of `flows.job`, from a module that has put the fakes in place."""
    return run_job.fn(stage, key, store, force)
