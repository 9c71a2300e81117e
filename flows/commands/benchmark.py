"""`alphaquant benchmark`: bytes, memory and speed of a checkpoint beside its original, in each consumer that is there."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alphaquant.config import ModelConfig
from alphaquant.demo import demo_model_path
from alphaquant.errors import AlphaQuantError, ConfigError
from alphaquant.models.resolve import model_folder
from alphaquant.reporting.sections_serving import serving_row
from alphaquant.serving.consumers import CONSUMERS, pythons
from alphaquant.serving.measure import Contender, Load, measure_all, summaries
from alphaquant.store.whole import check_writable
from flows.commands.options import Verbs, add_json, add_verb
from flows.display import showing_progress
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import check_device
from flows.publish import SUMMARY

_EXAMPLE = """  alphaquant benchmark runs/demo-4.25
  alphaquant benchmark my-int4 --original Qwen/Qwen3-0.6B --consumers transformers,vllm --out measured
  alphaquant benchmark my-gptq --consumers gptqmodel --python gptqmodel=envs/gptqmodel/bin/python --json"""
_ORIGINAL, _CHECKPOINT = "original", "checkpoint"
_WIDE = 140
TABLE, FIGURE, ANSWER = "benchmark.parquet", "benchmark.png", "benchmark.json"


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "benchmark", _EXAMPLE)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="folder or hub id, or the folder of a run")
    add("--original", metavar="ID_OR_DIR", help="model it was made from (a run knows its own)")
    add(
        "--consumers",
        default=",".join(CONSUMERS),
        metavar="A,B",
        help=f"who computes (default: {','.join(CONSUMERS)})",
    )
    add(
        "--python",
        action="append",
        default=[],
        metavar="CONSUMER=EXECUTABLE",
        help="the Python of an environment that has the consumer; may be repeated",
    )
    for name, default, meaning in (
        ("prompt-tokens", 512, "tokens to read"),
        ("new-tokens", 64, "tokens to write"),
        ("batch-size", 1, "sequences at once"),
        ("repeats", 3, "processes per row; figures are medians"),
        ("limit", 3600, "seconds that one process may take"),
    ):
        add(f"--{name}", type=_count, default=default, metavar="N", help=f"{meaning} ({default})")
    add("--device", default="auto", help="auto, cpu or cuda")
    add(
        "--architecture",
        choices=("auto", "generic"),
        default="auto",
        help="generic: a type without a row, for AlphaQuant's own loader",
    )
    add("--trust-remote-code", action="store_true", help="let code of the model run")
    add("--out", type=Path, metavar="DIR", help="keep table and figure here (a run: its folder)")
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Measure, keep, show."""
    console = Console(stderr=True)
    send_to_stderr(console)
    names = _consumers(options.consumers)
    environments = pythons(options.python)
    contenders, own = find_contenders(options.checkpoint, options.original)
    out: Path | None = options.out or own
    if out is not None:
        check_writable(out, "--out")
    check_device(options.device)
    load = _load(options, contenders)
    with stdout_kept_clean(options.json):
        with showing_progress(console):
            rows, left_out = measure_all(contenders, names, load, options.repeats, environments)
        answer = _answer(contenders, load, list(summaries(rows)), left_out)
        if rows and out is not None:
            keep(out, rows, answer)
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        _show(answer, out if rows else None)
    if not rows:
        raise AlphaQuantError("nothing could be measured; the reasons stand above")


def find_contenders(checkpoint: str, original: str | None) -> tuple[list[Contender], Path | None]:
    """The original, if it is known, and the checkpoint; and the folder of the run that was named, if it was one.

    Raises ConfigError or ModelError for folders that are no models.
    """
    named = Path(checkpoint).expanduser()
    run = named if (named / SUMMARY).is_file() else None
    if run is not None:
        summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
        named = run / _CHECKPOINT
        if not named.is_dir():
            raise ConfigError(f"{run} has no {_CHECKPOINT}/; name the folder of a finished run")
        original = original or summary.get("original") or _demo(summary)
        if original is None:
            raise ConfigError(
                f"{run / SUMMARY} does not say what the run's model was; name it with --original"
            )
    packed = named if run else model_folder(ModelConfig(path=checkpoint))
    found = [Contender.of(_CHECKPOINT, packed)]
    if original is not None:
        found.insert(0, Contender.of(_ORIGINAL, model_folder(ModelConfig(path=original))))
    return found, run


