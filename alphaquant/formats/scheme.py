"""Scheme: how one weight is stored (number format, group size, symmetry) and the bits that this takes.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from alphaquant.errors import FormatError
from alphaquant.formats.table import NumberFormat, format_named

GLOBAL_SCALE_BITS = 32


@dataclass(frozen=True, slots=True)
class Scheme:
    """A number format with its group size and symmetry, such as `int4-g128-asym`.

    `group_size` None means one scale per output channel (-1 is accepted for it). Formats that fix the group (mx, nv)
    or have none (bf16) carry that; another value, or asymmetry without integers, raises FormatError.
    """

    format: str
    group_size: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        """Check the combination and bring equal schemes to one form."""
        fmt = format_named(self.format)
        group = None if self.group_size == -1 else self.group_size
        if group is not None and group < 1:
            raise FormatError(
                f"group size {group} of {self.format} is not allowed; use a positive number, "
                "or -1 (perchannel) for one scale per output channel"
            )
        if fmt.kind in ("mx", "nv") and group not in (None, fmt.group_size):
            raise FormatError(
                f"{self.format} has one scale per {fmt.group_size} weights by definition, "
                f"found group size {group}; leave the group size out"
            )
        if fmt.kind == "none" and group is not None:
            raise FormatError(
                f"{self.format} has no scales, found group size {group}; leave it out"
            )
        if not self.symmetric and not fmt.is_integer:
            raise FormatError(
                f"{self.format} has no zero points; only int formats can be asymmetric (int4-asym)"
            )
        object.__setattr__(self, "group_size", fmt.group_size or group)

    @classmethod
    def parse(cls, text: str, *, group_size: int | None = 128, symmetric: bool = True) -> Scheme:
        """Read `format[-gN|-perchannel][-sym|-asym]`; what the text leaves out comes from the arguments.

        The arguments are wishes: formats that fix their group or have no zero points ignore them. A suffix that
        contradicts the format raises FormatError.
        """
        name, *suffixes = text.strip().lower().split("-")
        fmt = format_named(name)
        free = fmt.kind in ("int", "float")
        group = group_size if free else None
        symmetry = symmetric or not fmt.is_integer
        seen: set[str] = set()
        for suffix in suffixes:
            if suffix == "perchannel" and free:
                topic, group = "group", None
            elif suffix[:1] == "g" and suffix[1:].isdecimal():
                topic, group = "group", int(suffix[1:])
            elif suffix in ("sym", "asym"):
                topic, symmetry = "symmetry", suffix == "sym"
            else:
                raise FormatError(
                    f"{suffix!r} in scheme {text!r} is not understood by {name}; a scheme is a format with "
                    "-gN or -perchannel (int and fp formats) and -sym or -asym (int formats), such as int4-g64-asym"
                )
            if topic in seen:
                raise FormatError(f"scheme {text!r} states its {topic} twice; keep one")
            seen.add(topic)
        return cls(name, group, symmetry)

    def __str__(self) -> str:
        """The canonical text: `Scheme.parse(str(scheme)) == scheme`."""
        parts = [self.format]
        if self.number_format.kind in ("int", "float"):
            parts.append("perchannel" if self.group_size is None else f"g{self.group_size}")
        if not self.symmetric:
            parts.append("asym")
        return "-".join(parts)

    @property
    def number_format(self) -> NumberFormat:
        """The format's row."""
        return format_named(self.format)

    def group_width(self, cols: int) -> int:
        """Weights per scale in a row of `cols` weights; the last group of a row may be shorter."""
        return min(self.group_size or cols, cols)

    def groups(self, cols: int) -> int:
        """Scales per row of `cols` weights: a last, shorter group counts as one."""
        if self.number_format.scale_type is None:
            return 0
        return -(-cols // self.group_width(cols))

    def bits_per_weight(self, cols: int, rows: int | None = None) -> float:
        """Stored bits per weight of a `[rows, cols]` matrix: elements, scales and zero points.

        `rows` spreads the one fp32 scale per matrix of nvfp4 and nf4; without it that scale is not counted.
        """
        fmt = self.number_format
        per_group = fmt.scale_bits + (0 if self.symmetric else fmt.bits)
        bits = fmt.bits + self.groups(cols) * per_group / cols
        if fmt.kind == "nv" and rows is not None:
            bits += GLOBAL_SCALE_BITS / (rows * cols)
        return bits
