"""What policies may look at: spectra and predicted losses of a model, measured by `alphaquant run` and kept."""

from __future__ import annotations

import argparse
import hashlib
import shutil
from pathlib import Path

import pandas as pd

from alphaquant.algorithms.arm_table import Knowledge
from alphaquant.config.file import load_config
from alphaquant.errors import ConfigError
from benchmarks.budgets.spending import RECIPES, RecipeName
from benchmarks.rivals import own
from benchmarks.rivals.formats import MIXED
from benchmarks.rivals.inputs import SEED, Model
from benchmarks.rivals.process import environment, last_words, measured

_TABLES = ("hill", "farms", "sensitivity")


def knowledge(
    model: Model,
    recipe: RecipeName,
    bits: float,
    options: argparse.Namespace,
    *,
    compute: bool = True,
) -> Knowledge | None:
    """The tables as plans of so many bits need them; None when they are neither kept nor to be computed.

    Raises ConfigError with the program's last words when it fails.
    """
    folder = _folder(model, recipe, options)
    if not (folder / f"{_TABLES[-1]}.parquet").is_file():
        if not compute:
            return None
        print(f"{model.name}, {recipe}: spectra and predicted losses", flush=True)
        _measure(model, recipe, folder, options)
    hill, farms, losses = (pd.read_parquet(folder / f"{name}.parquet") for name in _TABLES)
    settings = [f"{key}={value}" for key, value in _settings(model, recipe, options).items()]
    config = load_config(None, [*settings, f"allocation.target_bits={bits}"])
    return Knowledge(
        model.checkpoint.specs,
        config.allocation,
        config.quantization,
        hill,
        farms,
        losses,
        gammas=config.experiment.gammas,
    )


def _folder(model: Model, recipe: RecipeName, options: argparse.Namespace) -> Path:
    parts = [own.source_digest(), model.digest, str(_settings(model, recipe, options))]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    cache: Path = options.cache
    return cache / "knowledge" / f"{model.name}-{recipe}-{digest[:12]}"


def _settings(model: Model, recipe: RecipeName, options: argparse.Namespace) -> dict[str, object]:
    """Config keys of the measurement; plans are rounded otherwise, which it does not look at."""
    return RECIPES[recipe] | {
        "calibration.dataset": model.calibration,
        "calibration.samples": options.samples,
        "calibration.sequence_length": model.length,
        "calibration.seed": SEED,
        "allocation.policy": "budget",
        "quantization.group_size": MIXED.group,
        "quantization.method": "rtn",
        "quantization.correction": "none",
        "evaluation.perplexity": "false",
        "evaluation.tasks": "[]",
        "execution.device": options.device,
    }


def _measure(model: Model, recipe: RecipeName, folder: Path, options: argparse.Namespace) -> None:
    """Run the pipeline once per estimator on a store of their own, and keep the tables alone."""
    work = folder / "work"
    for estimator in ("hill", "farms"):
        place = work / estimator
        place.mkdir(parents=True, exist_ok=True)
        command = own.driven(
            place,
            ["run", "--no-prefect", "--model", str(model.path), "--out", str(place / "run")],
            work / "store",
            _settings(model, recipe, options) | {"alpha.estimator": estimator},
        )
        used = measured(
            command,
            place / own.LOG,
            environment=environment(options.threads, PYTHONPATH=str(own.ROOT)),
            limit=options.limit * 60,
        )
        if used.code:
            raise ConfigError(
                f"{model.name}, {recipe}: spectra and predicted losses failed: {last_words(place / own.LOG)}"
            )
        made = {stage["name"]: stage["artifact"] for stage in own.summary(place)["stages"]}
        shutil.copy(Path(made["alpha"]) / "alpha.parquet", folder / f"{estimator}.parquet")
        kept = Path(made["sensitivity"]) / "sensitivity.parquet"
    shutil.copy(kept, folder / f"{_TABLES[-1]}.parquet")
    shutil.rmtree(work)
