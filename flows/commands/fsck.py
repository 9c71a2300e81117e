"""`alphaquant fsck`: check every file of a store, put damage aside, and say what will run again."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console
from rich.filesize import decimal

from alphaquant.errors import StoreError
from alphaquant.upkeep.fsck import Finding, Report, fsck
from flows.commands.options import Verbs, add_json, add_store, add_verb
from flows.display import showing_progress
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import open_store

_EXAMPLE = """  alphaquant fsck
  alphaquant fsck --store /mnt/alphaquant --dry-run"""
_SHOWN_RUNS = 5


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "fsck", _EXAMPLE)
    add_store(parser)
    parser.add_argument(
        "--fast",
        action="store_true",
        help="hash only files that changed since they were hashed; in a bucket, compare sizes",
    )
    parser.add_argument("--dry-run", action="store_true", help="report damage and leave it there")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Check and report. Raises StoreError when something was damaged."""
    console = Console(stderr=True)
    send_to_stderr(console)
    store = open_store(options.store)
    with stdout_kept_clean(options.json), showing_progress(console):
        report = fsck(store, fast=options.fast, repair=not options.dry_run)
    if options.json:
        sys.stdout.write(json.dumps(report.as_json(), indent=1) + "\n")
    else:
        Console(soft_wrap=True).print(_text(report), markup=False, highlight=False)
    if report.findings:
        raise StoreError(_verdict(report, options.dry_run))


def _text(report: Report) -> str:
    lines = [
        f"{report.store}: looked at {report.artifacts} artifacts ({decimal(report.bytes)}), "
        f"{report.records} key records and {report.runs} runs."
    ]
    for finding in report.findings:
        lines += _about(finding)
    if report.left_over:
        remains = ", ".join(f"{count} {what}" for what, count in report.left_over.items())
        lines.append(f"Harmless remains: {remains}. `alphaquant gc --delete` removes them.")
    if not report.findings:
        lines.append("Everything is sound.")
    return "\n".join(lines)


def _about(finding: Finding) -> list[str]:
    lines = [f"{finding.what}: {'; '.join(finding.problems)}"]
    if finding.reruns:
        lines.append(f"    runs again when it is asked for: {', '.join(finding.reruns)}")
    if finding.runs:
        more = len(finding.runs) - _SHOWN_RUNS
        shown = ", ".join(finding.runs[:_SHOWN_RUNS]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"    made or used by: {shown}")
    if finding.mended:
        lines.append("    mended: this machine had a sound copy, which is in the bucket now")
    if finding.moved_to:
        lines.append(f"    now in {finding.moved_to}")
    return lines


def _verdict(report: Report, dry: bool) -> str:
    count = len(report.findings)
    what = "1 thing is" if count == 1 else f"{count} things are"
    if dry:
        return f"{what} damaged in {report.store}; without --dry-run, fsck puts damage aside."
    return (
        f"{what} damaged in {report.store}. What could be moved is in quarantine; the next run that needs it "
        "makes it again."
    )
