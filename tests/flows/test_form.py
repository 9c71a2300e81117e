"""The run form: what the Prefect UI is told about every field, and what the server then accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from alphaquant.config import RunConfig
from flows.pipeline import quantize_model

SCHEMA = parameter_schema(quantize_model).model_dump_for_openapi()
DEFINITIONS: dict[str, dict[str, Any]] = SCHEMA["definitions"]
FIELDS = {
    f"{section.removesuffix('Config').lower()}.{name}": field
    for section, definition in DEFINITIONS.items()
    for name, field in definition["properties"].items()
}
_FILLED_IN = {"string", "integer", "number", "boolean"}


def _accept(**config: Any) -> None:
    validate({"config": config}, SCHEMA, raise_on_error=True)


def _leaves(field: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The inputs that a field is shown as."""
    if "$ref" in field:
        yield from _leaves(DEFINITIONS[field["$ref"].rpartition("/")[2]])
    elif "anyOf" in field:
        for option in field["anyOf"]:
            yield from _leaves(option)
    elif field.get("type") == "array":
        yield from _leaves(field["items"])
    elif field.get("type") == "object" and field.get("properties"):
        for part in field["properties"].values():
            yield from _leaves(part)
    else:
        yield field


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_has_a_name_for_people_and_a_description(name: str) -> None:
    field = FIELDS[name]
    described = field
    if "$ref" in field:
        described = DEFINITIONS[field["$ref"].rpartition("/")[2]] | field
    assert described["description"]
    assert "`" not in described["description"], "the form shows no markup"
    assert "_" not in field["title"]


def test_no_field_is_raw_json_and_tabs_have_names() -> None:
    for parameter in SCHEMA["properties"].values():
        for leaf in _leaves(parameter):
            assert leaf.get("type") in _FILLED_IN or leaf == {"type": "null", "title": "Empty"}
    for name, field in FIELDS.items():
        assert all("title" in option for option in field.get("anyOf", [])), name


def test_fields_stand_in_the_order_of_the_source_whatever_the_database_does() -> None:
    assert [FIELDS[f"run.{name}"]["position"] for name in RunConfig.model_fields] == list(
        range(len(RunConfig.model_fields))
    )


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("allocation.target_bits", "Above 0 and at most 16."),
        ("alpha.tail_fraction", "Above 0 and below 1."),
        ("evaluation.limit", "At least 1."),
        ("quantization.group_size", "-1 for one scale per output channel."),
    ],
)
def test_ranges_are_told_in_words(name: str, ending: str) -> None:
    assert FIELDS[name]["description"].endswith(ending)


@pytest.mark.parametrize("name", ["model.path", "evaluation.limit", "defaultscheme.group_size"])
def test_what_may_stay_empty_is_one_field_without_tabs(name: str) -> None:
    assert FIELDS[name]["type"] in ("string", "integer")
    assert "default" not in FIELDS[name]


@pytest.mark.parametrize("name", ["rotation.kind", "export.format", "router.method"])
def test_choices_are_selects_even_when_there_is_one(name: str) -> None:
    assert FIELDS[name]["enum"]


@pytest.mark.parametrize("name", ["allocation.formats", "comparison.uniform"])
def test_formats_are_chosen_or_written(name: str) -> None:
    choose, write = FIELDS[name]["anyOf"]
    assert "int4" in choose["items"]["enum"]
    assert write["items"] == {"type": "string"}


@pytest.mark.parametrize(
    "config",
    [
        {},
        RunConfig().model_dump(mode="json"),
        {"allocation": {"formats": ["int4-g64-asym"], "granularity": "fused"}},
        {"allocation": {"default": {"wq": "int8-perchannel", "aq": None}}},
        {"allocation": {"overrides": [{"pattern": "*", "wq": "int8", "group_size": None}]}},
        {"model": {"path": None}, "evaluation": {"limit": 3}},
    ],
)
def test_the_server_accepts_what_a_config_accepts(config: dict[str, Any]) -> None:
    _accept(**config)
    RunConfig.model_validate(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"allocation": {"target_bits": 17}}, "config.allocation.target_bits"),
        ({"allocation": {"granularity": "row"}}, "config.allocation.granularity"),
        ({"evaluation": {"limit": 0}}, "config.evaluation.limit"),
        ({"model": {"pth": "x"}}, "config.model"),
        ({"export": {"format": "gguf"}}, "config.export.format"),
    ],
)
def test_the_server_refuses_what_a_config_refuses(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=rf"'{said}'"):
        _accept(**config)
