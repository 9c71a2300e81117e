"""The page of an experiment says what was measured, in words, tables and figures, and is whole."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from alphaquant.algorithms.arms import ARM_NAMES, ARMS
from alphaquant.config import AllocationConfig
from alphaquant.reporting.experiment import write_experiment
from alphaquant.reporting.experiment_tables import (
    ExperimentInputs,
    Measured,
    alpha_relations,
    results_table,
)
from tests.specs import alpha_frame, moe_specs, sensitivity_frame

SPECS = moe_specs(4, 12)


def _measured(label: str, level: float, bits: float, draws: int, key: int) -> Measured:
    text = np.random.default_rng(0).lognormal(0, 0.5, 20)
    random = np.random.default_rng(key)
    windows = pd.DataFrame(
        [
            (draw, window, level * text[window] * random.normal(1, 0.02), 3.0 + text[window])
            for draw in range(draws)
            for window in range(20)
        ],
        columns=["draw", "window", "kl", "loss"],
    )
    end = "high " if label.startswith(("kurtosis", "local_alpha")) else ""
    tried = {f"{end}{name}, gamma {g}": g * level for name in ("hill", "farms") for g in (1, 3)}
    plan = {
        "bits_per_weight": bits,
        "predicted_loss": level,
        "variant": f"{end}hill, gamma 1",
        "tried": tried,
    }
    return Measured(label, [plan] * draws, windows)


def experiment_inputs(**levels: float) -> ExperimentInputs:
    """Two seeds of every arm at KL 0.02, but for those named, and a front."""
    random = np.random.default_rng(1)
    hill = alpha_frame(SPECS).assign(
        role=[spec.role for spec in SPECS],
        block=pd.array([spec.block for spec in SPECS], dtype="Int64"),
        expert=pd.array([spec.expert for spec in SPECS], dtype="Int64"),
        rows=[spec.rows for spec in SPECS],
        cols=[spec.cols for spec in SPECS],
        kurtosis=random.uniform(3, 6, len(SPECS)),
    )
    losses = sensitivity_frame(SPECS, AllocationConfig(formats=("int3", "int4")))
    losses["output_change"] = losses["predicted_loss"] * 2
    oracle = pd.DataFrame({"linear": hill["linear"], "kl": hill["alpha"] ** 3})
    measured = [
        _measured(f"{name}, seed {seed}", levels.get(name, 0.02), 3.5, 2 if ARMS[name].drawn else 1, 9 * seed + place)
        for seed in range(2)
        for place, name in enumerate(ARM_NAMES)
    ]  # fmt: skip
    measured += [
        _measured(f"front {name}", level, bits, 1, 99)
        for name, level, bits in (
            ("int3", 0.05, 3.2),
            ("int4", 0.01, 4.2),
            ("fisher at 3", 0.04, 3.0),
            ("fisher at 4", 0.009, 4.0),
            ("low at 3", 0.07, 3.0),
            ("high at 3", 0.06, 3.0),
        )
    ]
    config = {"allocation": {"target_bits": 3.5, "granularity": None}}
    return ExperimentInputs(
        model="tiny",
        config=config,
        measured=measured,
        original_loss=np.full(20, 3.0),
        alphas={"hill": hill, "farms": hill},
        losses=[losses, losses],
        oracles=[oracle],
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("experiment")
    write_experiment(experiment_inputs(low=0.01, fisher_prior=0.012, fisher=0.015), out)
    return out


def test_the_page_answers_first(folder: Path) -> None:
    text = (folder / "experiment.md").read_text()
    first = text.index("Alpha helps on this model")
    assert first < text.index("## The arms")
    assert "protecting low alpha is the better" in text
    assert "3.50 bits per weight, a format per linear" in text
    assert {path.stem for path in (folder / "figures").iterdir()} == {"arms", "front", "variants"}
    assert set(re.findall(r"\]\(figures/(\w+)\.png\)", text)) == {"arms", "front", "variants"}


def test_every_arm_stands_in_the_table_with_what_it_does(folder: Path) -> None:
    text = (folder / "experiment.md").read_text()
    for arm in ARMS.values():
        assert f"| {arm.title} |" in text
    assert "low alpha, formats shuffled | −50" not in text
    assert re.search(r"\| low alpha \| low alpha, formats shuffled \| −(49|50|51)\.\d %", text)


def test_the_html_fetches_nothing(folder: Path) -> None:
    page = (folder / "experiment.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("<img ") == 3


def test_the_tables_hold_every_plan_and_pair(folder: Path) -> None:
    results = pd.read_parquet(folder / "results.parquet")
    assert len(results) == sum(4 if arm.drawn else 2 for arm in ARMS.values()) + 6
    assert results["front"].sum() == 6
    pairs = pd.read_parquet(folder / "comparisons.parquet").set_index(["arm", "against"])
    assert pairs.loc[("low", "low_shuffled"), "high"] < 0
    assert (pairs["low"] <= pairs["change"]).all()


def test_the_same_inputs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_experiment(experiment_inputs(low=0.01, fisher_prior=0.012, fisher=0.015), tmp_path)
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_rivals_stand_on_the_front_with_the_bits_they_are_given(tmp_path: Path) -> None:
    rows: list[tuple[Any, ...]] = [("heldout", "kl_mean", 0.008, "quantized")]
    rows += [
        ("heldout", "perplexity", 21.5, "quantized"),
        ("heldout", "perplexity", 20, "original"),
    ]
    table = pd.DataFrame(rows, columns=["task", "metric", "value", "model"])
    inputs = replace(experiment_inputs(), rivals={"out/theirs@4.125": table})
    write_experiment(inputs, tmp_path)
    text = (tmp_path / "experiment.md").read_text()
    assert "| theirs (4.125) | 4.125 | 0.00800 | 21.50 |" in text
    assert "Stars are other software" in text


def test_without_an_oracle_and_a_front_the_page_is_whole_all_the_same(tmp_path: Path) -> None:
    full = experiment_inputs()
    measured = [one for one in full.measured if not one.on_front and one.arm != "oracle"]
    write_experiment(replace(full, measured=measured, oracles=[]), tmp_path)
    text = (tmp_path / "experiment.md").read_text()
    assert "one at a time" not in text
    assert "No points were asked for." in text
    assert "Alpha does not help on this model" in text


def test_arms_that_store_less_are_named(tmp_path: Path) -> None:
    full = experiment_inputs()
    small = [
        replace(one, plans=[{**plan, "bits_per_weight": 3.3} for plan in one.plans])
        if one.arm == "uniform"
        else one
        for one in full.measured
    ]
    write_experiment(replace(full, measured=small), tmp_path)
    assert (
        "The arms do not store equally much: from 3.300 (`uniform`)"
        in (tmp_path / "experiment.md").read_text()
    )


def test_alpha_is_ranked_against_what_was_measured() -> None:
    inputs = experiment_inputs()
    relations = {(one.guide, one.against.split(",")[0]): one for one in alpha_relations(inputs)}
    assert len(relations) == 9
    alone = relations["hill", "measured loss of a linear alone"]
    assert alone.plain.value > 0.4
    assert alone.partial.value > 0.9  # size is held fixed
    assert abs(relations["hill", "predicted loss"].partial.value) < 0.4


def test_results_are_means_over_windows() -> None:
    inputs = experiment_inputs()
    first = results_table(inputs).iloc[0]
    windows = inputs.measured[0].windows
    assert first["kl"] == pytest.approx(windows["kl"].mean())
    assert first["perplexity"] == pytest.approx(np.exp(windows["loss"].mean()))
