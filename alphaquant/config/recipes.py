"""Recipes: settings that belong together under one name, from the fastest to the best.

A recipe is what a config says before anybody says anything: every key that a file, an assignment or an option
names wins over it. Bits and formats are not its business. What each brings on which model, and what it costs, is in
README.md and benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from alphaquant.errors import ConfigError, nearest

RecipeName: TypeAlias = Literal["fast", "balanced", "best"]
RECIPE_NAMES: tuple[RecipeName, ...] = get_args(RecipeName)
Settings: TypeAlias = Mapping[str, Mapping[str, Any]]

_BALANCED: Settings = {
    "calibration": {"generated": 0.5},
    "quantization": {"correction": "stream"},
    "rotation": {"kind": "hadamard"},
}
_BEST: Settings = {
    **_BALANCED,
    "quantization": {**_BALANCED["quantization"], "tune": "block"},
}
RECIPES: dict[RecipeName, Settings] = {
    # GPTQ refined, routers and experts as they come
    "fast": {},
    # all that one pass can do: outliers turned away, earlier losses made up for, text of all that the model knows
    "balanced": _BALANCED,
    # blocks tuned behind it
    "best": _BEST,
}
"""Config sections and keys of each recipe."""


def settings_of(name: str) -> Settings:
    """A recipe's settings. Raises ConfigError for a name that is none."""
    if name not in RECIPE_NAMES:
        close = nearest(str(name), RECIPE_NAMES, 1)
        allowed = ", ".join(RECIPE_NAMES)
        raise ConfigError(f"recipe {name!r} is not known; nearest: {close}; allowed: {allowed}")
    return RECIPES[name]


def assignments_of(name: RecipeName) -> dict[str, str]:
    """The same as the values of `section.key`, as an assignment spells them."""
    return {
        f"{section}.{key}": str(value)
        for section, keys in RECIPES[name].items()
        for key, value in keys.items()
    }


def with_recipe(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A plain config with the recipe's settings where it says nothing itself."""
    filled = dict(data)
    for section, keys in settings_of(name).items():
        given = filled.get(section, {})
        if isinstance(given, Mapping):  # what is no section is told when the config is checked
            filled[section] = {**keys, **given}
    return filled
