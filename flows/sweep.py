"""The Prefect flow `sweep`: one run per point of a grid, sharing every stage and block that points have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from alphaquant.config import RunConfig
from alphaquant.errors import AlphaQuantError, described
from alphaquant.progress import reporter, reporting_to
from alphaquant.store.runs import new_run_id
from flows.dag import StageName
from flows.display import PlainDisplay
from flows.pipeline import on_server, run_prepared
from flows.points import Axis, Point, points_of
from flows.preflight import open_store
from flows.sweep_result import hand_over_sweep, mark_sweep, open_sweep
from flows.ui import show_failure, show_sweep
from flows.watching import giving_up

_DEFAULT = RunConfig()
AT_ONCE = 8
"""Points that are worked on at a time when stages are jobs of a pool."""
_checked: ContextVar[list[Point] | None] = ContextVar("checked", default=None)


class SweepFailed(AlphaQuantError):
    """Some points of a sweep failed; the others are there."""


@flow(
    name="sweep",
    flow_run_name=new_run_id,
    task_runner=ThreadPoolTaskRunner(max_workers=AT_ONCE),  # type: ignore[arg-type]
)
def sweep(
    over: list[Axis],
    config: RunConfig = _DEFAULT,
    force: list[StageName] = [],  # noqa: B006
    store: str = "",
    out: str = "",
) -> dict[str, Any]:
    """Run every combination of some config values and set the results side by side.

    Points share stages and leading decoder blocks. With execution.where=pool they are worked on at once,
    GPU stages as jobs of the GPU pool.

    Args:
        over: Config keys and the values that each takes in turn.
        config: What all points have in common.
        force: Stages to run at every point even when the store has their result.
        store: Folder or URL of the artifact store; empty means ALPHAQUANT_STORE or artifacts/.
        out: Folder for the points' products and the comparison; empty means runs/sweep-MODEL.
    """
    logging.getLogger("alphaquant").setLevel(logging.INFO)
    try:
        artifacts = open_store(store)
        folder = open_sweep(out, config, artifacts)
        points = _checked.get() or points_of(config, over, artifacts, folder, tuple(force))
        mark_sweep(folder, str(flow_run.name))
        work = _all_at_once if config.execution.where == "pool" else _one_by_one
        summary = hand_over_sweep(folder, str(flow_run.name), points, work(points))
        show_sweep(summary)
        failed = [entry for entry in summary["points"] if entry["error"]]
        if failed:
            raise SweepFailed(
                f"{len(failed)} of {len(points)} points failed, first {failed[0]['point']}: "
                f"{failed[0]['error']}. The others are in {folder}; the same command goes on with the rest."
            )
    except Exception as error:  # noqa: BLE001
        return show_failure(error)  # type: ignore[no-any-return]
    return summary


def sweep_checked(
    points: list[Point], over: list[Axis], config: RunConfig, out: Path
) -> dict[str, Any]:
    """Run the flow for a caller that has checked its points already. Raises what `on_server` does."""
    request = points[0].request
    token = _checked.set(points)
    try:
        with on_server():
            return sweep(
                over,
                config,
                list(request.force),  # type: ignore[arg-type]
                request.store.location,
                str(out),
            )
    finally:
        _checked.reset(token)


def _one_by_one(points: list[Point]) -> list[dict[str, Any]]:
    return [_ending_of(point) for point in points]


def _ending_of(point: Point) -> dict[str, Any]:
    """The summary of a point's run, or what went wrong."""
    reporter().note(f"point {point.name}")
    try:
        return run_prepared(point.request)
    except Exception as error:  # noqa: BLE001
        reporter().note(f"point {point.name} failed: {described(error)}")
        return {"status": "failed", "error": described(error)}


def _all_at_once(points: list[Point]) -> list[dict[str, Any]]:
    futures: list[PrefectFuture[dict[str, Any]]] = [_as_task(point).submit() for point in points]
    with giving_up():
        return [future.result() for future in futures]


def _as_task(point: Point) -> Task[[], dict[str, Any]]:
    # a function, as Prefect takes a text for a template, and a value such as {wq: int4} has braces
    made = task(
        name="point", task_run_name=lambda: point.name, cache_policy=NO_CACHE, persist_result=False
    )
    return made(_in_its_own_words(point))


def _in_its_own_words(point: Point) -> Callable[[], dict[str, Any]]:
    """Work on a point among others: each line says whose it is."""

    def work() -> dict[str, Any]:
        with reporting_to(PlainDisplay(prefix=f"[{point.name}] ")):
            return _ending_of(point)

    return work