def keep(out: Path, rows: Sequence[Mapping[str, Any]], answer: Mapping[str, Any]) -> None:
    """Write the table of all repeats, the figure and the answer; a run's report gets a section of them."""
    import pandas as pd

    from alphaquant.reporting.addition import add_to_report
    from alphaquant.reporting.figures_serving import serving
    from alphaquant.reporting.sections_serving import serving_section
    from alphaquant.reporting.style import drawing, png

    out.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(out / TABLE, index=False)
    with drawing():
        picture = png(serving(answer["rows"]))
    (out / FIGURE).write_bytes(picture)
    if (out / "report.html").is_file() and (out / "report.md").is_file():
        add_to_report(out, serving_section(answer, picture))
    (out / ANSWER).write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


def _demo(summary: Mapping[str, Any]) -> str | None:
    return str(demo_model_path()) if summary.get("model") == "demo" else None


def _consumers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if wrong := [name for name in names if name not in CONSUMERS]:
        raise ConfigError(f"--consumers {wrong[0]!r} is not known; allowed: {', '.join(CONSUMERS)}")
    if not names:
        raise ConfigError(f"--consumers names nobody; allowed: {', '.join(CONSUMERS)}")
    return list(dict.fromkeys(names))


def _load(options: argparse.Namespace, contenders: Sequence[Contender]) -> Load:
    """What is asked, the prompt shortened to what the model was made for."""
    room = min((c.context for c in contenders if c.context), default=sys.maxsize)
    prompt = min(options.prompt_tokens, room - options.new_tokens - 1)
    if prompt < 1:
        raise ConfigError(
            f"the model was made for {room} positions, which leave no room for a prompt before "
            f"{options.new_tokens} new tokens; lower --new-tokens"
        )
    return Load(
        prompt,
        options.new_tokens,
        options.batch_size,
        options.device,
        options.trust_remote_code,
        options.architecture,
        options.limit,
    )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _answer(
    contenders: Sequence[Contender],
    load: Load,
    entries: list[dict[str, Any]],
    left_out: list[dict[str, str]],
) -> dict[str, Any]:
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "models": {c.label: str(c.folder) for c in contenders},
        "prompt_tokens": load.prompt_tokens,
        "new_tokens": load.new_tokens,
        "batch_size": load.batch_size,
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "rows": entries,
        "not_measured": left_out,
    }


def _show(answer: Mapping[str, Any], out: Path | None) -> None:
    console = Console()
    if not console.is_terminal:  # nobody's screen is too narrow
        console.width = max(console.width, _WIDE)
    if answer["rows"]:
        console.print(_table(answer["rows"]))
        console.print(
            f"{answer['batch_size']} x {answer['prompt_tokens']} tokens read, {answer['new_tokens']} written; "
            f"medians (lowest to highest); {answer['cores']} cores, load {answer['load_average']}.",
            soft_wrap=True,
        )
    for pair in answer["not_measured"]:
        text = f"{pair['model']} with {pair['consumer']}: {pair['reason']}"
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    if out is not None:
        console.print(f"table and figure: {out}", soft_wrap=True, markup=False)


def _table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """A row per model and consumer; the last column says what speed and memory are those of."""
    table = Table()
    for name in ("model", "with", "on disk", "load s", "memory", "read/s", "written/s"):
        words = name in ("model", "with")
        table.add_column(name, justify="left" if words else "right", no_wrap=words)
    table.add_column("computed with", overflow="fold")
    for entry in entries:
        table.add_row(*serving_row(entry))
    return table
