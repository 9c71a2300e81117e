"""`alphaquant why`: why a stage ran or not, run by run; or everything about one run."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.records import explain, recent_records
from alphaquant.store.runs import load_run, run_ids
from flows.commands.options import Verbs, add_store, add_verb
from flows.dag import STAGE_NAMES
from flows.display import duration, stage_table
from flows.preflight import open_store

_EXAMPLE = """  alphaquant why quantize
  alphaquant why last"""
_RUNS = 10


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "why", "Explain why a stage ran, or what a run did.", _EXAMPLE)
    parser.add_argument("what", metavar="STAGE|RUN", help="a stage's name, a run's id, or last")
    add_store(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Answer for a stage or a run."""
    store = open_store(options.store)
    console = Console()
    if options.what in STAGE_NAMES:
        console.print(_history(store, options.what))
        _key(console, store, options.what)
    else:
        _run(console, load_run_or_stage(store, options.what))


def load_run_or_stage(store: ArtifactStore, name: str) -> dict[str, Any]:
    """A run's manifest. Raises UserError that also names the stages."""
    try:
        return load_run(store, name)
    except UserError as error:
        raise UserError(f"{error}. Stages: {', '.join(STAGE_NAMES)}") from error


def _history(store: ArtifactStore, stage: str) -> Table:
    table = Table(title=f"{stage}, newest run first", title_justify="left", title_style="bold")
    for name in ("run", "state", "time", "why"):
        table.add_column(name, justify="right" if name == "time" else "left", overflow="fold")
    for run_id in run_ids(store)[:_RUNS]:
        for entry in load_run(store, run_id)["stages"]:
            if entry["name"] == stage:
                table.add_row(
                    run_id, entry["state"], duration(entry["seconds"]), escape(entry["reason"])
                )
    return table


def _key(console: Console, store: ArtifactStore, stage: str) -> None:
    """What separates the last two results of a stage."""
    records = recent_records(store, stage, 2)
    if not records:
        console.print(f"{stage} never ran with the store {store.root}.", markup=False)
        return
    newest = records[0]
    console.print(
        f"Last computed {newest.when} in {duration(newest.seconds)}: key {newest.key}, "
        f"{len(newest.ingredients['code'])} modules of code, "
        f"inputs {', '.join(newest.ingredients['inputs'])}.",
        markup=False,
    )
    if len(records) > 1:
        before = records[1]
        console.print(
            f"Against the result before it: {explain(before.ingredients, newest.ingredients)}.",
            markup=False,
        )


def _run(console: Console, manifest: dict[str, Any]) -> None:
    title = f"run {manifest['run_id']}: {manifest['model']}, {manifest['status']}"
    console.print(stage_table(manifest["stages"], title))
    if "error" in manifest:
        console.print(manifest["error"], markup=False)
