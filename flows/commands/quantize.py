"""`alphaquant quantize`: one integer format for the whole model, as a checkpoint folder; no scores."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from alphaquant.config import RunConfig
from alphaquant.config_file import load_config
from flows.commands.options import Verbs, add_assignments, add_json, add_store, add_verb, quoted
from flows.dag import quantize_only
from flows.display import showing_progress, summary_table
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import open_store, prepare
from flows.publish import publish_checkpoint
from flows.runner import run

_EXAMPLE = """  alphaquant quantize --src llama --dst llama-int4 --method gptq --bits 4 --group-size 128
  alphaquant quantize --src llama --method rtn --bits 8 --no-symmetric"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    text = "Quantize every linear to one integer format (lm_head and routers stay bf16)."
    parser = add_verb(verbs, "quantize", text, _EXAMPLE)
    parser.add_argument("--src", required=True, metavar="DIR", help="model folder or hub id")
    parser.add_argument(
        "--dst",
        type=Path,
        metavar="DIR",
        help="checkpoint folder (default: BASE_METHOD_wBITS_gSIZE_headbf16 here)",
    )
    parser.add_argument("--method", choices=("gptq", "rtn"), default="gptq")
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
    parser.add_argument(
        "--desc-act", action="store_true", help="round the columns with the largest inputs first"
    )
    parser.add_argument(
        "--static-groups", action="store_true", help="fix all scales before the first column"
    )
    parser.add_argument("--calib", metavar="FILE.txt", help="calibration text (default: builtin)")
    add_assignments(parser)
    add_store(parser)
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Quantize and hand the folder over."""
    console = Console(stderr=True)
    send_to_stderr(console)
    out = options.dst or default_folder(options)
    with stdout_kept_clean(options.json):
        store = open_store(options.store)
        request = prepare(config_of(options), store, out, stages=quantize_only)
        with showing_progress(console):
            summary = run(request, hand_over=publish_checkpoint)
    if options.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        Console().print(summary_table(summary))


def config_of(options: argparse.Namespace) -> RunConfig:
    """The command line as a run config."""
    assignments = [
        f"model.path={quoted(options.src)}",
        "allocation.policy=uniform",
        f"allocation.default.wq=int{options.bits}",
        f"quantization.method={options.method}",
        f"quantization.group_size={options.group_size}",
        f"quantization.symmetric={str(options.symmetric).lower()}",
        f"quantization.act_order={str(options.desc_act).lower()}",
        f"quantization.static_groups={str(options.static_groups).lower()}",
    ]
    if options.calib:
        assignments.append(f"calibration.dataset={quoted(options.calib)}")
    return load_config(None, [*assignments, *options.assignments])


def default_folder(options: argparse.Namespace) -> Path:
    """`llama_GPTQ_w4_g128_headbf16`, in the current folder; `.` is called by its real name."""
    source = Path(options.src).expanduser()
    base = (source.resolve() if source.is_dir() else source).name
    size = f"w{options.bits}_g{options.group_size}"
    return Path(f"{base}_{options.method.upper()}_{size}_headbf16")
