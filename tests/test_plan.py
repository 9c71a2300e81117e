from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_seed import allocation_from_seed
from alphaquant.config import QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from tests.tiny import make_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(make_model(tmp_path_factory.mktemp("plan") / "m", "olmoe"))


@pytest.fixture(scope="module")
def plan(checkpoint: Checkpoint) -> QuantPlan:
    texts = ["int4-g16", "mxfp8", "bf16", "int3-perchannel", "int4-g32-asym", "nvfp4"]
    specs = [spec for spec in checkpoint.specs if spec.role != "lm_head"]
    schemes = {spec.name: Scheme.parse(texts[i % 6]) for i, spec in enumerate(specs)}
    return QuantPlan(specs, schemes, {specs[0].name: "int8"})


def test_survives_a_round_trip_through_parquet(
    plan: QuantPlan, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plan.save(tmp_path)
    loaded = QuantPlan.load(tmp_path, checkpoint.specs)
    assert dict(loaded.schemes) == dict(plan.schemes)
    assert loaded.activations == plan.activations
    assert loaded.bits_per_weight == plan.bits_per_weight


def test_table_adds_up_to_the_bits(plan: QuantPlan) -> None:
    table = plan.table()
    sizes = table["rows"] * table["cols"]
    mean = (table["bits_per_weight"] * sizes).sum() / sizes.sum()
    assert mean == pytest.approx(plan.bits_per_weight, rel=1e-12)
    expected = [
        "linear",
        "role",
        "block",
        "expert",
        "format",
        "group_size",
        "symmetric",
        "bits_per_weight",
    ]
    assert set(expected) <= set(table.columns)
    assert not table["linear"].duplicated().any()


def test_seed_form_means_the_same_plan(
    plan: QuantPlan, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    plan.save(tmp_path)
    data = json.loads((tmp_path / "plan.json").read_text())
    config = allocation_from_seed(data)
    rebuilt = allocate(checkpoint.specs, config, QuantizationConfig(), None, None)
    assert dict(rebuilt.schemes) == dict(plan.schemes)
    assert rebuilt.activations == plan.activations


def test_a_plan_that_misses_a_linear_is_an_error(plan: QuantPlan) -> None:
    schemes = dict(plan.schemes)
    name, _ = schemes.popitem()
    with pytest.raises(PlanError, match=name.replace(".", r"\.")):
        QuantPlan(plan.specs, schemes)


def test_parquet_keeps_integers_and_nulls(plan: QuantPlan, tmp_path: Path) -> None:
    plan.save(tmp_path)
    table = pd.read_parquet(tmp_path / "plan.parquet")
    attention = table[table["role"] == "q"].iloc[0]
    assert pd.isna(attention["expert"])
    assert attention["block"] == 0
