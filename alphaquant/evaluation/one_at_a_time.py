"""One at a time: what each group of linears costs alone, measured on the whole model.

One forward pass per group makes this a yardstick for small models, not a method: `MOST_PARAMETERS` and
`MOST_GROUPS` say where it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from alphaquant.algorithms.allocation_groups import Group
from alphaquant.algorithms.quantized_block import block_weights, blocks_of
from alphaquant.config import QuantizationConfig
from alphaquant.evaluation.quantized import quantized_for_now
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import Ruler
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from alphaquant.progress import track

if TYPE_CHECKING:
    import pandas as pd

MOST_PARAMETERS = 100_000_000
MOST_GROUPS = 2000
TOKENS = 1024
"""Calibration tokens that each group is measured on; at least one window."""
_SMALLEST = 1e-9  # nats; what fp32 leaves of a divergence that is there


def too_large(parameters: int, groups: int) -> str | None:
    """Why the measurement is not made; None where it is."""
    if parameters > MOST_PARAMETERS:
        return f"the model has {parameters:,} parameters, the oracle is for at most {MOST_PARAMETERS:,}"
    if groups > MOST_GROUPS:
        return f"the plan has {groups:,} groups, the oracle is for at most {MOST_GROUPS:,}"
    return None


def one_at_a_time(
    checkpoint: Checkpoint,
    plan: QuantPlan,
    groups: Sequence[Group],
    sensitivity: pd.DataFrame,
    tokens: Tensor,  # [windows, length] calibration
    quantization: QuantizationConfig,
    room: Room,
) -> pd.DataFrame:
    """One row per linear: `kl` of its group alone in the plan's formats, nats per token, and `factor`.

    `factor` is that over the group's predicted loss; it carries the measurement over to other formats.
    """
    import pandas as pd

    some = tokens[: max(1, TOKENS // tokens.shape[1])]
    with quantized_for_now(checkpoint, plan, tokens, quantization, room) as folders:
        quantized: dict[str, Tensor] = {}
        for index, block in enumerate(blocks_of(checkpoint, folders)):
            quantized |= block_weights(checkpoint, index, block)
    ruler = Ruler(checkpoint, some, room)
    losses = sensitivity.set_index(["linear", "format"])["predicted_loss"].to_dict()
    rows = []
    for group in track(groups, "group alone", len(groups)):
        names = [spec.name for spec in group.specs]
        ruler.put({name: quantized[name] for name in names})
        kl = max(float(ruler.measure().kl.mean()), _SMALLEST)
        ruler.put({name: checkpoint.weight(name) for name in names})
        predicted = sum(losses[name, str(plan.schemes[name])] for name in names)
        rows += [(name, kl, kl / predicted if predicted > 0 else 1.0) for name in names]
    return pd.DataFrame(rows, columns=["linear", "kl", "factor"])
