"""`alphaquant plan`: what a run would do and why. Starts no server and loads no torch."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from alphaquant.store.artifacts import ArtifactRef
from alphaquant.store.planning import Pending, PlannedStage, plan_stage
from alphaquant.store.stage import Stage
from flows.commands.options import Verbs, add_config, add_verb, config_of
from flows.display import duration, stage_table
from flows.preflight import open_store, prepare
from flows.runner import Request

_EXAMPLE = """  alphaquant plan
  alphaquant plan config.yaml --set allocation.target_bits=3.5"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "plan", "Tell what a run would do, and why.", _EXAMPLE)
    add_config(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Show one line per stage."""
    store = open_store(options.store)
    request = prepare(config_of(options), store, options.out, tuple(options.force), dry=True)
    stages = planned_entries(request)
    if options.json:
        answer = {"model": request.model.name, "stages": stages}
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
        return
    console = Console()
    console.print(stage_table(stages, f"plan for {request.model.name}"))
    console.print(_total(stages))


def planned_entries(request: Request) -> list[dict[str, Any]]:
    """One entry per stage: name, state, reason, and the seconds it took the last time."""
    calls = _Planner(request)
    request.stages(request.config, request.model, calls)
    return [
        {
            "name": stage.name,
            "state": stage.state,
            "reason": stage.reason,
            "seconds": None if stage.seconds is None else round(stage.seconds, 3),
        }
        for stage in calls.planned
    ]


@dataclass
class _Planner:
    request: Request
    planned: list[PlannedStage] = field(default_factory=list)

    def __call__(self, stage: Stage, **inputs: Any) -> ArtifactRef | Pending | None:
        force = stage.name in self.request.force
        found = plan_stage(stage, self.request.store, inputs, force=force)
        self.planned.append(found)
        return found.out

    def skip(self, stage: Stage, reason: str) -> None:
        self.planned.append(PlannedStage(stage.name, "skipped", reason, None, None))


def _total(stages: list[dict[str, Any]]) -> str:
    waiting = [stage for stage in stages if stage["state"] in ("run", "unknown")]
    if not waiting:
        return "Nothing would run."
    seconds = sum(stage["seconds"] or 0.0 for stage in waiting)
    new = [stage["name"] for stage in waiting if stage["seconds"] is None]
    if not seconds:
        return "How long it takes is not known: none of these stages has run yet."
    unknown = f", without {', '.join(new)}, which never ran" if new else ""
    return f"About {duration(seconds)} if all of these run, by their last times{unknown}."
