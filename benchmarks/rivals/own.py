"""AlphaQuant as a contestant: its own commands, as a user would call them."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.rivals.catalogue import Contestant
from benchmarks.rivals.formats import Format
from benchmarks.rivals.inputs import SEED, Model, files_digest, load_tokens
from flows.dag import STAGE_NAMES

ROOT = Path(__file__).parents[2]
_DRIVER = Path(__file__).parent / "drivers" / "with_alphaquant.py"
LOG, _REPORT = "log.txt", "report.json"
_WORK = STAGE_NAMES[: STAGE_NAMES.index("export")]
"""Stages that make the quantized weights; loading, exporting and scoring are left out, as for rivals."""
CHOOSING = ("budget", "alpha")
"""Policies that choose formats themselves, and are given the bits of the uniform plan."""


def command(
    contestant: Contestant,
    format_: Format,
    model: Model,
    folder: Path,
    samples: int,
    device: str = "cpu",
    seed: int = SEED,
) -> list[str]:
    """`alphaquant quantize`, or `alphaquant run` where that cannot do it, on a fresh store."""
    assignments = {
        "calibration.samples": samples,
        "calibration.sequence_length": model.length,
        "calibration.seed": seed,
        "calibration.dataset": model.calibration,
        "quantization.group_size": format_.group,
        "execution.device": device,
    }
    if not contestant.mixed:
        assignments |= {"allocation.policy": "uniform", "allocation.default.wq": format_.name}
    if contestant.policy in CHOOSING:
        assignments["allocation.target_bits"] = equal_bits(model, format_)
    if needs_run(contestant):
        assignments |= {"evaluation.perplexity": False, "evaluation.tasks": "[]"}
        head = ["run", "--no-prefect", "--model", str(model.path), "--out", str(folder / "run")]
    else:
        head = ["quantize", "--src", str(model.path), "--dst", str(folder / "saved")]
    return driven(folder, head, folder / "store", assignments | contestant.options)


def driven(
    folder: Path, head: list[str], store: Path, assignments: Mapping[str, object]
) -> list[str]:
    """A command of ours with config keys, which leaves its report in `folder`."""
    places = ["--store", str(store), "--json"]
    words = [part for key, value in assignments.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, str(_DRIVER), str(folder / _REPORT), *head, *places, *words]


def needs_run(contestant: Contestant) -> bool:
    """Whether it takes the whole pipeline, which measures spectra and predicted losses too."""
    trained = contestant.options.get("router.method", "none") != "none"
    return contestant.policy in CHOOSING or trained


def equal_bits(model: Model, format_: Format) -> float:
    """Bits per weight of the uniform plan as `allocation.target_bits` counts them, kept routers included."""
    decoder = [spec for spec in model.checkpoint.specs if spec.block is not None]
    stored = sum(
        spec.rows * spec.cols * (16 if spec.role == "router" else format_.bits_per_weight)
        for spec in decoder
    )
    bits = stored / sum(spec.rows * spec.cols for spec in decoder)
    return math.ceil(bits * 1e6) / 1e6


def harvest(folder: Path, tokens_file: Path) -> dict[str, Any]:
    """What a finished run took. Raises ValueError when its windows do not begin with those of the rivals.

    There are more where a run chooses among them.
    """
    stages = summary(folder)["stages"]
    for stage in stages:
        if stage["name"] == "calibration" and stage["artifact"]:
            used = load_tokens(Path(stage["artifact"]) / "tokens.safetensors")
            given = load_tokens(tokens_file)
            if not torch.equal(used[: len(given)], given):
                raise ValueError("AlphaQuant calibrated on other tokens than the rivals")
    if (folder / "run").is_dir():
        (folder / "run" / "checkpoint").rename(folder / "saved")
    shutil.rmtree(folder / "store")  # a comparison has many cells, and their values are saved
    worked = [stage for stage in stages if stage["name"] in _WORK]
    report: dict[str, Any] = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
    return report | {
        "seconds": sum(stage["seconds"] for stage in worked),
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
    }


def summary(folder: Path) -> dict[str, Any]:
    """What a command of ours said of itself, the JSON object that ends its log: notes come before it."""
    text = (folder / LOG).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text[text.index("\n{\n") if "\n{\n" in text else 0 :])
    return found


@cache
def source_digest() -> str:
    """SHA-256 of our own code: an edit makes AlphaQuant's cells, and no others, stale."""
    packages = ("alphaquant", "tasks", "flows")
    return files_digest(
        path for package in packages for path in sorted((ROOT / package).rglob("*.py"))
    )
