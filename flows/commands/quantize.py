"""`alphaquant quantize`: one format for whole models, as checkpoint folders; no scores."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from alphaquant.algorithms.allocation_rules import default_scheme
from alphaquant.config import Method, RunConfig
from alphaquant.config.file import load_config
from alphaquant.errors import AlphaQuantError, ConfigError, described
from alphaquant.progress import reporter
from flows.commands.options import (
    Verbs,
    add_assignments,
    add_json,
    add_recipe,
    add_store,
    add_verb,
    quoted,
)
from flows.dag import quantize_only
from flows.display import showing_progress, summary_table
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import open_store, prepare
from flows.publish import publish_checkpoint
from flows.runner import Request, run

_EXAMPLE = """  alphaquant quantize --src llama --dst llama-int4 --method gptq --bits 4 --group-size 128
  alphaquant quantize --src llama --method rtn --bits 8 --no-symmetric
  alphaquant quantize --model llama --model olmoe --method awq --out quantized"""


class BatchIncomplete(AlphaQuantError):
    """Some models of several could not be quantized; the others are there."""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "quantize", _EXAMPLE)
    parser.add_argument(
        "--src",
        "--model",
        action="append",
        required=True,
        metavar="DIR",
        help="model folder or hub id; may be repeated",
    )
    parser.add_argument(
        "--dst",
        "--out",
        type=Path,
        metavar="DIR",
        help="checkpoint folder (default: BASE_METHOD_wBITS_gSIZE_headFORMAT here); of several models "
        "the folder that holds one such folder each",
    )
    parser.add_argument("--method", choices=get_args(Method), default="gptq")
    parser.add_argument("--bits", type=int, default=4, metavar="N", help="2, 3, 4, 6 or 8")
    parser.add_argument(
        "--group-size",
        type=int,
        default=128,
        metavar="N",
        help="weights per scale; -1: per channel",
    )
    parser.add_argument(
        "--symmetric",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="grid around zero, or with a zero point per group",
    )
    for option, meaning in (
        ("--desc-act", "round the columns with the largest inputs first"),
        ("--static-groups", "fix all scales before the first column"),
    ):
        parser.add_argument(
            option,
            action=argparse.BooleanOptionalAction,
            help=f"{meaning} (default: with recipes other than fast)",
        )
    parser.add_argument("--calib", metavar="FILE.txt", help="calibration text (default: builtin)")
    add_recipe(parser)
    add_assignments(parser)
    add_store(parser)
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Quantize and hand the folders over. Raises UserError before the first where one of several is asked for wrongly,
    BatchIncomplete at the end when one failed.
    """
    console = Console(stderr=True)
    send_to_stderr(console)
    several = len(options.src) > 1
    with stdout_kept_clean(options.json):
        configs = [config_of(options, source) for source in options.src]
        folders = checkpoint_folders(options, configs[0])
        store = open_store(options.store)
        requests = [
            prepare(config, store, folder, stages=quantize_only)
            for config, folder in zip(configs, folders, strict=True)
        ]
        with showing_progress(console):
            if several:
                endings = [_ending(*one) for one in zip(options.src, requests, strict=True)]
            else:
                endings = [run(requests[0], hand_over=publish_checkpoint)]
    failed = [ending for ending in endings if ending.get("error")]
    if options.json:
        status = "failed" if failed else "completed"
        answer = {"status": status, "models": endings} if several else endings[0]
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        for ending in endings:
            if not ending.get("error"):
                Console().print(summary_table(ending))
    if failed:
        reasons = "".join(f"\n  {ending['model']}: {ending['error']}" for ending in failed)
        raise BatchIncomplete(
            f"{len(failed)} of {len(endings)} models failed; the others are there, and the same command goes on "
            f"with the rest.{reasons}"
        )


def _ending(source: str, request: Request) -> dict[str, Any]:
    """The summary of one model of several, or what went wrong."""
    reporter().note(f"model {source}")
    try:
        return run(request, hand_over=publish_checkpoint)
    except Exception as error:  # noqa: BLE001
        reporter().note(f"model {source} failed: {described(error)}")
        return {"model": source, "status": "failed", "error": described(error)}


def config_of(options: argparse.Namespace, source: str) -> RunConfig:
    """The command line as a run config for one model."""
    ordered = options.recipe not in (None, "fast")
    assignments = [
        f"model.path={quoted(source)}",
        "allocation.policy=uniform",
        f"allocation.default.wq={_format(options)}",
        f"quantization.method={options.method}",
        f"quantization.group_size={options.group_size}",
        f"quantization.symmetric={str(options.symmetric).lower()}",
        *(
            f"quantization.{key}={str(ordered if given is None else given).lower()}"
            for key, given in (
                ("act_order", options.desc_act),
                ("static_groups", options.static_groups),
            )
        ),
    ]
    if options.calib:
        assignments.append(f"calibration.dataset={quoted(options.calib)}")
    return load_config(None, [*assignments, *options.assignments], options.recipe)


def _format(options: argparse.Namespace) -> str:
    if options.method != "nf4":
        return f"int{options.bits}"
    if options.bits != 4:
        raise ConfigError(
            f"--method nf4 rounds to nf4, which has 4 bits; found --bits {options.bits}. Leave --bits out, or "
            "take another method."
        )
    return "nf4"


def checkpoint_folders(options: argparse.Namespace, config: RunConfig) -> list[Path]:
    """Where each model goes; `config` is what all of them share. Raises ConfigError for two that would share a folder."""
    if len(options.src) == 1 and options.dst:
        return [options.dst]
    scheme = default_scheme(config.allocation, config.quantization)
    made = (
        config.quantization.method,
        scheme.number_format.bits,
        scheme.group_size or -1,
        config.allocation.lm_head or "bf16",
    )
    names = [checkpoint_name(base_name(source), *made) for source in options.src]
    if twice := _repeated(names):
        raise ConfigError(
            f"two models would both be called {twice}; quantize them one by one, each with its --dst"
        )
    return [(options.dst or Path()) / name for name in names]


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for at, name in enumerate(names) if name in names[:at]), None)


def base_name(source: str) -> str:
    """What a model is called: the last part of a hub id or of a folder's real path."""
    path = Path(source).expanduser()
    return (path.resolve() if path.is_dir() else path).name


def checkpoint_name(base: str, method: str, bits: int, group_size: int, head: str = "bf16") -> str:
    """`llama_GPTQ_w4_g128_headbf16`; `head` is the format of lm_head."""
    return f"{base}_{method.upper()}_w{bits}_g{group_size}_head{head}"
