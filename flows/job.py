"""The Prefect flow `stage`: one stage on a worker of the GPU pool, dispatched by a run elsewhere."""

from __future__ import annotations

import logging
import os
from functools import partial
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from alphaquant.progress import reporting_to
from alphaquant.store.stage import run_stage
from flows.dag import StageName
from flows.devices import claim_device
from flows.display import current_display
from flows.jobs import read_job, write_failure
from flows.preflight import open_store
from flows.stage_task import run_as_task
from flows.ui import show_failure


@flow(name="stage")
def run_job(stage: StageName, key: str, store: str, force: bool = False) -> Any:
    """Compute one stage for a run that waits for it.

    Args:
        stage: Name of the stage.
        key: Key of the result; the store holds the job under it.
        store: The run's artifact store, for workers that name none in ALPHAQUANT_STORE.
        force: Compute even when the store has the result.
    """
    logging.getLogger("alphaquant").setLevel(logging.INFO)
    artifacts = open_store(os.environ.get("ALPHAQUANT_STORE") or store)
    run = str(flow_run.id)
    try:
        job = read_job(artifacts, stage, key)
        runner = partial(run_stage, claim=partial(claim_device, job=run))
        with reporting_to(current_display()):  # the worker's log says what a job waits for
            run_as_task(job.stage, artifacts, job.inputs, force=force, runner=runner)
    except Exception as error:  # noqa: BLE001
        write_failure(artifacts, stage, key, run, error)
        return show_failure(error)
    return None
