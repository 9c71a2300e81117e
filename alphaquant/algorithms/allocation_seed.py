"""The seed's JSON plan, `{"default": {...}, "overrides": [{"pattern": ...}]}`, as an AllocationConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from alphaquant.config import AllocationConfig, DefaultScheme, Override
from alphaquant.errors import FormatError, PlanError, nearest

COMMENT = "comment"
Section = TypeVar("Section", bound=BaseModel)


def allocation_from_seed(data: object) -> AllocationConfig:
    """Policy manual with the plan's default and overrides; `comment` keys are dropped.

    Raises PlanError, or FormatError for an unknown format, that names the place, what was found there
    and what is allowed.
    """
    plan = _section(data, "the plan", {"default", "overrides"})
    overrides = plan.get("overrides", [])
    if not isinstance(overrides, list):
        raise PlanError(f"plan key 'overrides' holds {overrides!r}; it is a list of overrides")
    return AllocationConfig(
        policy="manual",
        default=_read(DefaultScheme, plan.get("default", {}), "default"),
        overrides=tuple(
            _read(Override, entry, f"overrides[{index}]") for index, entry in enumerate(overrides)
        ),
    )


def _read(kind: type[Section], data: object, where: str) -> Section:
    values = _section(data, where, set(kind.model_fields))
    try:
        return kind.model_validate(values)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([where, *map(str, first["loc"])])
        raise PlanError(
            f"plan key {key!r}: {first['msg'].removeprefix('Value error, ')} "
            f"(found {first['input']!r})"
        ) from error


def _section(data: object, where: str, allowed: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise PlanError(
            f"{where} holds {data!r}; it is a mapping with {', '.join(sorted(allowed))}"
        )
    values = {key: value for key, value in data.items() if key != COMMENT}
    for key in values:
        if key not in allowed:
            raise PlanError(
                f"unknown key {key!r} in {where}; nearest: {nearest(str(key), allowed)}; "
                f"allowed: {', '.join(sorted(allowed))}"
            )
    return values
