"""What the programs of this folder's kind are told on the command line: models, texts, windows, places."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from alphaquant.demo import DEMO_LENGTH, demo_model_path
from alphaquant.errors import AlphaQuantError, ConfigError
from benchmarks.rivals.inputs import Model
from benchmarks.rivals.models import DESIGNS, SMALL, train


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Options of `models_of`, and of how cells are computed."""
    add = parser.add_argument
    add("--model", action="append", metavar="NAME=FOLDER[@LENGTH]", help="instead of our three")
    add(
        "--texts",
        action="append",
        default=[],
        metavar="[NAME=]TEXT,HELDOUT,...",
        help="calibration and held-out texts (builtin,builtin), of one model or of all",
    )
    add("--samples", type=int, default=64, help="calibration windows (64)")
    add("--length", type=int, default=512, help="tokens per window of --model without its own")
    add("--windows", type=int, default=64, help="held-out windows per text (64)")
    add("--threads", type=int, default=1, help="threads of every program that quantizes (1)")
    add("--device", default="cpu", help="where everybody computes: cpu (default) or cuda")
    add("--limit", type=float, default=60, metavar="MINUTES", help="for one cell (60)")
    add("--retry", action="store_true", help="try failed cells again")
    add("--cache", type=Path, default=Path(".rivals"), metavar="DIR", help="(.rivals)")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options; the cache by its whole path, because commands run in folders of their own."""
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    return options


def run(work: Callable[[argparse.Namespace], None], options: argparse.Namespace) -> None:
    """Do it; what the user got wrong ends the program with a message instead of a traceback."""
    try:
        work(options)
    except AlphaQuantError as error:
        sys.exit(f"{error}")


def models_of(options: argparse.Namespace) -> list[Model]:
    """Those of --model; else the demo's and the two that are trained on builtin text first."""
    models = _named(options)
    for text in options.texts:
        name, equals, texts = text.rpartition("=")
        if equals and name not in [model.name for model in models]:
            raise ConfigError(
                f"--texts {text!r} names no model; there are {[m.name for m in models]}"
            )
        models = [m.reading(texts) if not equals or m.name == name else m for m in models]
    return models


def _named(options: argparse.Namespace) -> list[Model]:
    if options.model:
        return [Model.parse(text, options.length) for text in options.model]
    models = [Model("demo", demo_model_path(), DEMO_LENGTH)]
    for name in SMALL:
        folder = options.cache / "models" / name
        if not (folder / "training.json").is_file():
            # in a process of its own: training asks torch for deterministic algorithms for good
            command = [sys.executable, "-m", train.__module__, "--only", name]
            subprocess.run([*command, "--out", str(folder.parent)], check=True)
        models.append(Model(name, folder.resolve(), DESIGNS[name].recipe.length))
    return models
