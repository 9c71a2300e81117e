"""`alphaquant gc`: remove artifacts that no kept run needs. Only tells what would go, until told to delete."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from alphaquant.upkeep.gc import gc
from alphaquant.upkeep.gc_report import Report
from alphaquant.upkeep.marking import Keep
from flows.commands.options import Verbs, add_json, add_store, add_verb
from flows.display import showing_progress
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import open_store

_EXAMPLE = """  alphaquant gc
  alphaquant gc --keep-runs 20 --keep-tag release --delete"""
_MOST = 100_000


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "gc", _EXAMPLE)
    add_store(parser)
    rules = parser.add_argument_group(
        "which runs to keep", "A run stays when any rule names it; without a rule, all runs stay."
    )
    rules.add_argument("--keep-runs", type=_count, metavar="N", help="the newest N")
    rules.add_argument("--keep-days", type=_amount, metavar="D", help="those of the last D days")
    rules.add_argument(
        "--keep-tag",
        action="append",
        default=[],
        metavar="TAG",
        help="those that were given this tag (run --tag); may be repeated",
    )
    parser.add_argument(
        "--grace",
        type=_amount,
        default=24.0,
        metavar="HOURS",
        help="keep all that was used in the last HOURS (default: 24; in a bucket 2 or more)",
    )
    parser.add_argument("--quarantine", action="store_true", help="remove what fsck put aside, too")
    parser.add_argument("--delete", action="store_true", help="do it")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Collect and report."""
    console = Console(stderr=True)
    send_to_stderr(console)
    store = open_store(options.store)
    keep = Keep(options.keep_runs, options.keep_days, tuple(options.keep_tag), options.grace)
    with stdout_kept_clean(options.json), showing_progress(console):
        report = gc(store, keep, delete=options.delete, quarantine=options.quarantine)
    if options.json:
        sys.stdout.write(json.dumps(report.as_json(), indent=1) + "\n")
        return
    out = Console()
    if report.kinds:
        out.print(_table(report))
    out.print(_text(report, options.quarantine), markup=False, highlight=False, soft_wrap=True)


def _table(report: Report) -> Table:
    goes = "removed" if report.deleted else "would go"
    table = Table(title=f"artifacts of {report.store}", title_justify="left", title_style="bold")
    for name in ("kind", goes, "freed", "stay", "bytes kept"):
        table.add_column(name, justify="left" if name == "kind" else "right", overflow="fold")
    for kind in report.kinds:
        table.add_row(
            kind.kind,
            str(kind.removed),
            decimal(kind.freed),
            str(kind.kept),
            decimal(kind.kept_bytes),
        )
    return table


def _text(report: Report, quarantine: bool) -> str:
    others = {
        "run manifests": len(report.runs_removed),
        "old key records": report.records_removed,
        **report.left_over,
        "things in quarantine": report.quarantined if quarantine else 0,
    }
    more = ", ".join(f"{what}: {count}" for what, count in others.items() if count)
    size = decimal(report.freed)
    if report.cache is None:
        size += " (files that products share by hard links are not counted)"
    lines = [f"Runs that stay: {len(report.runs_kept)}."]
    if not report.removed and not more:
        lines.append("There is nothing to remove; what was used within --grace stays in any case.")
    elif report.deleted:
        lines.append(
            f"Artifacts removed: {report.removed}, {size}{f'; also {more}' if more else ''}."
        )
    else:
        lines.append(
            f"Artifacts that would go: {report.removed}, {size}{f'; also {more}' if more else ''}. Nothing was "
            "removed: --delete does it."
        )
    if report.cache:
        goes = "were dropped" if report.deleted else "would be dropped"
        lines.append(
            f"This machine's cache of it, {report.cache.folder}: {report.cache.removed} artifacts {goes}, "
            f"{decimal(report.cache.freed)}; {report.cache.kept} stay, {decimal(report.cache.kept_bytes)}."
        )
    if report.quarantined and not quarantine:
        lines.append(f"{report.quarantined} things in quarantine stay; --quarantine removes them.")
    return "\n".join(lines)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or a whole number above")
    return int(text)


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {_MOST}")
    return number
