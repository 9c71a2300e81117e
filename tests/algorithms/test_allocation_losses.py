from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_losses import alpha_losses, gaussian_error
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.formats.scheme import Scheme
from tests.specs import alpha_frame, moe_specs, sensitivity_frame

SPECS = [spec for spec in moe_specs() if spec.role not in ("lm_head", "router")]
OPTIONS = [Scheme.parse(name) for name in ("int2", "int4", "mxfp8", "bf16")]


def losses(alpha: pd.DataFrame | None = None, **settings: Any) -> pd.DataFrame:
    config = AllocationConfig(policy="alpha", **settings)
    alpha = alpha_frame(SPECS) if alpha is None else alpha
    return alpha_losses(SPECS, OPTIONS, config, QuantizationConfig(), alpha, None)


def test_the_loss_is_size_times_variance_times_alpha_weight_times_format_error() -> None:
    table = alpha_frame(SPECS).set_index("linear")
    ratio = table["alpha"] / table["alpha_null"]
    expected = [
        [
            spec.size
            * math.exp(table["log_variance"][spec.name])
            * (ratio[spec.name] / ratio.median()) ** 2
            * gaussian_error(option, option.group_width(spec.cols))
            for option in OPTIONS
        ]
        for spec in SPECS
    ]
    found = losses(gamma=2.0).to_numpy()
    # A common factor is free: only proportions count.
    assert np.allclose(found / found.max(), np.array(expected) / np.max(expected))


def test_gamma_zero_ignores_alpha() -> None:
    pd.testing.assert_frame_equal(
        losses(gamma=0.0), losses(alpha_frame(SPECS).assign(alpha=3.0), gamma=2.0)
    )


def test_the_direction_flag_inverts_the_weights() -> None:
    neutral, high, low = (
        losses(gamma=gamma, protect=protect)["int2-g128"]
        for gamma, protect in ((0.0, "high_alpha"), (1.5, "high_alpha"), (1.5, "low_alpha"))
    )
    up, down = high / neutral, low / neutral
    assert np.allclose((up * down) / (up * down).iloc[0], 1.0)
    assert (up.rank() == (-down).rank()).all()
    alphas = alpha_frame(SPECS).set_index("linear")["alpha"]
    assert (up.rank() == alphas.rank()).all()


def test_the_direction_flag_moves_bits_to_the_other_end_of_alpha() -> None:
    specs = moe_specs(blocks=3, experts=8)
    alpha = alpha_frame(specs).assign(log_variance=-7.0)
    alphas = alpha.set_index("linear")["alpha"]
    correlations = []
    for protect in ("high_alpha", "low_alpha"):
        config = AllocationConfig(
            policy="alpha", protect=protect, gamma=4.0, granularity="linear"  # type: ignore[arg-type]
        )  # fmt: skip
        plan = allocate(specs, config, QuantizationConfig(), alpha)
        free = [spec for spec in plan.specs if spec.role != "router"]
        bits = pd.Series({spec.name: plan.bits_of(spec) for spec in free})
        correlations.append(alphas[bits.index].rank().corr(bits.rank()))
    assert correlations[0] > 0.7
    assert correlations[1] < -0.7


def test_only_alpha_over_its_null_counts() -> None:
    table = alpha_frame(SPECS)
    scaled = table.assign(alpha=table["alpha"] * 3, alpha_null=table["alpha_null"] * 3)
    pd.testing.assert_frame_equal(losses(table), losses(scaled))


def test_an_undefined_alpha_counts_as_the_median_and_a_constant_weight_as_free() -> None:
    table = alpha_frame(SPECS)
    middle = (table["alpha"] / table["alpha_null"])[1:].median() * table["alpha_null"][0]
    undefined, median = table.copy(), table.copy()
    undefined.loc[0, "alpha"] = math.nan
    median.loc[0, "alpha"] = middle
    pd.testing.assert_frame_equal(losses(undefined), losses(median))
    table.loc[0, "log_variance"] = math.nan
    assert (losses(table).iloc[0] == 0).all()


def test_no_alpha_at_all_leaves_variance_and_size() -> None:
    table = alpha_frame(SPECS)
    pd.testing.assert_frame_equal(losses(table.assign(alpha=math.nan)), losses(table, gamma=0.0))


def test_a_huge_gamma_stays_finite() -> None:
    assert np.isfinite(losses(gamma=5000.0).to_numpy()).all()


@pytest.mark.parametrize(("correlation", "twin"), [(1, "high_alpha"), (-1, "low_alpha")])
def test_measured_direction_follows_the_rank_correlation(correlation: int, twin: str) -> None:
    config = AllocationConfig()
    alpha = alpha_frame(SPECS)
    sensitivity = sensitivity_frame(SPECS, config)
    sizes = {spec.name: spec.size for spec in SPECS}
    per_weight = dict(zip(alpha["linear"], alpha["alpha"] ** (2.0 * correlation), strict=True))
    sensitivity["predicted_loss"] = [
        per_weight[row.linear] * sizes[row.linear] * 4.0**-row.bits_per_weight
        for row in sensitivity.itertuples()
    ]
    measured, fixed = (
        alpha_losses(
            SPECS,
            OPTIONS,
            AllocationConfig(policy="alpha", protect=protect),
            QuantizationConfig(),
            alpha,
            sensitivity,
        )
        for protect in ("measured", twin)
    )
    pd.testing.assert_frame_equal(measured, fixed)


def test_the_gaussian_error_of_int_formats_falls_about_fourfold_per_bit() -> None:
    errors = [gaussian_error(Scheme.parse(f"int{bits}"), 128, "none") for bits in (3, 4, 6, 8)]
    assert 3 < errors[0] / errors[1] < 6
    assert 14 < errors[1] / errors[2] < 20
    assert 14 < errors[2] / errors[3] < 20


def test_the_gaussian_error_is_the_known_one() -> None:
    assert gaussian_error(Scheme.parse("mxfp4"), 32, "none") == pytest.approx(0.0125, rel=0.05)
    assert gaussian_error(Scheme.parse("int4"), 128, "mse") < gaussian_error(
        Scheme.parse("int4"), 128, "none"
    )
    assert gaussian_error(Scheme.parse("bf16"), 128) == 0.0


def test_the_rule_of_alphaq_is_variance_times_raw_alpha_times_four_to_the_minus_bits() -> None:
    table = alpha_frame(SPECS).assign(alpha_null=[1.0 + i for i in range(len(SPECS))])
    by_name = table.set_index("linear")
    median = by_name["alpha"].median()
    expected = np.array(
        [
            [
                math.exp(by_name["log_variance"][spec.name])
                * (median / by_name["alpha"][spec.name]) ** 10
                * 4.0**-option.number_format.bits
                for option in OPTIONS
            ]
            for spec in SPECS
        ]
    )
    found = losses(table, alpha_rule="alphaq", protect="low_alpha", gamma=10.0).to_numpy()
    assert np.allclose(found / found.max(), expected / expected.max())
