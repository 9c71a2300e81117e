"""Alpha of every linear of a model, beside WeightWatcher's analysis of it, and how far their numbers agree."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from alphaquant.linalg.hill import hill_alpha
from alphaquant.linalg.spectrum import spectrum
from alphaquant.models.checkpoint import Checkpoint
from benchmarks.rivals.own import ROOT
from benchmarks.speed.runs import Run, checked

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class WeightWatcher:
    """A package in an environment of its own."""

    name: str = "weightwatcher"
    bare: tuple[str, ...] = ()
    requirements: Path = HERE / "requirements" / "weightwatcher.txt"


def analyze(model: Path, python: str, folder: Path, threads: int, **known: Any) -> Iterator[Run]:
    """One run of each; what they found is left in `folder`. `known` goes into every run."""
    own = ("AlphaQuant", "alpha_table", sys.executable, "with_alpha.py")
    other = ("WeightWatcher", "analyze", python, "with_weightwatcher.py")
    for program, setting, executable, driver in (own, other):
        out = folder / program
        out.mkdir(parents=True, exist_ok=True)
        load = os.getloadavg()[0]
        used = checked(
            [executable, str(HERE / "drivers" / driver), str(model.resolve()), str(out)],
            out / "log.txt",
            threads,
            limit=3600,
            **({"PYTHONPATH": str(ROOT)} if executable == sys.executable else {}),
        )
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        version = report.get("versions", {}).get("weightwatcher", "")
        yield Run(
            "alpha",
            model.name,
            f"{program} {version}".strip(),
            setting,
            report["seconds"],
            report["cpu_seconds"],
            used.wall,
            used.cpu,
            used.peak_bytes,
            known["bare"][executable],
            load,
            known["commit"],
        )


def agreement(model: Path, folder: Path) -> pd.DataFrame:
    """A row per linear: relative differences of our numbers from those WeightWatcher left in `folder`.

    Its alpha is a maximum-likelihood fit to all eigenvalues from `xmin` on, the smallest of them included, with the
    `xmin` that fits best: of n such eigenvalues alpha - 1 is n over a sum of logarithms, where Hill's estimate with
    k = n - 1 has n - 1 over the same sum. So the two are compared at the same tail, with that factor taken out.
    """
    checkpoint = Checkpoint(model)
    theirs = json.loads((folder / "WeightWatcher" / "table.json").read_text(encoding="utf-8"))
    rows = []
    for row in theirs:
        spikes = int(row["num_pl_spikes"])
        values = spectrum(checkpoint.weight(row["name"]), tail_size=spikes - 1)
        fit = hill_alpha(values, tail_size=spikes - 1)
        largest, total = float(values[-1]), float(values.sum())
        same = 1 + (row["alpha"] - 1) * (spikes - 1) / spikes
        found = {
            "spectral_norm": (largest, row["spectral_norm"]),
            "norm": (total, row["norm"]),
            "stable_rank": (total / largest, row["stable_rank"]),
            "xmin": (fit.xmin, row["xmin"]),
            "alpha_same_tail": (fit.alpha, same),
        }
        differences = {name: abs(own / other - 1) for name, (own, other) in found.items()}
        rows.append({"linear": row["name"], "their_alpha": row["alpha"], **differences})
    own = pd.read_parquet(folder / "AlphaQuant" / "alpha.parquet", columns=["linear", "alpha"])
    return pd.DataFrame(rows).merge(own, on="linear")
