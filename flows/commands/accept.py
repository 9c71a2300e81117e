"""`alphaquant accept`: keep what older code computed, after an edit that changes no result."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alphaquant.errors import ConfigError, UserError, nearest
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.planning import Pending, PlannedStage, pending_in, plan_stage
from alphaquant.store.stage import Stage
from alphaquant.upkeep.accept import Acceptance, find_acceptance, save_acceptance
from flows.commands.options import Verbs, add_json, add_model, add_store, add_verb, config_of
from flows.dag import STAGE_NAMES, pipeline
from flows.preflight import open_store, prepare

_EXAMPLE = """  alphaquant accept quantize
  alphaquant accept quantize export config.yaml --set allocation.target_bits=3.5
  alphaquant accept --all config.yaml

Give the arguments of the run whose results are to be kept. Inputs must be equal; `alphaquant plan` tells what
differs."""
_CONFIGS = (".yaml", ".yml", ".json")
_SHOWN = {
    "accepted": "accepted",
    "cached": "was cached",
    "nothing": "nothing",
    "refused": "nothing",
}


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "accept", _EXAMPLE)
    parser.add_argument(
        "words",
        nargs="*",
        metavar="STAGE|CONFIG.yaml",
        help="stages, and the run config (default: the demo)",
    )
    parser.add_argument("--all", action="store_true", help="every stage of which only code changed")
    add_model(parser)
    add_store(parser)
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Accept the stages and show what was accepted; nothing is written when one of them is refused."""
    chosen, options.config = _sorted_out(options.words)
    if options.all == bool(chosen):
        raise ConfigError(
            "name the stages whose results to keep, or --all, not both. Stages: "
            f"{', '.join(STAGE_NAMES)}"
        )
    store = open_store(options.store)
    request = prepare(config_of(options), store, dry=True)
    accepting = _Accepting(store, STAGE_NAMES if options.all else chosen)
    pipeline(request.config, request.model, accepting)
    if not options.all:
        _check(accepting)
    for acceptance in accepting.found:
        save_acceptance(store, acceptance)
    if options.json:
        answer = {"model": request.model.name, "stages": [_entry(a) for a in accepting.found]}
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        Console().print(_table(accepting.found))


class _Accepting:
    """Walks over the pipeline: chosen stages are accepted, the others only looked up."""

    def __init__(self, store: ArtifactStore, chosen: Collection[str]) -> None:
        self._store = store
        self._chosen = chosen
        self.found: list[Acceptance] = []
        self.unknown: dict[str, tuple[set[str], str]] = {}
        """Stages whose result is not known: the unknown results they wait for, and why they would run."""

    def __call__(self, stage: Stage, **inputs: Any) -> ArtifactRef | Pending | None:
        found: Acceptance | PlannedStage
        if stage.name in self._chosen:
            found = find_acceptance(stage, self._store, inputs)
            self.found.append(found)
        else:
            found = plan_stage(stage, self._store, inputs)
        if isinstance(found.out, Pending):
            self.unknown[stage.name] = pending_in(inputs), found.reason
        return found.out

    def before(self, name: str) -> list[str]:
        """Stages of unknown result that an unknown stage waits for, directly or through others."""
        waits_for = {name}
        for stage in reversed(self.unknown):
            if stage in waits_for:
                waits_for |= self.unknown[stage][0]
        return [stage for stage in self.unknown if stage in waits_for - {name}]

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> None:
        if stage.name in self._chosen:
            self.found.append(Acceptance(stage.name, "nothing", f"skipped: {reason}"))


def _sorted_out(words: list[str]) -> tuple[list[str], Path | None]:
    """Stages and the config among the words of the command line."""
    configs = [word for word in words if word.endswith(_CONFIGS)]
    stages = [word for word in words if word not in configs]
    for word in stages:
        if word not in STAGE_NAMES:
            raise ConfigError(
                f"{word!r} is neither a stage nor a config file; nearest: "
                f"{nearest(word, STAGE_NAMES, 1)}; stages: {', '.join(STAGE_NAMES)}; configs end in "
                f"{', '.join(_CONFIGS)}"
            )
    if len(configs) > 1:
        raise ConfigError(f"one run config is allowed, found {', '.join(configs)}")
    return stages, Path(configs[0]) if configs else None


def _check(accepting: _Accepting) -> None:
    """Raise UserError when a stage that was named cannot be accepted because of its inputs."""
    for acceptance in accepting.found:
        if acceptance.verdict != "refused":
            continue
        name, before = acceptance.name, accepting.before(acceptance.name)
        if not before:
            raise UserError(
                f"{name} cannot be accepted: it {acceptance.reason}. Only code may differ; with other "
                "inputs it must run."
            )
        told = (
            stage if waits else f"{stage} ({why})"
            for stage, (waits, why) in accepting.unknown.items()
            if stage in before
        )
        raise UserError(
            f"{name} cannot be accepted: what it is given is not known, because these would run: "
            f"{', '.join(told)}. Run them first, or accept them too: alphaquant accept "
            f"{' '.join((*before, name))}"
        )


def _entry(acceptance: Acceptance) -> dict[str, Any]:
    return {
        "name": acceptance.name,
        "state": "nothing" if acceptance.verdict == "refused" else acceptance.verdict,
        "reason": acceptance.reason,
        "code": list(acceptance.modules),
        "blocks": acceptance.blocks,
    }


def _table(found: list[Acceptance]) -> Table:
    table = Table()
    for name in ("stage", "", "what", "code that changed"):
        table.add_column(name, overflow="fold")
    for acceptance in found:
        table.add_row(
            acceptance.name,
            _SHOWN[acceptance.verdict],
            escape(acceptance.reason),
            escape("\n".join(acceptance.modules)),
        )
    return table
