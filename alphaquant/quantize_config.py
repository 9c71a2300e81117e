"""QuantizeConfig: how to quantize, in the terms of GPTQModel, as the config sections of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from alphaquant.config import RunConfig
from alphaquant.config.file import parse_config
from alphaquant.config.recipes import RecipeName, with_recipe
from alphaquant.errors import ConfigError, FormatError, nearest
from alphaquant.formats.scheme import Scheme

EXPERT_INDEX_PLACEHOLDER = "{expert_index}"
"""Stands for every expert's index in patterns of `dynamic`."""

_BITS = (2, 3, 4, 6, 8)
_ROW = ("bits", "group_size", "sym", "format")
"""Keys of a row of `dynamic`."""


@dataclass(frozen=True)
class QuantizeConfig:
    """One integer format for every linear, or a budget of bits, and rows of `dynamic` for those that differ.

    A wrong value raises ConfigError that names its key.
    """

    bits: int = 4
    """2, 3, 4, 6 or 8; with `target_bits` for rows of `dynamic` and `lm_head` only."""
    group_size: int = 128
    """Weights that share one scale; -1 for one scale per output channel."""
    desc_act: bool = True
    """Round the columns with the largest inputs first. Groups stay where they are, so a checkpoint carries no order
    (its own `desc_act` is false) and inference costs nothing."""
    sym: bool = True
    """Grids around zero; false adds a zero point per group."""
    damp_percent: float = 0.01
    """Share of the Hessian's mean diagonal that is added to it."""
    damp_auto_increment: float = 0.01
    """Any positive number: damping is raised, threefold each time, until the Hessian has a Cholesky factor."""
    dynamic: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`{"+:regex": {"bits": 8}, "-:regex": {}}` over the names of linears on disk, from their start; the first that
    matches counts, a minus keeps the linear. Keys: bits, group_size, sym, or format with any of AlphaQuant's, such
    as mxfp4. A pattern that matches nothing is an error."""
    pack_dtype: str = "int32"
    """int32, as every format that is written has it."""
    lm_head: bool = False
    """Quantize the output projection to `bits` too; a tied one becomes a matrix of its own."""
    target_bits: float | None = None
    """Stored bits per weight to spend where the predicted loss is largest: mixed precision, as runs have it."""
    formats: Sequence[str] = ()
    """With `target_bits`, what to choose from, such as ("int3", "int4", "mxfp8"); empty means what compressed-tensors stores."""
    rotation: Literal["none", "hadamard"] | None = None
    """Turn the model's basis by a Hadamard matrix, inside its weights; None: as the recipe does."""
    recipe: RecipeName = "fast"
    """fast, balanced or best: what `alphaquant run --recipe` sets; every key that is named here wins over it."""
    quantization: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the config section `quantization`, such as {"tune": "block"}."""

    def __post_init__(self) -> None:
        """Refuse what a run would refuse."""
        _check_bits("bits", self.bits)
        _require(
            self.damp_auto_increment > 0,
            "damp_auto_increment",
            self.damp_auto_increment,
            "a positive number",
        )
        _require(self.pack_dtype == "int32", "pack_dtype", self.pack_dtype, "int32")
        for pattern, row in self.dynamic.items():
            where = f"dynamic[{pattern!r}]"
            _require(isinstance(row, Mapping), where, row, "a mapping of keys")
            for key in row:
                if key not in _ROW:
                    raise ConfigError(
                        f"QuantizeConfig: unknown key {key!r} in {where}; nearest: {nearest(key, _ROW)}; "
                        f"allowed: {', '.join(_ROW)}"
                    )
            if "bits" in row:
                _check_bits(f"{where}.bits", row["bits"])
            if "bits" in row and "format" in row:
                _check_agreement(where, row["bits"], str(row["format"]))
            if pattern.startswith("-:"):
                _require(not row, where, dict(row), "{}: a pattern with a minus keeps its linears")
        _require(
            not self.formats or self.target_bits is not None,
            "formats",
            self.formats,
            "with target_bits only",
        )
        found = self.run_config().quantization.tune
        _require(
            found != "model",
            "quantization['tune']",
            found,
            "none, block; model is a stage of `alphaquant run`",
        )

    def run_config(self) -> RunConfig:
        """The same as the config of a run."""
        own = {
            "group_size": self.group_size,
            "symmetric": self.sym,
            "act_order": self.desc_act,
            "static_groups": True,
            "damping": self.damp_percent,
        }
        for key in self.quantization:
            _require(
                key not in own,
                f"quantization[{key!r}]",
                self.quantization[key],
                "left to its own key",
            )
        allocation: dict[str, Any] = {
            "policy": "manual",
            "default": {"wq": f"int{self.bits}"},
            # the last override that matches counts, the first row of `dynamic` does
            "overrides": [self._override(*item) for item in self.dynamic.items()][::-1],
        }
        if self.target_bits is not None:
            allocation |= {"policy": "budget", "target_bits": self.target_bits}
        if self.lm_head:
            allocation["lm_head"] = f"int{self.bits}"
        if self.formats:
            allocation["formats"] = list(self.formats)
        said: dict[str, Any] = {
            "quantization": own | dict(self.quantization),
            "allocation": allocation,
            "export": {"format": "compressed-tensors"},
        }
        if self.rotation is not None:
            said["rotation"] = {"kind": self.rotation}
        try:
            return parse_config(with_recipe(said, self.recipe))
        except ConfigError as error:
            raise ConfigError(f"QuantizeConfig: {_in_these_terms(str(error))}") from error

    def _override(self, pattern: str, row: Mapping[str, Any]) -> dict[str, Any]:
        expression = pattern.removeprefix("+:").removeprefix("-:")
        expression = expression.replace(EXPERT_INDEX_PLACEHOLDER, r"\d+")
        override: dict[str, Any] = {"pattern": f"re:{expression}"}
        if pattern.startswith("-:"):
            return override | {"skip": True}
        number = str(row.get("format") or f"int{row.get('bits', self.bits)}")
        if "sym" in row and number.startswith("int"):
            number += "-sym" if row["sym"] else "-asym"
        group = {"group_size": row["group_size"]} if "group_size" in row else {}
        return override | {"wq": number} | group


_TERMS = {
    "quantization.damping": "damp_percent",
    "quantization.act_order": "desc_act",
    "quantization.symmetric": "sym",
    "quantization.group_size": "group_size",
    "allocation.target_bits": "target_bits",
    "allocation.formats": "formats",
    "rotation.kind": "rotation",
}


def _in_these_terms(message: str) -> str:
    """A run's message with the keys that stand here."""
    for key, name in _TERMS.items():
        message = message.replace(repr(key), repr(name))
    return message


def _check_bits(where: str, bits: Any) -> None:
    _require(bits in _BITS, where, bits, ", ".join(map(str, _BITS)))


def _check_agreement(where: str, bits: Any, name: str) -> None:
    """Raise ConfigError for a row that says two things of one linear."""
    try:
        own = Scheme.parse(name).number_format.bits
    except FormatError as error:
        raise ConfigError(f"QuantizeConfig.{where}.format: {error}") from error
    _require(
        bits == own, f"{where}.bits", bits, f"{own}, as format {name} has; or leave one of both out"
    )


def _require(sound: bool, key: str, found: Any, allowed: str) -> None:
    if not sound:
        raise ConfigError(f"QuantizeConfig.{key}: {found!r} is not allowed; allowed: {allowed}")
