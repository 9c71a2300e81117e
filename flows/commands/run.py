"""`alphaquant run`: the whole pipeline, from a model to a scored checkpoint and a report."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from rich.console import Console

from alphaquant.config import RunConfig
from alphaquant.errors import ConfigError
from alphaquant.store.artifacts import ArtifactStore
from flows import prefect_settings
from flows.ahead import working_ahead
from flows.commands.options import Verbs, add_config, add_verb, config_of, forced
from flows.display import showing_progress, summary_table
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.orphans import end_orphans, mark_servers
from flows.preflight import open_store, prepare
from flows.runner import Request
from flows.runner import run as run_here

_EXAMPLE = """  alphaquant run
  alphaquant run --model allenai/OLMoE-1B-7B-0924 --set allocation.target_bits=3.5 --out olmoe-3.5
  alphaquant run config.yaml --force evaluate --json"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "run", _EXAMPLE)
    add_config(parser)
    parser.add_argument(
        "--no-prefect", action="store_true", help="run the same stages without a Prefect server"
    )
    parser.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="NAME",
        help="name the run, so that gc can be told to keep it; may be repeated",
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Do the run and show its summary."""
    console = Console(stderr=True)
    handler = send_to_stderr(console)
    store = open_store(options.store)
    with stdout_kept_clean(options.json):
        config = config_of(options)
        request = prepare(config, store, options.out, forced(options, config))
        request = replace(request, tags=tuple(options.tag))
        if options.no_prefect and request.config.execution.where == "pool":
            raise ConfigError(
                "--no-prefect cannot reach a work pool: leave it away, or set execution.where=here"
            )
        if options.no_prefect:
            with showing_progress(console):
                summary = run_here(request)
        else:
            work = partial(_run_flow, request)
            summary = on_prefect(work, request.config, store, console, handler)
    if options.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        Console().print(summary_table(summary))


def on_prefect(
    work: Callable[[], dict[str, Any]],
    config: RunConfig,
    store: ArtifactStore,
    console: Console,
    handler: logging.Handler,
) -> dict[str, Any]:
    """Do `work`, which calls a flow: on the server of PREFECT_API_URL, else on one that ends with us."""
    prefect_settings.prepare()
    end_orphans()
    mark_servers()
    with console.status("starting Prefect") if console.is_terminal else contextlib.nullcontext():
        import flows.pipeline  # noqa: F401

        prefect_settings.quiet_terminal([handler])
        if config.execution.where == "pool":
            from flows.dispatch import check_pool

            check_pool(config.execution.pool)
    with working_ahead(), showing_progress(console):
        return work()


def _run_flow(request: Request) -> dict[str, Any]:
    from flows.pipeline import run_prepared

    return run_prepared(request)
