"""What every group of settings shares: it is frozen, refuses unknown keys, and can be shown as a form.

Forms, the Prefect UI's above all, are drawn from a model's JSON schema. They show titles, descriptions and
lists of choices, but no ranges; a key that may be empty becomes a pair of tabs named after types. The schema
of a `Section` says the same in words and fields that people fill in. What is accepted stays as it is.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from alphaquant.formats.scheme import Scheme

_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


class Section(BaseModel):
    """A frozen group of settings; an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema that forms are drawn from."""
        schema = handler(core_schema)
        fields = handler.resolve_ref_schema(schema).get("properties", {})
        for position, (name, field) in enumerate(fields.items()):
            field["position"] = position  # databases may give the keys back in another order
            if field.get("title", "").lower().replace(" ", "_") in ("", name):  # named by nobody
                field["title"] = f"{name[0].upper()}{name[1:]}".replace("_", " ")
            for choice in (field, *field.get("anyOf", ())):
                if "const" in choice:
                    choice["enum"] = [choice.pop("const")]
            _let_be_empty(field)
            _say_range(field)
        return schema


def _parsed(name: str) -> str:
    Scheme.parse(name)
    return name


def _not_zero(size: int) -> int:
    if size == 0:
        raise ValueError("0 is not a group size; use a positive number, or -1 for per channel")
    return size


def bytes_of(size: str) -> int:
    """A size such as 4GB or 4GiB in bytes."""
    return TypeAdapter(ByteSize).validate_python(size)


def _size(value: Any) -> Any:
    """The text of a size; YAML may give a number."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str):
        try:
            positive = bytes_of(text) > 0
        except ValidationError:
            positive = False
        if not positive:
            raise ValueError(
                f"{text!r} is no size of memory; write a number above 0 with its unit, such as 4GB, 4GiB or 4096MB"
            )
    return text


Size: TypeAlias = Annotated[str, BeforeValidator(_size)]
"""Bytes with their unit."""
FormatName: TypeAlias = Annotated[str, AfterValidator(_parsed)]
"""A format, or one with group and zero point such as int4-g64-asym; refused with what is known."""
GroupSize: TypeAlias = Annotated[int, Field(ge=-1), AfterValidator(_not_zero)]
"""Weights that share one scale; -1 for one scale per output channel."""


def offer(names: tuple[str, ...]) -> WithJsonSchema:
    """Let a form offer `names` for a text, and any other text beside them."""
    return WithJsonSchema(
        {"anyOf": [{"title": "Choose", **_one_of(names)}, {"title": "Write", "type": "string"}]}
    )


def offer_list(names: tuple[str, ...]) -> WithJsonSchema:
    """Let a form offer `names` for a list of texts, and any other texts beside them."""
    lists = {"Choose": _one_of(names), "Write": {"type": "string"}}
    return WithJsonSchema(
        {
            "anyOf": [
                {"title": title, "type": "array", "items": items} for title, items in lists.items()
            ]
        }
    )


def _one_of(names: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _let_be_empty(field: dict[str, Any]) -> None:
    """A number or text that may be None is a field that may stay empty; choices get a tab for None.

    A field without a default accepts None when the Prefect server checks what a form has sent.
    """
    match field.get("anyOf"):
        case [{"type": "integer" | "number" | "string"} as option, {"type": "null"}] if (
            "enum" not in option
        ):
            del field["anyOf"], field["default"]
            field.update(option)
        case [option, {"type": "null"}]:
            field["anyOf"] = [{"type": "null", "title": "Empty"}, {"title": "Choose", **option}]
        case _:
            pass


def _say_range(field: dict[str, Any]) -> None:
    """Put a number's range behind its description; a negative bound has a meaning told there already."""
    bounds = [
        words.format(field[key])
        for key, words in _BOUNDS.items()
        if key in field and field[key] >= 0
    ]
    if bounds and "description" in field:
        text = " and ".join(bounds)
        field["description"] += f" {text[0].upper()}{text[1:]}."
