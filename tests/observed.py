"""What a block's linears see of given hidden states, which stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from alphaquant.linalg.hessian import HessianAccumulator
from alphaquant.models.block import BlockModel
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight, gather


def run_and_collect(
    model: BlockModel,
    block: nn.Module,
    index: int,
    specs: Sequence[LinearSpec],
    hidden: Sequence[Tensor],
    routing_weight: RoutingWeight = "none",
) -> tuple[dict[str, HessianAccumulator], list[Tensor]]:
    """Hessians by input key, and the block's outputs."""
    states = HiddenStates(hidden)
    seen = gather(
        model, block, index, [specs], states, routing_weight, onward=True, magnitudes=True
    )
    return seen, list(states)
