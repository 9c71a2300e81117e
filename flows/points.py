"""The points of a sweep: every combination of the values that some config keys take."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alphaquant.config import RunConfig
from alphaquant.config.file import assign, parse_config
from alphaquant.config.recipes import RECIPE_NAMES, assignments_of, with_recipe
from alphaquant.config.section import Section
from alphaquant.errors import ConfigError, first_line
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.keys import digest_of
from flows.preflight import prepare
from flows.runner import Request

_RECIPE = "recipe"
_MOST = 200
_LONGEST = 110
_NO_VALUE = (yaml.YAMLError, ValueError, TypeError)
"""Torn YAML; a date that does not exist; a date, which no config key takes."""


class Axis(Section):
    """A config key and the values that it takes in turn."""

    key: str
    """Section and key, such as allocation.target_bits; or recipe, whose values are names of recipes."""
    values: tuple[str, ...]
    """Values as they would stand in YAML, such as 3.5 or int4."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    settings: dict[str, Any]
    """Value by config key."""
    request: Request

    @property
    def name(self) -> str:
        """For people: `target_bits=3.5, method=gptq`."""
        return ", ".join(f"{leaf(key)}={value_text(v)}" for key, v in self.settings.items())


def read_axis(text: str) -> Axis:
    """`allocation.target_bits=3,3.5,4` as an axis. Raises ConfigError."""
    key, equals, values = text.partition("=")
    if not equals or ("." not in key and key.strip() != _RECIPE):
        raise ConfigError(
            f"--over {text!r} is not section.key=value,value,..., such as allocation.target_bits=3,3.5,4, nor "
            f"{_RECIPE}={','.join(RECIPE_NAMES)}"
        )
    try:
        found = tuple(json.dumps(value) for value in yaml.safe_load(f"[{values}]"))
    except _NO_VALUE as error:
        raise ConfigError(
            f"--over {text!r}: {values!r} is not a list of values: {error}"
        ) from error
    if not found:
        raise ConfigError(f"--over {text!r} names no values")
    return Axis(key=key.strip(), values=found)


def points_of(
    config: RunConfig,
    over: list[Axis],
    store: ArtifactStore,
    out: Path,
    force: tuple[str, ...] = (),
) -> list[Point]:
    """Every combination, checked as a run of its own. Raises UserError before anything starts."""
    keys = [axis.key for axis in over]
    if not keys or len(set(keys)) < len(keys):
        raise ConfigError(
            f"a sweep needs config keys to go over, each once (found: {', '.join(keys) or 'none'}), such as "
            "--over allocation.target_bits=3,3.5,4"
        )
    if where := [key for key in keys if key.startswith("execution.")]:
        raise ConfigError(f"{where[0]} decides no result; sweep over what does")
    values = [_values(axis) for axis in over]
    combinations = [dict(zip(keys, chosen, strict=True)) for chosen in itertools.product(*values)]
    distinct = list({json.dumps(settings): settings for settings in combinations}.values())
    if len(distinct) > _MOST:
        raise ConfigError(f"{len(distinct)} points are too many for one sweep; at most {_MOST}")
    found = []
    for settings in distinct:
        try:
            point = _at(config, settings)
            request = prepare(point, store, out / folder_name(settings), force)
        except ConfigError as error:
            raise ConfigError(f"at {json.dumps(settings)}: {error}") from error
        found.append(Point(settings, request))
    _check_recipes_differ(found)
    return found


def _at(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """The config with an axis's value at each of its keys."""
    values = dict(settings)
    recipe = values.pop(_RECIPE, None)
    # what is there by default is for a recipe to say
    plain = config.model_dump(mode="json", exclude_unset=recipe is not None)
    for key, value in values.items():
        assign(plain, f"{key}={json.dumps(value)}")
    return parse_config(plain if recipe is None else with_recipe(plain, recipe))


def _check_recipes_differ(points: Sequence[Point]) -> None:
    """Raise ConfigError where two recipes are the same run, as the config itself says all that they would set."""
    seen: dict[str, str] = {}
    for point in points:
        name = point.settings.get(_RECIPE)
        same = seen.setdefault(point.request.config.model_dump_json(), name) if name else name
        if same != name:
            raise ConfigError(
                f"recipes {same} and {name} are the same here: the config sets what they would, by keys, a recipe of "
                f"its own or a form's defaults. Leave out {', '.join(assignments_of('best'))}."
            )


def _values(axis: Axis) -> list[Any]:
    """An axis's values as they stand in a config."""
    if not axis.values:
        raise ConfigError(
            f"{axis.key} is given no values to take in turn; name at least one, such as 3.5"
        )
    found = []
    for text in axis.values:
        try:
            value = yaml.safe_load(text)
            json.dumps(value)
        except _NO_VALUE as error:
            raise ConfigError(
                f"{text!r} is no value for {axis.key}: write it as it would stand in a YAML config, such as "
                f"3.5 or int4, text in quotes ({first_line(error)})"
            ) from error
        found.append(value)
    return found


def folder_name(settings: dict[str, Any]) -> str:
    """`target_bits-3.5_method-gptq`: a folder that every file system takes, and no other point has."""
    text = "_".join(f"{leaf(key)}-{value_text(value)}" for key, value in settings.items())
    name = "".join(c if c.isalnum() or c in "-_.+" else "-" for c in text)
    if name == text and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}-{digest_of(settings)[:8]}"


def leaf(key: str) -> str:
    """A key without its section."""
    return key.rpartition(".")[2]


def value_text(value: Any) -> str:
    """A value as a person would write it."""
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")
