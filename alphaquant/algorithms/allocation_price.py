"""What sharing formats costs: the predicted loss of the same policy and bits at each granularity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_groups import Granularity
from alphaquant.algorithms.allocation_rules import granularity_of
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter, unreported

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Price:
    """One granularity under the budget of the plan."""

    granularity: Granularity
    bits_per_weight: float
    """Stored; coarse groups may leave some of the budget unspent."""
    predicted_loss: float
    """Sum over linears, nats per token."""
    chosen: bool
    """Whether the plan has this granularity."""

    def as_json(self) -> dict[str, Any]:
        """For `allocation.json`."""
        return asdict(self)


def granularity_prices(
    specs: Sequence[LinearSpec],
    config: AllocationConfig,
    quantization: QuantizationConfig,
    alpha: pd.DataFrame | None,
    sensitivity: pd.DataFrame | None,
) -> list[Price]:
    """The policy's plan at every granularity that the budget can meet, finest first.

    Empty for policies that do not choose (uniform, manual), and where losses of the formats they chose were
    not measured.
    """
    if sensitivity is None or config.policy in ("uniform", "manual"):
        return []
    found = []
    for granularity in get_args(Granularity):
        try:
            with unreported():
                plan = allocate(
                    specs,
                    config.model_copy(update={"granularity": granularity}),
                    quantization,
                    alpha,
                    sensitivity,
                )
        except PlanError:  # too coarse for this budget
            continue
        loss = predicted_loss(plan, sensitivity)
        if loss is None:
            return []
        chosen = granularity == granularity_of(config)
        found.append(Price(granularity, plan.decoder_bits, loss, chosen))
    if len({price.predicted_loss for price in found}) > 1:
        listed = ", ".join(f"{price.granularity} {price.predicted_loss:.4g}" for price in found)
        reporter().note(f"predicted loss by granularity at these bits: {listed} nats per token")
    return found


def predicted_loss(plan: QuantPlan, sensitivity: pd.DataFrame) -> float | None:
    """Sum over the decoder of the measured losses of a plan's formats; None when one was not measured."""
    losses = sensitivity.set_index(["linear", "format"])["predicted_loss"].to_dict()
    total = 0.0
    for spec in plan.specs:
        scheme = str(plan.schemes[spec.name])
        if scheme == "bf16" or spec.block is None:
            continue
        if (loss := losses.get((spec.name, scheme))) is None:
            return None
        total += float(loss)
    return total
