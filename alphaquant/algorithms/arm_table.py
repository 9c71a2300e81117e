"""What the arms of an experiment share: groups, menu, budget, and ways to spend bits on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from alphaquant.algorithms.allocation_budget import free_budget, spend
from alphaquant.algorithms.allocation_direction import alpha_rows, filled
from alphaquant.algorithms.allocation_groups import (
    Granularity,
    Group,
    group_costs,
    group_linears,
    menu,
)
from alphaquant.algorithms.allocation_losses import guided_losses, measured_losses
from alphaquant.algorithms.allocation_price import predicted_loss
from alphaquant.algorithms.allocation_rules import finish_plan, resolve_rules
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import LinearSpec, Role
from alphaquant.plan import QuantPlan

if TYPE_CHECKING:
    import pandas as pd

Guide: TypeAlias = Literal["hill / null", "hill", "farms", "kurtosis"]
_FIRST: dict[Role, int] = {"v": 0, "qkv": 0, "kv_b": 0, "down": 1}
"""Types that heuristics of the Q4_K_M kind raise first; llama.cpp counts kv_b among the values."""
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Knowledge:
    """What arms may look at; `sensitivity` and `oracle` belong to one calibration seed."""

    specs: Sequence[LinearSpec]
    allocation: AllocationConfig
    quantization: QuantizationConfig
    hill: pd.DataFrame
    farms: pd.DataFrame
    sensitivity: pd.DataFrame
    oracle: pd.DataFrame | None = None
    gammas: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class ArmPlan:
    """A plan of an arm and how it was chosen."""

    plan: QuantPlan
    variant: str = ""
    """Guide and strength, where there was a choice."""
    predicted: float | None = None
    """Predicted loss, nats per token."""
    tried: dict[str, float] = field(default_factory=dict)
    """Predicted loss of every variant that there was."""


def experiment_granularity(config: AllocationConfig) -> Granularity:
    """What shares a format in an experiment: nothing, unless the config says; alpha is a linear's."""
    return config.granularity or "linear"


