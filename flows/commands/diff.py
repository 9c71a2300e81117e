"""`alphaquant diff`: what two runs were told, what they used and what came out, where that differs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alphaquant.store.records import some
from alphaquant.upkeep.history import read_run
from alphaquant.upkeep.rundiff import Pair, RunDiff, StageDiff, diff_runs
from flows.commands.options import Verbs, add_json, add_store, add_verb
from flows.display import duration
from flows.preflight import open_store

_EXAMPLE = """  alphaquant diff last~1 last
  alphaquant diff 20260314-0915 last --json"""
_WIDTH = 48


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "diff", _EXAMPLE)
    for name in ("a", "b"):
        parser.add_argument(
            name, metavar=f"RUN_{name.upper()}", help="a run's id, its beginning, last or last~1"
        )
    parser.add_argument("--all", action="store_true", help="show what is equal, too")
    add_store(parser)
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Show the differences."""
    store = open_store(options.store)
    a, b = read_run(store, options.a), read_run(store, options.b)
    diff = diff_runs(store, a, b, everything=options.all)
    if options.json:
        answer = {"runs": [a.run_id, b.run_id], **_plain(diff)}
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
        return
    console = Console()
    tables = _tables(diff)
    for name, run in (("A", a), ("B", b)):
        console.print(
            f"{name}: run {run.run_id}, {run.model}, {run.status}", markup=False, highlight=False
        )
    for table in tables:
        console.print(table)
    if not tables:
        console.print("They do not differ.")


def _plain(diff: RunDiff) -> dict[str, Any]:
    scores = {
        name: {"a": a, "b": b, "difference": _difference(a, b)}
        for name, (a, b) in diff.scores.items()
    }
    return asdict(diff) | {"scores": scores}


def _tables(diff: RunDiff) -> list[Table]:
    tables = [
        _pairs("run", diff.facts),
        _pairs("config", diff.config),
        _stages(diff.stages),
        _scores(diff.scores),
        _pairs("environment", diff.environment),
    ]
    return [table for table in tables if table.row_count]


def _pairs(title: str, pairs: dict[str, Pair]) -> Table:
    table = _table(title, "", "A", "B")
    for name, values in pairs.items():
        table.add_row(escape(name), *(_text(name, value) for value in values))
    return table


def _scores(pairs: dict[str, Pair]) -> Table:
    table = _table("scores", "", "A", "B", "difference")
    for name, values in pairs.items():
        difference = _difference(*values)
        shown = "" if difference is None else f"{difference:+.4g}"
        table.add_row(escape(name), *(_text(name, value) for value in values), shown)
    return table


def _stages(stages: dict[str, StageDiff]) -> Table:
    table = _table("stages", "", "A", "B", "what differs")
    for name, diff in stages.items():
        columns = (_column(diff, index) for index in range(2))
        table.add_row(name, *columns, escape("\n".join(_causes(diff))))
    return table


def _column(diff: StageDiff, index: int) -> str:
    """State, time and artifact of a stage in one of the runs."""
    if diff.state[index] is None:
        return ""
    lines = [f"{diff.state[index]}, {duration(diff.seconds[index])}"]
    if digest := diff.artifact[index]:
        lines.append(digest[:12])
    if diff.where[0] != diff.where[1] and diff.where[index]:
        lines.append(diff.where[index])
    return escape("\n".join(lines))


def _causes(diff: StageDiff) -> list[str]:
    causes = [f"{name}: {old} -> {new}" for name, (old, new) in diff.inputs.items()]
    if diff.code:
        causes.append(f"code: {some(diff.code)}")
    if None in diff.state:
        return ["only one run came to it"]
    if not all(diff.key):
        return ["skipped in one of the runs"]
    if diff.key[0] != diff.key[1] and not diff.recorded:
        causes.append("inputs or code; the store no longer tells which")
    if diff.artifact[0] == diff.artifact[1] and diff.artifact[0] and diff.differs:
        causes.append("the result is the same")
    if diff.key[0] == diff.key[1] and diff.differs:
        causes.append("the same inputs and code gave another result")
    return causes


def _table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return duration(value)
    if name.endswith("digest"):
        return str(value)[:12]
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return escape(text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}...")


def _difference(a: Any, b: Any) -> float | None:
    numbers = (int, float)
    return b - a if isinstance(a, numbers) and isinstance(b, numbers) else None
