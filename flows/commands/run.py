"""`alphaquant run`: the whole pipeline, from a model to a scored checkpoint and a report."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from typing import Any

from rich.console import Console

from flows import prefect_settings
from flows.commands.options import Verbs, add_config, add_verb, config_of
from flows.display import showing_progress, summary_table
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.orphans import end_orphans
from flows.preflight import open_store, prepare
from flows.runner import Request
from flows.runner import run as run_here

_EXAMPLE = """  alphaquant run
  alphaquant run --model allenai/OLMoE-1B-7B-0924 --set allocation.target_bits=3.5 --out olmoe-3.5
  alphaquant run config.yaml --force evaluate --json"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "run", "Compress a model, score it and write a report.", _EXAMPLE)
    add_config(parser)
    parser.add_argument(
        "--no-prefect", action="store_true", help="run the same stages without a Prefect server"
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Do the run and show its summary."""
    console = Console(stderr=True)
    handler = send_to_stderr(console)
    store = open_store(options.store)
    with stdout_kept_clean() if options.json else contextlib.nullcontext():
        request = prepare(config_of(options), store, options.out, tuple(options.force))
        if options.no_prefect:
            with showing_progress(console):
                summary = run_here(request)
        else:
            summary = _run_on_prefect(request, console, handler)
    if options.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        Console().print(summary_table(summary))


def _run_on_prefect(request: Request, console: Console, handler: Any) -> dict[str, Any]:
    prefect_settings.prepare()
    end_orphans(request.store)
    with console.status("starting Prefect") if console.is_terminal else contextlib.nullcontext():
        from flows.pipeline import run_embedded

        prefect_settings.quiet_terminal([handler])
    with showing_progress(console):
        return run_embedded(request)
