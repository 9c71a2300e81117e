"""Allocation: a policy turns specs, alphas and predicted losses into a format for every linear.

budget   least predicted loss under a bit budget, from measured sensitivity, alpha as its prior if asked
alpha    the same under a loss guessed from alpha and the weights' variance, without calibration
ratio    shares of bf16, mxfp4 and mxfp8 along alpha
uniform, manual   one default scheme

Routers, attention and overridden linears are fixed first (`allocation_rules`), whatever the policy,
and count in the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from alphaquant.algorithms.allocation_budget import spend
from alphaquant.algorithms.allocation_groups import group_linears, menu
from alphaquant.algorithms.allocation_losses import alpha_losses, measured_losses
from alphaquant.algorithms.allocation_prior import apply_prior
from alphaquant.algorithms.allocation_ratio import ratio_schemes
from alphaquant.algorithms.allocation_rules import (
    Rules,
    default_scheme,
    finish_plan,
    granularity_of,
    resolve_rules,
)
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import LinearSpec
from alphaquant.plan import QuantPlan

if TYPE_CHECKING:
    import pandas as pd


def allocate(
    specs: Sequence[LinearSpec],
    config: AllocationConfig,
    quantization: QuantizationConfig,
    alpha: pd.DataFrame | None = None,
    sensitivity: pd.DataFrame | None = None,
) -> QuantPlan:
    """A scheme for every linear of the decoder blocks, and for lm_head where `config` or an override names one.

    `alpha` (alpha.parquet) is needed by ratio, alpha and alpha_prior, `sensitivity` (sensitivity.parquet)
    by budget and by protect=measured. Raises PlanError for a pattern that matches nothing, a budget
    below the smallest plan and tables that lack a linear.
    """
    rules = resolve_rules(specs, config, quantization)
    chosen = _choose(rules, config, quantization, alpha, sensitivity)
    return finish_plan(rules, chosen, config)


def _choose(
    rules: Rules,
    config: AllocationConfig,
    quantization: QuantizationConfig,
    alpha: pd.DataFrame | None,
    sensitivity: pd.DataFrame | None,
) -> dict[str, Scheme]:
    if config.policy in ("uniform", "manual"):
        scheme = default_scheme(config, quantization)
        return {spec.name: scheme for spec in rules.free}
    groups = group_linears(rules.free, granularity_of(config))
    if config.policy == "ratio":
        return ratio_schemes(groups, config, alpha, sensitivity)
    options = menu(config, quantization)
    if config.policy == "budget":
        losses = measured_losses(rules.free, options, sensitivity)
        if config.alpha_prior and sensitivity is not None:
            losses, _ = apply_prior(rules.free, losses, alpha, sensitivity)
    else:
        losses = alpha_losses(rules.free, options, config, quantization, alpha, sensitivity)
    return spend(rules, groups, options, losses, config.target_bits)
