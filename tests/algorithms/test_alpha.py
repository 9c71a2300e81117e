from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import Tensor

from alphaquant.algorithms import alpha
from alphaquant.algorithms.alpha import alpha_table
from alphaquant.config import AlphaConfig
from alphaquant.errors import ConfigError, ModelError
from alphaquant.linalg.hill import hill_alpha
from alphaquant.models import device
from alphaquant.models.linear import LinearSpec, Role
from alphaquant.progress import reporting_to
from tests.notes import Notes


class FakeCheckpoint:
    """Weights in memory, and the threads that asked for them."""

    def __init__(self, weights: dict[str, Tensor], router: str = "router") -> None:
        self.weights = weights
        self.threads: set[int] = set()
        self.specs = [
            self._spec(name, "router" if name == router else "up") for name in self.weights
        ]

    def _spec(self, name: str, role: Role) -> LinearSpec:
        rows, cols = self.weights[name].shape
        expert = int(name[-1]) if name[-1].isdigit() else None
        return LinearSpec(name, role, 0, expert, rows, cols, name, name)

    def weight(self, linear: str) -> Tensor:
        self.threads.add(threading.get_ident())
        return self.weights[linear]


def gaussian(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def checkpoint() -> FakeCheckpoint:
    weights = {f"expert.{i}": gaussian(120, 160, i).to(torch.bfloat16) for i in range(4)}
    steep = torch.diag(torch.arange(1, 121).float() ** -0.7) @ gaussian(120, 200, 9)
    return FakeCheckpoint(weights | {"steep": steep, "router": gaussian(8, 160, 7)})


@pytest.mark.parametrize("estimator", ["hill", "farms"])
def test_the_table_has_a_row_per_linear_in_order_with_its_place(estimator: str) -> None:
    source = checkpoint()
    table = alpha_table(source, AlphaConfig(estimator=estimator), 2)  # type: ignore[arg-type]
    assert list(table["linear"]) == [spec.name for spec in source.specs]
    assert list(table["expert"][:4]) == [0, 1, 2, 3]
    assert table["expert"].isna().tolist()[4:] == [True, True]
    assert {"role", "block", "rows", "cols", "tail_size", "alpha_null", "z", "ks", "xmin"} <= set(
        table.columns
    )
    assert table["alpha"].between(1, 30).all()


def test_alphas_equal_a_float64_svd_to_a_ten_thousandth() -> None:
    source = checkpoint()
    table = alpha_table(source, AlphaConfig()).set_index("linear")
    for name, weight in source.weights.items():
        values = torch.linalg.svdvals(weight.double()).flip(0) ** 2
        assert table.loc[name, "alpha"] == pytest.approx(hill_alpha(values).alpha, rel=1e-4)


def test_gaussian_weights_lie_at_their_null_and_a_steep_spectrum_far_below() -> None:
    table = alpha_table(checkpoint(), AlphaConfig()).set_index("linear")
    assert table["z"][:4].abs().max() < 4
    assert table.loc["steep", "z"] < -4
    z = (table["alpha"] - table["alpha_null"]) / table["z"]
    assert (z > 0).all()


@pytest.mark.parametrize("estimator", ["hill", "farms"])
def test_the_number_of_workers_changes_nothing(estimator: str) -> None:
    config = AlphaConfig(estimator=estimator)  # type: ignore[arg-type]
    one, three = (alpha_table(checkpoint(), config, workers) for workers in (1, 3))
    pd.testing.assert_frame_equal(one, three, check_exact=True)


def test_weights_are_read_by_the_pool_and_torch_threads_are_restored() -> None:
    source, before = checkpoint(), torch.get_num_threads()
    alpha_table(source, AlphaConfig(), 3)
    assert threading.get_ident() not in source.threads
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("memory", [1 << 40, 1 << 22, 1 << 10])
def test_what_a_gpu_solves_together_or_leaves_to_the_cpu_is_the_same(
    monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    # no GPU here: its way is gone on the CPU, which is told to have so much memory
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=memory)
    )
    monkeypatch.setattr(alpha, "free_memory", lambda _: memory)
    source, config = checkpoint(), AlphaConfig()
    expected = alpha_table(source, config).set_index("linear")
    nulls = {}
    for spec in source.specs:
        null: Future[tuple[float, float]] = Future()
        null.set_result(alpha._null(shape := alpha._shape(spec, config), config, None))
        nulls[shape] = null
    rows = alpha._rows_on_gpu(source, config, None, nulls, torch.device("cpu"), None)
    types = {"block": "Int64", "expert": "Int64"}
    found = pd.DataFrame(rows).astype(types).set_index("linear").loc[expected.index]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6)


