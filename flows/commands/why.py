"""`alphaquant why`: why a stage ran or not, run by run; or what a run did, why and where."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.records import (
    KeyRecord,
    changed_inputs,
    changed_modules,
    local_time,
    recent_records,
)
from alphaquant.upkeep.history import RunManifest, StageEntry, read_run, recent_runs
from flows.commands.options import Verbs, add_store, add_verb
from flows.dag import STAGE_NAMES
from flows.display import duration
from flows.experiment_dag import STAGES
from flows.preflight import open_store

_EXAMPLE = """  alphaquant why quantize
  alphaquant why last"""
_RUNS = 10


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "why", _EXAMPLE)
    parser.add_argument(
        "what",
        metavar="STAGE|RUN",
        nargs="?",
        default="last",
        help="a stage's name, a run's id, last (the default) or last~1",
    )
    add_store(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Answer for a stage or a run."""
    store = open_store(options.store)
    store.heals = False
    console = Console()
    if options.what in (*STAGE_NAMES, *STAGES):
        _explain_stage(console, store, options.what)
    else:
        _explain_run(console, _run_named(store, options.what))


def _run_named(store: ArtifactStore, name: str) -> RunManifest:
    """A run's manifest. Raises UserError that also names the stages."""
    try:
        return read_run(store, name)
    except UserError as error:
        raise UserError(f"{error}. Stages: {', '.join(STAGE_NAMES)}") from error


def _explain_stage(console: Console, store: ArtifactStore, stage: str) -> None:
    runs, damaged = recent_runs(store, _RUNS)
    rows = [(run.run_id, entry) for run in runs if (entry := run.stage(stage))]
    if rows:
        console.print(_entries(f"{stage}, newest run first", "run", rows))
    for run_id in damaged:
        console.print(f"The manifest of run {run_id} is damaged; it is left out.", highlight=False)
    records = recent_records(store, stage, 2)
    if not records:
        console.print(f"{stage} never ran with the store {store.location}.", markup=False)
        return
    console.print(_told(store, records[0]), markup=False, highlight=False)
    if len(records) > 1:
        console.print(_against(records[1], records[0]))


def _told(store: ArtifactStore, record: KeyRecord) -> str:
    """The newest result in a few sentences: when, where, from what, and whether it is still there."""
    where = f" on {record.place.host} ({record.place.device})" if record.place else ""
    said = [
        f"Last result: computed {local_time(record.when)}{where} in {duration(record.seconds)}, "
        f"key {record.key[:12]}, from {len(record.ingredients['code'])} modules of code and the inputs "
        f"{', '.join(record.ingredients['inputs'])}."
    ]
    if record.accepted_on:
        said.append(f"It was {record.standing()}.")
    if record.ref and (problem := store.problem(record.ref)):
        said.append(f"Its artifact {record.ref} is now {problem}.")
    return " ".join(said)


def _against(before: KeyRecord, newest: KeyRecord) -> Table:
    """Every ingredient that separates the last two results of a stage."""
    title = f"against the result of {local_time(before.when)}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("", "what", "before", "now"):
        table.add_column(name, overflow="fold")
    old, new = before.ingredients, newest.ingredients
    for name, (value, now) in changed_inputs(old, new).items():
        table.add_row("input", escape(name), escape(value), escape(now))
    for module in changed_modules(old, new):
        hashes = (ingredients["code"].get(module, "(none)")[:8] for ingredients in (old, new))
        table.add_row("code", escape(module), *hashes)
    return table


def _explain_run(console: Console, run: RunManifest) -> None:
    title = f"run {run.run_id}: {run.model}, {run.status}"
    if run.tags:
        title += f", tagged {', '.join(run.tags)}"
    console.print(_entries(title, "stage", [(entry.name, entry) for entry in run.stages]))
    if run.stage_at_work and run.status != "completed":
        console.print(f"It was in stage {run.stage_at_work} when it ended.", highlight=False)
    if run.error:
        console.print(run.error, markup=False)


def _entries(title: str, first: str, rows: list[tuple[str, StageEntry]]) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    names = [first, "state", "time", "why"]
    if any(entry.where for _, entry in rows):
        names.insert(3, "where")
    for name in names:
        right, whole = name == "time", name in (first, "time")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=whole)
    for label, entry in rows:
        cells = [label, entry.state, duration(entry.seconds), escape(entry.reason)]
        if "where" in names:
            cells.insert(3, escape(entry.where))
        table.add_row(*cells)
    return table
