"""Losses: what each linear would cost in each format, measured or guessed from alpha.

Without calibration the loss is size · Var(W) · ρ^±gamma · e(format): e is the format's relative
squared error on Gaussian weights and ρ is alpha over its Gaussian null, relative to the median, so
that a matrix's shape has no say. AlphaQ (2606.04980, `alpha_rule=alphaq`) has Var(W) · ρ^-gamma · 4^-bits
with raw alpha, which counts every linear alike; the budget is in stored bits under both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from alphaquant.algorithms.allocation_direction import alpha_rows, filled, protect_sign
from alphaquant.algorithms.allocation_groups import BF16
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.models.linear import LinearSpec

if TYPE_CHECKING:
    import pandas as pd

GAUSSIAN_SAMPLES = 2**14


def measured_losses(
    specs: Sequence[LinearSpec], options: Sequence[Scheme], sensitivity: pd.DataFrame | None
) -> pd.DataFrame:
    """Predicted loss, linears by options, from the sensitivity table; bf16 costs nothing.

    Raises PlanError for a linear and format that the table does not hold.
    """
    if sensitivity is None:
        raise PlanError(
            "allocation.policy budget needs the sensitivity table; run the stage sensitivity first, "
            "or use policy alpha, which needs no calibration"
        )
    losses = sensitivity.pivot(index="linear", columns="format", values="predicted_loss")
    losses = losses.reindex(index=[spec.name for spec in specs], columns=[str(o) for o in options])
    if BF16 in options:
        losses[str(BF16)] = 0.0
    unknown = ~np.isfinite(losses.to_numpy())
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        held = ", ".join(sorted(sensitivity["format"].unique()))
        raise PlanError(
            f"the sensitivity table has no predicted loss for {losses.index[row]} at "
            f"{losses.columns[column]}; it holds {held}. Measure sensitivity again with these "
            "allocation.formats, quantization.group_size and quantization.symmetric"
        )
    return losses


def alpha_losses(
    specs: Sequence[LinearSpec],
    options: Sequence[Scheme],
    config: AllocationConfig,
    quantization: QuantizationConfig,
    alpha: pd.DataFrame | None,
    sensitivity: pd.DataFrame | None,
) -> pd.DataFrame:
    """Guessed loss, linears by options, up to a common factor.

    `sensitivity` is read only for the direction of protect=measured. An undefined alpha counts as
    the median, an undefined variance (a constant weight) as 0.
    """
    import pandas as pd

    names = [spec.name for spec in specs]
    table = alpha_rows(alpha, names)
    sizes = pd.Series([spec.size for spec in specs], index=names)
    alphaq = config.alpha_rule == "alphaq"
    excess = table["alpha"] if alphaq else table["alpha"] / table["alpha_null"]
    sign = protect_sign(config, excess, sizes, sensitivity)
    return guided_losses(
        specs,
        options,
        filled(excess),
        table["log_variance"],
        sign * config.gamma,
        search="none" if quantization.scale_search == "none" else "mse",
        alphaq=alphaq,
    )


def guided_losses(
    specs: Sequence[LinearSpec],
    options: Sequence[Scheme],
    guide: pd.Series[float],
    log_variance: pd.Series[float],
    gamma: float,
    *,
    search: Literal["none", "mse"] = "mse",
    alphaq: bool = False,
) -> pd.DataFrame:
    """Loss guessed from the weights alone, where a larger `guide` marks linears that need more bits.

    `guide` is positive and indexed by linear; a negative `gamma` turns its direction. An undefined
    variance (a constant weight) counts as 0.
    """
    import pandas as pd

    names = [spec.name for spec in specs]
    # In logarithms, relative to the largest: a large gamma leaves the range of floats.
    log_scale = log_variance + gamma * np.log(guide / guide.median())
    if not alphaq:
        log_scale += np.log([spec.size for spec in specs])
    scale = np.nan_to_num(np.exp((log_scale - log_scale.max()).loc[names].to_numpy()))
    errors = [
        [4.0**-o.number_format.bits for o in options]
        if alphaq
        else [gaussian_error(o, _period(o, spec.cols), search) for o in options]
        for spec in specs
    ]
    return pd.DataFrame(
        np.array(errors).reshape(len(specs), len(options)) * scale[:, None],
        index=names,
        columns=[str(option) for option in options],
    )


def _period(scheme: Scheme, cols: int) -> int:
    """The shortest row that is rounded as rows of `cols` are."""
    width = scheme.group_width(cols)
    return cols if cols % width else width


@lru_cache(maxsize=4096)
def gaussian_error(scheme: Scheme, cols: int, search: Literal["none", "mse"] = "mse") -> float:
    """Mean squared rounding error of unit Gaussian rows `[cols]`; bf16 weights lose nothing."""
    if scheme == BF16:
        return 0.0
    rows = -(-GAUSSIAN_SAMPLES // cols)
    sample = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0))
    rounded = quantize_weight(sample, scheme, search=search).dequantize()
    return float((sample - rounded).square().mean(dtype=torch.float64) / sample.square().mean())
