"""FARMS beside a GPU: its many small spectra are the CPU's work, so a process of its own computes them while the device does other things.

The run begins it at once and asks for alpha when a plan is made. By then it is found in the store, or waited
for at the stage's lock, or, should that process have failed, computed by the run itself. On a machine
without a GPU the two would only take the cores from each other.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import flows.dag
from alphaquant.store.stage import Stage, lookup, run_stage
from flows.devices import claim_device
from flows.jobs import read_job, write_job

if TYPE_CHECKING:
    from flows.runner import Request

_BESIDE: flows.dag.StageName = "alpha"
_GIVES_WAY = 10  # to the process that keeps the device busy


@contextlib.contextmanager
def alpha_beside(request: Request) -> Iterator[None]:
    """Compute alpha beside the run while the context is open, if the run will need it and a GPU will be busy."""
    inputs = {
        "model": request.model,
        "alpha": request.config.alpha,
        "execution": request.config.execution.model_copy(update={"device": "cpu"}),
    }
    stage: Stage = getattr(flows.dag, _BESIDE)
    if not _worth_it(request, stage, inputs):
        yield
        return
    process = _begin(request, stage, inputs)
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _worth_it(request: Request, stage: Stage, inputs: dict[str, Any]) -> bool:
    if request.stages is not flows.dag.pipeline or stage.name in request.force:
        return False
    if request.config.alpha.estimator != "farms":  # a GPU solves the others faster
        return False
    if lookup(stage, request.store, inputs, why="not done").miss is None:
        return False
    return _uses_gpu(request)


def _uses_gpu(request: Request) -> bool:
    """Whether this process will compute on a GPU; asked only when alpha, which loads torch, is to be computed."""
    from alphaquant.models.device import compute_device

    execution = request.config.execution
    return execution.where == "here" and compute_device(execution.device).type == "cuda"


def _begin(request: Request, stage: Stage, inputs: dict[str, Any]) -> subprocess.Popen[bytes]:
    key = write_job(request.store, stage, inputs)
    words = [sys.executable, "-m", "flows.beside", request.store.location, stage.name, key]
    # what goes wrong there happens again in the run, which tells it
    quiet = subprocess.DEVNULL
    return subprocess.Popen(words, stdin=quiet, stdout=quiet, stderr=quiet)


def main(words: Sequence[str]) -> None:
    """Compute the job of a store, a stage and a key."""
    from flows.preflight import open_store

    place, stage, key = words
    os.nice(_GIVES_WAY)
    store = open_store(place)
    job = read_job(store, stage, key)
    run_stage(job.stage, store, job.inputs, claim=claim_device)


if __name__ == "__main__":
    main(sys.argv[1:])
