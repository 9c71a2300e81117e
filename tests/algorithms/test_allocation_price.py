from __future__ import annotations

import pytest

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_price import granularity_prices, predicted_loss
from alphaquant.config import AllocationConfig, QuantizationConfig
from tests.specs import alpha_frame, moe_specs, sensitivity_frame

SPECS = moe_specs(3, 6)
ROUNDING = QuantizationConfig()


def test_a_finer_granularity_never_predicts_more_loss() -> None:
    config = AllocationConfig(target_bits=4.0)
    losses = sensitivity_frame(SPECS, config)
    prices = granularity_prices(SPECS, config, ROUNDING, None, losses)
    assert [price.granularity for price in prices] == ["linear", "expert", "fused"]
    assert [price.chosen for price in prices] == [False, False, True]
    assert prices[0].predicted_loss < prices[1].predicted_loss < prices[2].predicted_loss
    assert all(3.8 < price.bits_per_weight <= 4.0 for price in prices)


@pytest.mark.parametrize("policy", ["budget", "alpha"])
def test_the_price_of_the_chosen_granularity_is_that_of_the_plan(policy: str) -> None:
    config = AllocationConfig(policy=policy, target_bits=4.0, granularity="expert")  # type: ignore[arg-type]
    alpha, losses = alpha_frame(SPECS), sensitivity_frame(SPECS, config)
    prices = granularity_prices(SPECS, config, ROUNDING, alpha, losses)
    plan = allocate(SPECS, config, ROUNDING, alpha, losses)
    [chosen] = [price for price in prices if price.chosen]
    assert chosen.predicted_loss == predicted_loss(plan, losses)
    assert chosen.bits_per_weight == plan.bits_per_weight


def test_what_was_not_measured_has_no_price() -> None:
    config = AllocationConfig(formats=("int4",), target_bits=16)
    losses = sensitivity_frame(SPECS, config)
    ratio = config.model_copy(update={"policy": "ratio"})
    assert granularity_prices(SPECS, ratio, ROUNDING, alpha_frame(SPECS), losses) == []
    assert granularity_prices(SPECS, config, ROUNDING, None, None) == []
    uniform = config.model_copy(update={"policy": "uniform"})
    assert granularity_prices(SPECS, uniform, ROUNDING, None, losses) == []
