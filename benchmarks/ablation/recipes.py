"""The ingredients, each a row: what turns it on, what turns it off. Recipes and cells follow from the rows.

The plain recipe has every ingredient off, the full one every ingredient on. An ingredient is measured alone
in the plain recipe and missing from the full one. Between them, the recipe of one pass has what GPTQ itself
needs. Changes are other settings of any recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from benchmarks.rivals.catalogue import OWN, Contestant

Settings: TypeAlias = Mapping[str, str]
Base: TypeAlias = Literal["plain", "one pass", "full"]
BASES: tuple[Base, ...] = get_args(Base)


@dataclass(frozen=True, slots=True)
class Ingredient:
    """Something that the full recipe has and the plain one has not."""

    name: str
    words: str
    on: Settings
    """Config keys and values of the full recipe."""
    off: Settings
    """The same keys in the plain recipe."""
    experts: bool = False
    """Whether it says nothing about models without experts."""
    around: bool = False
    """Whether it comes before or after GPTQ's pass, so that the recipe of one pass is without it."""


@dataclass(frozen=True, slots=True)
class Change:
    """Another setting of a recipe."""

    base: Base
    name: str
    words: str
    settings: Settings
    experts: bool = False


def _key(key: str, on: str, off: str) -> tuple[dict[str, str], dict[str, str]]:
    return {key: on}, {key: off}


INGREDIENTS = (
    Ingredient(
        "scale search",
        "scales of least squared error, weighted by input energy, instead of from the largest weight",
        *_key("quantization.scale_search", "hessian", "none"),
    ),
    Ingredient(
        "activation order",
        "columns with the largest inputs first, groups fixed beforehand",
        {"quantization.act_order": "true", "quantization.static_groups": "true"},
        {"quantization.act_order": "false", "quantization.static_groups": "false"},
    ),
    Ingredient(
        "refinement",
        "scales refitted to their codes, two sweeps over all codes",
        {"quantization.refit": "true", "quantization.sweeps": "2"},
        {"quantization.refit": "false", "quantization.sweeps": "0"},
    ),
    Ingredient(
        "correction",
        "linears make up for what quantized ones before them did to their inputs and to the stream",
        *_key("quantization.correction", "stream", "none"),
    ),
    Ingredient(
        "own text",
        "half of the calibration windows are written by the model",
        *_key("calibration.generated", "0.5", "0"),
    ),
    Ingredient(
        "routing weight",
        "an expert's inputs count by the weight that the router gave them",
        *_key("quantization.routing_weight", "p", "none"),
        experts=True,
    ),
    Ingredient(
        "expert shrinkage",
        "an expert's Hessian is pulled towards its block's",
        *_key("quantization.expert_shrinkage", "1", "0"),
        experts=True,
    ),
    Ingredient(
        "rotation",
        "the residual stream and the heads are turned by a Hadamard matrix, inside the weights",
        *_key("rotation.kind", "hadamard", "none"),
        around=True,
    ),
    Ingredient(
        "tuning",
        "codes and scales of a block move after GPTQ, 100 steps of 4 windows",
        *_key("quantization.tune", "block", "none"),
        around=True,
    ),
)
CHANGES = (
    Change("plain", "to nearest", "without GPTQ", {"quantization.method": "rtn"}),
    Change(
        "plain",
        "search by mse",
        "scales of least squared error, inputs not looked at",
        {"quantization.scale_search": "mse"},
    ),
    Change("plain", "damping .05", "instead of .01", {"quantization.damping": "0.05"}),
    Change("plain", "routers by kl", "trained at last", {"router.method": "kl"}, experts=True),
    Change("plain", "routers aligned", "in closed form", {"router.method": "align"}, experts=True),
    Change(
        "plain",
        "routers by block",
        "aligned, then trained in their blocks at a rate of .001",
        {"router.method": "align+block", "router.learning_rate": "0.001"},
        experts=True,
    ),
    Change(
        "plain",
        "balanced windows",
        "of four to choose from each",
        {"calibration.balance": "4"},
        experts=True,
    ),
    Change("one pass", "uncorrected", "no correction", {"quantization.correction": "none"}),
    Change("one pass", "damping .05", "instead of .01", {"quantization.damping": "0.05"}),
    Change("one pass", "damping .15", "instead of .01", {"quantization.damping": "0.15"}),
    Change(
        "one pass",
        "uncorrected, damping .05",
        "no correction, damping .05 instead of .01",
        {"quantization.correction": "none", "quantization.damping": "0.05"},
    ),
    Change("one pass", "prior of 3", "tokens, not 8", {"quantization.correction_prior": "3"}),
    Change("one pass", "prior of 24", "tokens, not 8", {"quantization.correction_prior": "24"}),
    Change("one pass", "a quarter", "of the windows own text", {"calibration.generated": "0.25"}),
    Change("one pass", "all own text", "no window of a text", {"calibration.generated": "1"}),
    Change("full", "to nearest", "without GPTQ, tuned", {"quantization.method": "rtn"}),
    Change(
        "full",
        "search by mse",
        "scales of least squared error, inputs not looked at",
        {"quantization.scale_search": "mse"},
    ),
    Change("full", "damping .05", "instead of .01", {"quantization.damping": "0.05"}),
    Change("full", "rotated by 32", "blocks of 32 channels", {"rotation.block": "32"}),
    Change("full", "heads as they are", "residual stream alone", {"rotation.heads": "false"}),
    Change("full", "next block", "judges a tuned one too", {"quantization.tune_ahead": "true"}),
    Change("full", "whole model", "scales and norms, at last", {"quantization.tune": "model"}),
    Change("full", "inputs by p²", "not p", {"quantization.routing_weight": "p2"}, experts=True),
    Change(
        "full",
        "fitted less",
        "neither activation order nor correction nor routing weights",
        {
            "quantization.act_order": "false",
            "quantization.static_groups": "false",
            "quantization.correction": "none",
            "quantization.routing_weight": "none",
        },
    ),
    Change("full", "25 steps", "of tuning, not 100", {"quantization.tune_steps": "25"}),
    Change("full", "400 steps", "of tuning, not 100", {"quantization.tune_steps": "400"}),
    Change("full", "steps of 8", "windows, not 4", {"quantization.tune_batch_size": "8"}),
    Change("full", "routers by kl", "trained at last", {"router.method": "kl"}, experts=True),
)


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the tables: a recipe, or what differs from it in one thing."""

    base: Base
    name: str
    """Such as `plain + rotation`."""
    words: str
    settings: Settings = field(default_factory=dict)
    """All config keys, the recipe's among them."""
    ingredient: str = ""
    """Of the row, for choosing; empty for recipes."""
    experts: bool = False
    changed: bool = False
    """Whether it is another setting rather than one ingredient more or less."""

    @property
    def contestant(self) -> Contestant:
        """As cells compute it."""
        name = self.name.replace("+", "with").replace("−", "without").replace(",", "")
        return Contestant(OWN, "-".join(name.split()), self.words, dict(self.settings))


