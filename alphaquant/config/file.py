"""Configs as people write them, YAML files and `section.key=value`, with messages that say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from alphaquant.config import RunConfig
from alphaquant.config.recipes import with_recipe
from alphaquant.errors import ConfigError, nearest


def load_config(
    path: Path | None = None, assignments: list[str] | None = None, recipe: str | None = None
) -> RunConfig:
    """Read a YAML file (or nothing), apply `section.key=value` assignments, check the whole.

    A `recipe`, else the one that the file names as `recipe: NAME`, fills in what neither says.

    Raises ConfigError that names the key, what was found and what is allowed.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        if not isinstance(data, dict):
            raise ConfigError(f"{path} holds {type(data).__name__}; a config is sections of keys")
    for assignment in assignments or []:
        assign(data, assignment)
    named = data.pop("recipe", None)
    chosen = recipe or named
    return parse_config(data if chosen is None else with_recipe(data, str(chosen)))


def parse_config(data: dict[str, Any]) -> RunConfig:
    """Check a plain mapping; the first problem becomes one readable message."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def assign(data: dict[str, Any], assignment: str) -> None:
    """Set one `section.key=value` in a plain mapping. Raises ConfigError for what is no assignment."""
    key, equals, text = assignment.partition("=")
    if not equals or "." not in key:
        raise ConfigError(
            f"--set {assignment!r} is not section.key=value, such as allocation.target_bits=4"
        )
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {assignment!r}: {text!r} is not a value: {error}") from error
    *parents, leaf = key.strip().split(".")
    section = data
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {assignment!r}: {parent} is a value, not a section")
    section[leaf] = value


def _explain(error: ValidationError) -> str:
    # an unknown key explains a missing one, not the other way round
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    where = [str(part) for part in first["loc"]]
    name = ".".join(where)
    if not where:  # sections that do not go together
        return str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(where[:-1]) + (["recipe"] if len(where) == 1 else [])
        return (
            f"unknown config key {name!r}; nearest: {nearest(where[-1], allowed)}; "
            f"allowed here: {', '.join(sorted(allowed))}"
        )
    return f"config key {name!r}: {first['msg'].removeprefix('Value error, ')} (found {first['input']!r})"


def _fields_at(path: list[str]) -> list[str]:
    section: Any = RunConfig
    for part in path:
        if part.isdigit():
            continue
        annotation = section.model_fields[part].annotation
        section = next(
            (
                t
                for t in (annotation, *getattr(annotation, "__args__", ()))
                if hasattr(t, "model_fields")
            ),
            section,
        )
    return list(section.model_fields)