def test_routers_and_padded_tails_are_small() -> None:
    weights = {"router": gaussian(64, 200), "wide": gaussian(128, 200), "thin": gaussian(90, 200)}
    table = alpha_table(FakeCheckpoint(weights), AlphaConfig()).set_index("linear")
    assert table["small"].to_dict() == {"router": True, "wide": False, "thin": True}


@pytest.mark.parametrize("estimator", ["hill", "farms"])
def test_degenerate_weights_have_rows_without_alpha(estimator: str, tmp_path: Path) -> None:
    weights = {
        "zero": torch.zeros(16, 32),
        "row": gaussian(1, 32),
        "constant": torch.full((16, 32), 0.1),
        "rank one": torch.outer(torch.arange(1.0, 17), torch.ones(32)),
        "tiny": gaussian(2, 3),
    }
    table = alpha_table(FakeCheckpoint(weights), AlphaConfig(estimator=estimator))  # type: ignore[arg-type]
    rows = table.set_index("linear")
    without = rows.loc[["zero", "row", "constant", "rank one"]]
    assert without[["alpha", "z", "ks"]].isna().all().all()
    assert (without["tail_size"] == 0).all()
    assert math.isfinite(rows.loc["tiny", "alpha"])
    assert rows["log_variance"].isna().tolist() == [True, False, True, False, False]
    table.to_parquet(tmp_path / "alpha.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "alpha.parquet"), table)


def test_log_variance_is_the_natural_logarithm_of_the_variance() -> None:
    weight = gaussian(100, 200) * 0.02 + 0.01
    table = alpha_table(FakeCheckpoint({"w": weight}), AlphaConfig())
    expected = math.log(weight.double().var(correction=0).item())
    assert table["log_variance"][0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("estimator", ["hill", "farms"])
def test_a_fixed_tail_size_goes_for_alpha_and_its_null(estimator: str) -> None:
    config = AlphaConfig(estimator=estimator)  # type: ignore[arg-type]
    table = alpha_table(checkpoint(), config, tail_size=40).set_index("linear")
    assert (table["tail_size"].drop("router") == 40).all()
    assert table["z"][:4].abs().max() < 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_an_error_that_names_it(bad: float) -> None:
    source = checkpoint()
    source.weights["expert.2"] = source.weights["expert.2"].clone()
    source.weights["expert.2"][3, 5] = bad
    with pytest.raises(ModelError, match=r"expert\.2 holds NaN or infinite"):
        alpha_table(source, AlphaConfig(), 2)


def test_progress_counts_every_linear() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, int]] = []

        def update(self, what: str, done: int, total: int) -> None:
            self.seen.append((what, done, total))

        def note(self, message: str) -> None:
            raise AssertionError(message)

    recorder = Recorder()
    with reporting_to(recorder):
        alpha_table(checkpoint(), AlphaConfig(), 2)
    assert recorder.seen == [("alpha", done, 6) for done in range(7)]


def test_kurtosis_is_three_for_a_gaussian_and_knows_no_scale() -> None:
    flat = torch.rand(100, 100, generator=torch.Generator().manual_seed(0))
    weights = {"normal": gaussian(200, 200), "tiny": gaussian(200, 200) * 1e-12, "flat": flat}
    weights["constant"] = torch.ones(16, 16)
    found = alpha_table(FakeCheckpoint(weights), AlphaConfig(), 1).set_index("linear")["kurtosis"]
    assert found["normal"] == pytest.approx(3.0, abs=0.1)
    assert found["tiny"] == pytest.approx(found["normal"], rel=1e-5)
    assert found["flat"] == pytest.approx(1.8, abs=0.05)
    assert math.isnan(found["constant"])


def test_a_memory_limit_lets_fewer_workers_work_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "resident", lambda: 0)
    monkeypatch.setattr(device, "_LIBRARIES", 0)
    each = 24 * 120 * 200 + 8 * 120**2  # of the largest; one of the others is smaller
    other = 24 * 120 * 160 + 8 * 120**2
    free = alpha_table(checkpoint(), AlphaConfig(), 3)
    for limit, said in (
        ((each + 2 * other) * 16 // 15 + 16, None),
        ((each + other) * 16 // 15 + 16, "alpha: 2 instead of 3 workers"),
        (each * 16 // 15 + 16, "alpha: 1 instead of 3 workers"),
    ):
        source, notes = checkpoint(), Notes()
        with reporting_to(notes):
            table = alpha_table(source, AlphaConfig(), 3, memory_limit=limit)
        pd.testing.assert_frame_equal(table, free, check_exact=True)
        assert all(note.startswith(said or "") for note in notes.said)
        assert len(notes.said) == (said is not None)
    with pytest.raises(ConfigError, match=r"memory_limit is .* largest linear may take"):
        alpha_table(checkpoint(), AlphaConfig(), 3, memory_limit=each)
