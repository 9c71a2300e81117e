"""Quantization beside GPTQModel and llm-compressor, and tuning of blocks beside AutoRound; same checkpoint, same tokens."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alphaquant.config.recipes import assignments_of
from benchmarks.rivals.catalogue import CONTESTANTS, OWN, Contestant
from benchmarks.rivals.cells import Cell
from benchmarks.rivals.formats import FORMATS
from benchmarks.rivals.inputs import Model, calibration_file
from benchmarks.speed.runs import Run

_BY_KEY = {one.key: one for one in CONTESTANTS}
_ONE_PASS = Contestant(
    OWN,
    "one pass",
    "GPTQ alone in static activation order: scales of the largest weight, no refit, no sweeps",
    {
        "quantization.act_order": "true",
        "quantization.static_groups": "true",
        "quantization.scale_search": "none",
        "quantization.refit": "false",
        "quantization.sweeps": 0,
    },
)
_BALANCED = Contestant(
    OWN,
    "balanced",
    "the recipe: rotated and corrected, half of the windows written by the model, whose writing counts",
    assignments_of("balanced"),
)
_BLOCK = Contestant(
    OWN, "tuned blocks", "defaults and `quantization.tune=block`", {"quantization.tune": "block"}
)
PLAIN = (
    replace(_BY_KEY[f"{OWN}:default"], words="`alphaquant quantize` with its defaults"),
    _ONE_PASS,
    _BALANCED,
    _BY_KEY["gptqmodel:default"],
    _BY_KEY["llmcompressor:default"],
)
TUNED = (_BLOCK, _BY_KEY["autoround:default"])


def quantize(
    part: str,
    model: Model,
    contestant: Contestant,
    samples: int,
    cache: Path,
    pythons: Mapping[str, str],
    threads: int,
    **known: Any,
) -> Run:
    """One run; a failure is kept as such. `known` are the bare sizes by Python, and the commit."""
    tokens = calibration_file(model, samples, cache / "tokens")
    cell = Cell(model, contestant, FORMATS["int4"], tokens, threads)
    load = os.getloadavg()[0]
    outcome = cell.compute(cache, 3600, pythons)
    python = pythons.get(contestant.rival, sys.executable)
    package = {
        "gptqmodel": "gptqmodel",
        "llmcompressor": "llmcompressor",
        "autoround": "auto-round",
    }
    version = outcome.get("versions", {}).get(package.get(contestant.rival, ""), "")
    return Run(
        part,
        f"{model.name}, {samples} x {model.length} tokens",
        f"{contestant.title} {version}".strip(),
        contestant.setting,
        outcome.get("seconds", 0.0),
        outcome.get("cpu_seconds", 0.0),
        outcome["wall"],
        outcome["cpu"],
        outcome["peak_bytes"],
        known["bare"][python],
        load,
        known["commit"],
        outcome.get("why", ""),
    )


def rivals_of(contestants: Sequence[Contestant]) -> set[str]:
    """Names of the other programs among them."""
    return {one.rival for one in contestants} - {OWN}
