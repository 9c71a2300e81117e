"""`alphaquant compare`: rounding methods on the same model and text, in one table."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.commands.options import Verbs, add_config, add_verb, config_of, forced
from flows.comparison import (
    METHODS,
    ComparisonIncomplete,
    compare_entries,
    entries_of,
    measured,
)
from flows.display import showing_progress
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import open_store
from flows.runner import run

_EXAMPLE = """  alphaquant compare
  alphaquant compare --methods gptq,awq,rtn --format int4 --format int3 --set quantization.group_size=32
  alphaquant compare --model Qwen/Qwen3-0.6B --set calibration.dataset=wikitext2 --out methods"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "compare", _EXAMPLE)
    add_config(parser)
    parser.add_argument(
        "--methods",
        default=",".join(METHODS),
        metavar="NAME,NAME,...",
        help=f"methods of rounding (all: {', '.join(METHODS)})",
    )
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="NAME",
        help="format of every linear, such as int4 or int3-g64; may be repeated (int4)",
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Compare and show the table. Raises ComparisonIncomplete when a method failed."""
    console = Console(stderr=True)
    send_to_stderr(console)
    store = open_store(options.store)
    with stdout_kept_clean(options.json):
        config = config_of(options)
        force = forced(options, config)
        formats = [name for text in options.format for name in text.split(",")] or ["int4"]
        entries, folder = entries_of(
            config, options.methods.split(","), formats, store, options.out, force
        )
        with showing_progress(console):
            summary = compare_entries(entries, folder, partial(run, hand_over=measured))
    if options.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        out = Console()
        out.print(_table(summary))
        for name in ("page", "figure"):
            out.print(f"{name}: {summary[name]}", soft_wrap=True, markup=False)
    if failed := [row for row in summary["methods"] if row["error"]]:
        raise ComparisonIncomplete(
            f"{len(failed)} of {len(entries)} failed, first {failed[0]['method']} at {failed[0]['format']}: "
            f"{failed[0]['error']}. The same command goes on with the rest."
        )


def _table(summary: dict[str, Any]) -> Table:
    original = summary["perplexity_original"]
    title = summary["model"] + (f" (perplexity {original:#.4g})" if original else "")
    table = Table(title=escape(title), title_justify="left")
    for name in ("method", "format", "bits", "KL", "perplexity", "same top token", "seconds"):
        left = name in ("method", "format")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    several = len({row["device"] for row in summary["methods"] if not row["error"]}) > 1
    for row in summary["methods"]:
        if row["error"]:
            table.add_row(row["method"], row["format"], "failed")
            continue
        seconds = row["seconds"]
        table.add_row(
            row["method"],
            row["format"],
            f"{row['bits_per_weight']:.3f}",
            f"{row['kl']:#.3g}",
            f"{row['perplexity']:#.4g}",
            f"{row['top1_agreement']:.1%}",
            ""
            if seconds is None
            else f"{seconds:.1f}" + (f" ({row['device']})" if several else ""),
        )
    return table
