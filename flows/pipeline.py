"""The Prefect flow: the pipeline with every stage as a task, so that the UI shows and starts it.

Prefect keeps no results here: a task looks its key up in the store, and a hit is shown as Cached. The order
of the stages is in `flows/dag.py`.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Completed

from alphaquant.config import RunConfig
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.runs import new_run_id
from alphaquant.store.stage import Stage, StageResult, run_stage
from flows.dag import StageName
from flows.orphans import note_own_server
from flows.preflight import open_store, prepare
from flows.runner import Request, run

_DEFAULT = RunConfig()
_prepared: ContextVar[Request | None] = ContextVar("prepared", default=None)


@flow(name="quantize-model", flow_run_name=new_run_id)
def quantize_model(
    config: RunConfig = _DEFAULT,
    force: list[StageName] = [],  # noqa: B006
    store: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Compress a model to mixed precision, score it against the original and write a report.

    Args:
        config: What to do, section by section. Empty fields keep their defaults.
        force: Stages to run even when the store has their result.
        store: Folder of the artifact store; empty means ALPHAQUANT_STORE or artifacts/.
        out: Folder for the checkpoint and the report; empty means runs/MODEL-BITS.
    """
    logging.getLogger("alphaquant").setLevel(logging.INFO)
    request = _prepared.get() or prepare(
        config, open_store(store), Path(out) if out else None, tuple(force)
    )
    note_own_server(request.store)
    summary = run(replace(request, run_id=str(flow_run.name)), run_as_task)
    _show(summary)
    return summary


def run_as_task(
    stage: Stage, store: ArtifactStore, inputs: dict[str, Any], *, force: bool
) -> StageResult:
    """Run a stage as a Prefect task of its name; a hit ends in the state Cached with its reason."""
    results: list[StageResult] = []

    def work(artifacts: list[ArtifactRef]) -> ArtifactRef | State[ArtifactRef | None] | None:
        result = run_stage(stage, store, inputs, force=force)
        results.append(result)
        if result.state == "ran":
            return result.ref
        return Completed(name=result.state.title(), message=result.reason, data=result.ref)

    # Prefect draws its graph by the values that a task gets from others: artifacts and nothing else
    run_task = task(name=stage.name, cache_policy=NO_CACHE, persist_result=False)(work)
    run_task(list(_artifacts(inputs)))
    return results[0]


def _artifacts(value: Any) -> Iterator[ArtifactRef]:
    if isinstance(value, ArtifactRef):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _artifacts(part)


def run_embedded(request: Request) -> dict[str, Any]:
    """Run the flow for a command that has checked its request, on a server that ends with the command."""
    token = _prepared.set(request)
    try:
        # a heartbeat thread is waited for at the end of each flow, up to a second
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            return quantize_model(
                request.config,
                list(request.force),  # type: ignore[arg-type]
                str(request.store.root),
                str(request.out) if request.out else None,
            )
    finally:
        _prepared.reset(token)


def _show(summary: dict[str, Any]) -> None:
    """Put what ran, why, and the report among the flow run's artifacts."""
    stages = [
        {key: stage[key] for key in ("name", "state", "reason", "seconds")}
        for stage in summary["stages"]
    ]
    create_table_artifact(stages, key="stages", description="What ran, and why")
    report = Path(summary["report"]).with_suffix(".md")
    markdown = re.sub(
        r"\]\((figures/[^)]+\.png)\)",
        lambda found: f"](data:image/png;base64,{_base64(report.parent / found[1])})",
        report.read_text(encoding="utf-8"),
    )
    create_markdown_artifact(markdown, key="report", description="Report")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
