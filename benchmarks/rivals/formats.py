"""The number formats that are compared, each the same for every contestant."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from alphaquant.errors import ConfigError
from alphaquant.models.linear import LinearSpec

_SMALLEST_GROUP = 16


@dataclass(frozen=True, slots=True)
class Format:
    """A symmetric grid for every linear of the decoder but the routers."""

    name: str
    kind: str
    """int, mxfp4, or mixed, where a plan says what each linear has and `bits` means nothing."""
    bits: int
    group: int
    """Weights per scale."""

    @property
    def label(self) -> str:
        """As tables show it: `int4 g128`."""
        return f"{self.name} g{self.group}" if self.kind == "int" else self.name

    @property
    def bits_per_weight(self) -> float:
        """Element bits and the scale's share: 8 bits for MX, 16 otherwise."""
        return self.bits + (8 if self.kind == "mxfp4" else 16) / self.group

    @property
    def levels(self) -> int:
        """Distinct values that one group can hold; FP4 has a single zero when read back."""
        return 2**self.bits

    def fitting(self, specs: Iterable[LinearSpec]) -> Format:
        """With the largest group, halving from the wanted one, that divides every linear's inputs.

        Rivals refuse groups that do not. Raises ConfigError when none does.
        """
        widths = {spec.cols for spec in specs}
        group = self.group
        while any(width % group for width in widths):
            group //= 2
            if self.kind == "mxfp4" or group < _SMALLEST_GROUP:
                raise ConfigError(
                    f"no group of {self.name} divides every linear's inputs ({sorted(widths)}); "
                    f"leave {self.name} out with --formats"
                )
        return replace(self, group=group)


FORMATS = {
    one.name: one
    for one in (
        Format("int4", "int", 4, 128),
        Format("int3", "int", 3, 128),
        Format("int2", "int", 2, 64),
        Format("mxfp4", "mxfp4", 4, 32),
    )
}

MIXED = Format("mixed", "mixed", 0, 128)
"""Integers in groups of 128, shorter rows as one group: a plan of ours, which rivals' limits do not bind."""


def quantized_linears(specs: Iterable[LinearSpec]) -> list[LinearSpec]:
    """The linears that everybody quantizes: those of the decoder blocks, routers left out."""
    return [spec for spec in specs if spec.block is not None and spec.role != "router"]