def recipe(base: Base, ingredients: Sequence[Ingredient] = INGREDIENTS) -> dict[str, str]:
    """Config keys of a recipe."""
    found: dict[str, str] = {}
    for one in ingredients:
        on = base == "full" or (base == "one pass" and not one.around)
        found |= one.on if on else one.off
    return found


_TOLD: dict[Base, str] = {
    "plain": "GPTQ with none of the ingredients",
    "one pass": "GPTQ with all of the ingredients but rotation and tuning",
    "full": "GPTQ with all of the ingredients",
}


def rows(
    ingredients: Sequence[Ingredient] = INGREDIENTS, changes: Sequence[Change] = CHANGES
) -> list[Row]:
    """Recipes, ingredients alone, ingredients left out, changes; in the order of the tables."""
    found: list[Row] = []
    for base, told in _TOLD.items():
        settings = recipe(base, ingredients)
        found.append(Row(base, base, told, settings))
        for one in ingredients if base != "one pass" else ():
            sign, turned = ("−", one.off) if base == "full" else ("+", one.on)
            found.append(
                Row(
                    base,
                    f"{base} {sign} {one.name}",
                    one.words,
                    {**settings, **turned},
                    one.name,
                    one.experts,
                )
            )
        found += [
            Row(
                base,
                f"{base}, {one.name}",
                one.words,
                {**settings, **one.settings},
                one.name,
                one.experts,
                changed=True,
            )
            for one in changes
            if one.base == base
        ]
    return found
