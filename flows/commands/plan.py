"""`alphaquant plan`: what a run would do and why. Starts no server and loads no torch."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from rich.console import Console

from alphaquant.sizes import size_text
from alphaquant.store.planning import PlannedStage
from flows.commands.options import Verbs, add_config, add_verb, config_of, forced
from flows.display import duration, stage_table
from flows.planned import planned_stages
from flows.preflight import foreseen_loading, foreseen_size, open_store, prepare
from flows.runner import Request

_EXAMPLE = """  alphaquant plan
  alphaquant plan config.yaml --set allocation.target_bits=3.5
  alphaquant plan config.yaml --force-from quantize"""


_NEEDS: dict[str | None, list[str]] = {
    "nothing": [],
    "alphaquant.hf": ["transformers loads it after `import alphaquant.hf`"],
    "alphaquant.load": [
        "transformers loads it with a package of that format, `alphaquant.load` without"
    ],
    None: [
        "whether transformers needs `import alphaquant.hf` is up to the plan, and the model card will say"
    ],
}


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "plan", _EXAMPLE)
    add_config(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Show one line per stage, and how long those that may run took the last time."""
    store = open_store(options.store)
    store.heals = False
    config = config_of(options)
    request = prepare(config, store, options.out, forced(options, config), dry=True)
    planned = planned_stages(request)
    stages = [_entry(stage) for stage in planned]
    checkpoint = _checkpoint(request)
    if options.json:
        answer = {
            "model": request.model.name,
            "stages": stages,
            "seconds": _seconds(planned),
            "checkpoint": checkpoint,
        }
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
        return
    console = Console()
    console.print(stage_table(stages, f"plan for {request.model.name}"))
    console.print(_total(planned), highlight=False)
    console.print(_sentence(checkpoint), highlight=False)


def _entry(stage: PlannedStage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "state": stage.state,
        "reason": stage.reason,
        "seconds": None if stage.seconds is None else round(stage.seconds, 3),
    }


def _checkpoint(request: Request) -> dict[str, Any]:
    """What will be handed over; its size is known where the plan follows from the config alone."""
    export = request.config.export
    size = foreseen_size(request.config, request.model)
    return {
        "format": export.format,
        "consumers": list(export.consumers),
        "transformers_needs": foreseen_loading(request.config, request.model),
        "bytes": size and size.bytes,
        "bits_per_weight": size and round(size.bits_per_weight, 4),
    }


def _sentence(checkpoint: dict[str, Any]) -> str:
    told = [f"Checkpoint: {checkpoint['format']}"]
    if checkpoint["bytes"]:
        told.append(
            f"{size_text(checkpoint['bytes'])}, linears at {checkpoint['bits_per_weight']:.3f} bits per weight as stored"
        )
    if checkpoint["consumers"]:
        told.append(f"nothing speaks against {', '.join(checkpoint['consumers'])}")
    if "transformers" in checkpoint["consumers"]:
        told += _NEEDS[checkpoint["transformers_needs"]]
    return "; ".join(told) + "."


def _waiting(planned: list[PlannedStage]) -> list[PlannedStage]:
    return [stage for stage in planned if stage.state in ("run", "unknown")]


def _seconds(planned: list[PlannedStage]) -> float:
    """What all stages that may run took the last time; those that never ran count nothing."""
    return round(sum(stage.seconds or 0.0 for stage in _waiting(planned)), 3)


def _total(planned: list[PlannedStage]) -> str:
    waiting = _waiting(planned)
    if not waiting:
        return "Nothing would run."
    new = [stage.name for stage in waiting if stage.seconds is None]
    if len(new) == len(waiting):
        return "How long it takes is not known: none of these stages has run yet."
    unknown = f", without {', '.join(new)}, which never ran" if new else ""
    return f"About {duration(_seconds(planned))} if all of these run, by their last times{unknown}."
