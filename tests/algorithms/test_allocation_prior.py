from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_prior import apply_prior, learn_prior
from alphaquant.config import AllocationConfig, QuantizationConfig
from tests.specs import alpha_frame, moe_specs, sensitivity_frame

SPECS = [spec for spec in moe_specs(4, 8) if spec.role not in ("lm_head", "router")]
CONFIG = AllocationConfig(formats=("int3", "int4", "int8"), target_bits=4.5, alpha_prior=True)


def measured(slope: float, noise: float, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Alphas, and losses whose log weights follow them with a slope, other causes and noise."""
    random = np.random.default_rng(seed)
    alpha = alpha_frame(SPECS, seed)
    excess = np.log(alpha["alpha"] / alpha["alpha_null"]).to_numpy()
    truth = slope * excess + random.normal(0, 0.3, len(SPECS))
    seen = np.exp(truth + random.normal(0, noise, len(SPECS)))
    table = sensitivity_frame(SPECS, CONFIG, seed)
    weight = dict(zip(alpha["linear"], seen, strict=True))
    table["output_change"] = 4.0 ** -table["bits_per_weight"]
    table["predicted_loss"] = table["output_change"] * table["linear"].map(weight)
    table["stderr"] = noise * table["predicted_loss"]
    table["truth"] = table["linear"].map(dict(zip(alpha["linear"], truth, strict=True)))
    return alpha, table


def test_an_alpha_that_foretells_gets_weight_and_brings_the_weights_nearer_to_the_truth() -> None:
    alpha, table = measured(slope=3.0, noise=0.8)
    found = learn_prior(SPECS, alpha, table)
    assert found is not None
    prior, shift = found
    assert prior.slope == pytest.approx(3.0, abs=0.5)
    assert prior.with_alpha < 0.5 * prior.without
    assert 0.3 < prior.share < 0.95
    truth = table.drop_duplicates("linear").set_index("linear")
    before = np.log(truth["predicted_loss"] / truth["output_change"])
    errors = [((weights - truth["truth"]) ** 2).mean() for weights in (before, before + shift)]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("seed", range(5))
def test_an_alpha_that_foretells_nothing_gets_no_weight(seed: int) -> None:
    alpha, table = measured(slope=0.0, noise=0.3, seed=seed)
    found = learn_prior(SPECS, alpha, table)
    assert found is not None
    assert (found[0].precision, found[0].share) == (0, 0)
    assert (found[1] == 0).all()


def test_the_better_the_measurement_the_less_the_prior_counts() -> None:
    shares = []
    for noise in (0.02, 0.2, 1.0):
        found = learn_prior(SPECS, *measured(slope=3.0, noise=noise))
        assert found is not None
        shares.append(found[0].share)
    assert shares[0] < 0.02 < shares[1] < shares[2]


def test_without_noise_or_with_few_linears_the_losses_stay_as_they_are() -> None:
    alpha, table = measured(slope=3.0, noise=0.5)
    losses = table.pivot_table(index="linear", columns="format", values="predicted_loss")
    silent = table.drop(columns="stderr")
    assert apply_prior(SPECS, losses, alpha, silent) == (losses, None)
    assert apply_prior(SPECS[:5], losses, alpha, table) == (losses, None)
    assert learn_prior(SPECS, alpha, table.assign(stderr=np.nan)) is None


def test_every_format_of_a_linear_moves_by_the_same_factor() -> None:
    alpha, table = measured(slope=3.0, noise=0.8)
    losses = table.pivot_table(index="linear", columns="format", values="predicted_loss")
    moved, prior = apply_prior(SPECS, losses, alpha, table)
    assert prior is not None
    ratio = moved / losses
    assert np.allclose(ratio.max(axis=1), ratio.min(axis=1))
    assert ratio.iloc[:, 0].std() > 0.1


def test_the_prior_changes_plans_only_when_it_is_asked_for() -> None:
    alpha, table = measured(slope=3.0, noise=0.8)
    routers = moe_specs(4, 8)
    plans = [
        allocate(
            routers,
            CONFIG.model_copy(update={"alpha_prior": wanted, "granularity": "linear"}),
            QuantizationConfig(),
            given,
            table,
        )
        for wanted, given in ((False, None), (False, alpha), (True, alpha))
    ]
    assert plans[0].schemes == plans[1].schemes
    assert plans[1].schemes != plans[2].schemes
