"""`alphaquant sweep`: one run per combination of config values, set side by side, or a whole experiment."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from alphaquant.algorithms.arms import ARMS
from alphaquant.errors import ConfigError
from alphaquant.store.artifacts import ArtifactStore
from flows.commands.options import Verbs, add_config, add_verb, config_of, forced
from flows.commands.run import on_prefect
from flows.experiment_run import prepare_experiment
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.points import points_of, read_axis
from flows.preflight import check_places, open_store
from flows.sweep_result import open_sweep

_EXAMPLE = """  alphaquant sweep --over allocation.target_bits=3,3.5,4,4.5
  alphaquant sweep config.yaml --over quantization.method=gptq,rtn --over allocation.target_bits=3,4 \\
      --set execution.where=pool
  alphaquant sweep --over recipe=fast,balanced,best --over allocation.target_bits=3,4
  alphaquant sweep --experiment alpha --set allocation.target_bits=3.5"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "sweep", _EXAMPLE)
    add_config(parser)
    parser.add_argument(
        "--experiment",
        choices=["alpha"],
        help="spend the same bits in many ways, with and without alpha, and say whether it helps "
        "(config section experiment)",
    )
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE,VALUE,...",
        help="a config key, or recipe, and the values it takes in turn; may be repeated",
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Do the sweep and show its table."""
    console = Console(stderr=True)
    handler = send_to_stderr(console)
    store: ArtifactStore = open_store(options.store)
    if bool(options.experiment) == bool(options.over):
        raise ConfigError(
            "a sweep goes over config keys (--over allocation.target_bits=3,3.5,4) or does an experiment "
            "(--experiment alpha): name one of the two"
        )
    if options.experiment:
        _experiment(options, store, console, handler)
        return
    with stdout_kept_clean(options.json):
        config = config_of(options)
        over = [read_axis(text) for text in options.over]
        check_places(store, options.out)
        folder = open_sweep(str(options.out) if options.out else None, config, store)
        points = points_of(config, over, store, folder, forced(options, config))

        def work() -> dict[str, Any]:
            from flows.sweep import sweep_checked

            return sweep_checked(points, over, config, folder)

        summary = on_prefect(work, config, store, console, handler)
    if options.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        Console().print(_table(summary))
        Console().print(f"table: {summary['table']}", soft_wrap=True, markup=False)
        Console().print(f"picture: {summary['figure']}", soft_wrap=True, markup=False)


def _experiment(
    options: argparse.Namespace,
    store: ArtifactStore,
    console: Console,
    handler: logging.Handler,
) -> None:
    """Do the experiment and show its arms."""
    with stdout_kept_clean(options.json):
        config = config_of(options)
        request, rivals = prepare_experiment(config, store, options.out, forced(options, config))

        def work() -> dict[str, Any]:
            from flows.experiment import run_prepared_experiment

            return run_prepared_experiment(request, rivals)

        summary = on_prefect(work, config, store, console, handler)
    if options.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
        return
    table = Table(title=escape(summary["model"]), title_justify="left")
    for name in ("arm", "bits", "KL", "perplexity"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for row in summary["arms"]:
        table.add_row(
            ARMS[row["arm"]].title,
            f"{row['bits_per_weight']:.3f}",
            f"{row['kl']:#.3g}",
            f"{row['perplexity']:#.4g}",
        )
    Console().print(table)
    Console().print(f"does alpha help: {'yes' if summary['verdict']['helps'] else 'no'}")
    Console().print(f"page: {summary['report']}", soft_wrap=True, markup=False)


def _table(summary: dict[str, Any]) -> Table:
    table = Table(title=escape(summary["model"]), title_justify="left")
    for name in ("point", "bits", "KL", "perplexity", "stages ran", "blocks ran"):
        left = name == "point"
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for row in summary["points"]:
        if row["error"]:
            table.add_row(escape(row["point"]), "failed")
            continue
        table.add_row(
            escape(row["point"]),
            f"{row['bits_per_weight']:.3f}",
            "" if row["kl"] is None else f"{row['kl']:#.3g}",
            "" if row["perplexity"] is None else f"{row['perplexity']:#.4g}",
            f"{row['stages_ran']} of {row['stages_ran'] + row['stages_cached']}",
            f"{row['blocks_ran']} of {row['blocks_ran'] + row['blocks_cached']}",
        )
    return table