class ArmTable:
    """The free linears' groups with the menu's costs, and ways to spend on them."""

    def __init__(self, known: Knowledge) -> None:
        self.known = known
        self.config = known.allocation.model_copy(
            update={
                "policy": "budget",
                "granularity": experiment_granularity(known.allocation),
                "skip_attention": bool(known.allocation.skip_attention),
                "alpha_prior": False,
            }
        )
        self.rules = resolve_rules(known.specs, self.config, known.quantization)
        self.free = self.rules.free
        self.names = [spec.name for spec in self.free]
        self.groups = group_linears(self.free, experiment_granularity(self.config))
        self.options = menu(self.config, known.quantization)
        self.costs = group_costs(self.groups, self.options)

    def told(self, plan: QuantPlan, variant: str = "") -> ArmPlan:
        """A plan with its predicted loss."""
        return ArmPlan(plan, variant, predicted_loss(plan, self.known.sensitivity))

    def in_one_format(self, scheme: Scheme) -> QuantPlan:
        """Every free linear alike, whatever the budget."""
        return finish_plan(self.rules, {spec.name: scheme for spec in self.free}, self.config)

    def spent(self, losses: pd.DataFrame) -> QuantPlan:
        """The plan of least summed loss within the budget; `losses` are linears by options."""
        chosen = spend(self.rules, self.groups, self.options, losses, self.config.target_bits)
        return finish_plan(self.rules, chosen, self.config)

    def guide(self, kind: Guide) -> pd.Series[float]:
        """A positive number per free linear; undefined ones are the median."""
        hill = alpha_rows(self.known.hill, self.names)
        if kind == "farms":
            found = alpha_rows(self.known.farms, self.names)["alpha"]
        elif kind == "kurtosis":
            found = hill["kurtosis"]
        else:
            found = hill["alpha"] / hill["alpha_null"] if kind == "hill / null" else hill["alpha"]
        return filled(found).clip(lower=1e-6)

    def guided(self, guide: pd.Series[float], gamma: float, *, alphaq: bool = False) -> QuantPlan:
        """The plan of the loss that guide and variance suggest; a negative gamma protects low values."""
        variance = alpha_rows(self.known.hill, self.names)["log_variance"]
        return self.spent(
            guided_losses(self.free, self.options, guide, variance, gamma, alphaq=alphaq)
        )

    def measured(self) -> pd.DataFrame:
        """Predicted loss, linears by options."""
        return measured_losses(self.free, self.options, self.known.sensitivity)

    def output_change(self) -> pd.DataFrame:
        """Squared change of each linear's output, linears by options."""
        table = self.known.sensitivity.assign(
            predicted_loss=self.known.sensitivity["output_change"]
        )
        return measured_losses(self.free, self.options, table)

    def shuffled(self, plan: QuantPlan, random: np.random.Generator) -> QuantPlan:
        """The same formats, dealt anew among groups of equal costs of one type and block.

        A group that is alone in its block is dealt among its type's groups of all blocks.
        """
        chosen: dict[str, Scheme] = {}
        for places in self._cells():
            formats = [plan.schemes[self.groups[place].specs[0].name] for place in places]
            order = random.permutation(len(places)).tolist()
            for place, source in zip(places, order, strict=True):
                chosen |= {spec.name: formats[source] for spec in self.groups[place].specs}
        return finish_plan(self.rules, chosen, self.config)

    def permuted(self, guide: pd.Series[float], random: np.random.Generator) -> pd.Series[float]:
        """Values exchanged among linears of one role and shape, over all blocks and experts."""
        values = guide.copy()
        kinds: dict[tuple[object, ...], list[str]] = {}
        for spec in self.free:
            kinds.setdefault((spec.role, spec.rows, spec.cols), []).append(spec.name)
        for names in kinds.values():
            values.loc[names] = random.permutation(guide.loc[names].to_numpy())
        return values

    def raised(self, order: Iterable[int]) -> QuantPlan:
        """The format below the budget, and the one above it for as many groups as fit, in the given order.

        `order` are places in `groups`.
        """
        budget = free_budget(self.rules, self.config.target_bits)
        options = np.argsort(self.costs.sum(axis=0), kind="stable").tolist()
        below = [o for o in options if self.costs[:, o].sum() <= budget]
        above = [o for o in options if self.costs[:, o].sum() > budget]
        if not below:
            raise PlanError(
                f"no format of the menu fits {self.config.target_bits:g} bits per weight for every linear; "
                "add a smaller one to allocation.formats"
            )
        low, high = below[-1], (above or below[-1:])[0]
        picks = np.full(len(self.groups), low)
        spare = budget - int(self.costs[:, low].sum())
        for place in order:
            step = int(self.costs[place, high] - self.costs[place, low])
            if 0 < step <= spare:
                picks[place] = high
                spare -= step
        chosen = {
            spec.name: self.options[pick]
            for group, pick in zip(self.groups, picks.tolist(), strict=True)
            for spec in group.specs
        }
        return finish_plan(self.rules, chosen, self.config)

    def evenly(self) -> list[int]:
        """Places in an order whose every beginning is spread over the whole model."""
        return sorted(range(len(self.groups)), key=lambda place: (place * _GOLDEN) % 1)

    def by_type(self) -> list[int]:
        """Places by type, then the first and last eighth of the blocks and every third, then the rest."""
        blocks = 1 + max((spec.block or 0 for spec in self.free), default=0)
        edge = max(1, blocks // 8)

        def key(place: int) -> tuple[int, int, float]:
            spec = self.groups[place].specs[0]
            block = spec.block or 0
            special = block < edge or block >= blocks - edge or (block - edge) % 3 == 2
            return _FIRST.get(spec.role, 2), int(not special), (place * _GOLDEN) % 1

        return sorted(range(len(self.groups)), key=key)

    def _cells(self) -> list[list[int]]:
        """Places of groups that may exchange formats."""
        cells: dict[tuple[object, ...], list[int]] = {}
        for place, group in enumerate(self.groups):
            key: tuple[object, ...] = (
                _type(group),
                tuple(self.costs[place].tolist()),
                group.specs[0].block,
            )
            cells.setdefault(key, []).append(place)
        merged: dict[tuple[object, ...], list[int]] = {}
        for cell, places in cells.items():
            merged.setdefault(cell if len(places) > 1 else cell[:-1], []).extend(places)
        return list(merged.values())


def _type(group: Group) -> tuple[str, ...]:
    return tuple(sorted({spec.role for spec in group.specs}))
