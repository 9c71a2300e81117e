"""QuantizedWeight: the codes, scales and zero points of one weight, and how to get there and back.

This module is the front door of `formats`: it re-exports what callers of quantized weights need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alphaquant.errors import StoreError
from alphaquant.formats.grid import fake_quantize, from_codes, round_to_grid, to_codes
from alphaquant.formats.scales import Scales, expand, power_of_two
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.search import Search, find_scales, pieces, require_finite
from alphaquant.formats.table import NumberFormat
from alphaquant.pinned import to_host

__all__ = [
    "QuantizedWeight",
    "Scales",
    "Search",
    "encode",
    "expand",
    "fake_quantize",
    "find_scales",
    "quantize_weight",
    "require_finite",
    "round_to_grid",
]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A weight `[..., out, in]` as it is stored; leading dimensions are separate matrices, such as experts."""

    codes: Tensor
    """uint8, one element each: q - qmin for ints, the OCP bit pattern for floats, the place in a codebook; bf16 keeps bf16 # [..., out, in]"""
    scales: Scales
    scheme: Scheme

    def __getitem__(self, index: int) -> QuantizedWeight:
        """One entry of the first batch dimension."""
        return QuantizedWeight(self.codes[index], self.scales[index], self.scheme)

    def to(self, device: torch.device) -> QuantizedWeight:
        """The same on a device."""
        return QuantizedWeight(self.codes.to(device), self.scales.to(device), self.scheme)

    def to_host(self) -> QuantizedWeight:
        """The same on the CPU."""
        return QuantizedWeight(to_host(self.codes), self.scales.to_host(), self.scheme)

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        """Some rows of every matrix."""
        return QuantizedWeight(
            self.codes[..., start:stop, :], self.scales.rows(slice(start, stop)), self.scheme
        )

    @classmethod
    def of_rows(cls, parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
        """One matrix from its rows in order; parts of nvfp4 and nf4, whose scales differ, cannot be joined."""
        if len(parts) == 1:
            return parts[0]
        codes = torch.cat([part.codes for part in parts])
        return cls(codes, Scales.of_rows([part.scales for part in parts]), parts[0].scheme)

    @property
    def shape(self) -> torch.Size:
        """Shape of the weight."""
        return self.codes.shape

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight: elements, scales, zero points and the matrix's own scale."""
        rows, cols = self.codes.shape[-2:]
        return self.scheme.bits_per_weight(cols, rows)

    def dequantize(self) -> Tensor:
        """The values that the codes stand for, exact in fp32; a codebook's are rounded to it # [..., out, in]"""
        fmt = self.scheme.number_format
        if fmt.kind == "none":
            return self.codes.float()
        found = torch.empty(self.codes.shape, dtype=torch.float32, device=self.codes.device)
        for rows in pieces(self.codes):
            values = from_codes(self.codes[..., rows, :], fmt)
            scale, zero = expand(self.scales.rows(rows), self.codes.shape[-1])
            if zero is not None:
                values.sub_(zero)
            torch.mul(values, scale, out=found[..., rows, :])
        return found

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Compact contiguous tensors for safetensors: `<prefix>.codes`, `.scale`, `.zero`, `.global_scale`."""
        fmt = self.scheme.number_format
        stored = {"codes": self.codes}
        if fmt.scale_type is not None:
            stored["scale"] = _pack_scale(self.scales.scale, fmt)
        if self.scales.zero is not None:
            stored["zero"] = to_codes(self.scales.zero, fmt)
        if self.scales.global_scale is not None:
            stored["global_scale"] = self.scales.global_scale
        return {f"{prefix}.{key}": value.contiguous() for key, value in stored.items()}

    @classmethod
    def from_tensors(
        cls, prefix: str, tensors: Mapping[str, Tensor], scheme: Scheme
    ) -> QuantizedWeight:
        """Inverse of `tensors`; a missing tensor raises StoreError."""

        def stored(key: str) -> Tensor:
            found = tensors.get(f"{prefix}.{key}")
            if found is None:
                raise StoreError(
                    f"quantized weight {prefix} ({scheme}) has no tensor {prefix}.{key}; "
                    "its artifact is damaged: remove it and run again"
                )
            return found

        fmt, codes = scheme.number_format, stored("codes")
        if fmt.scale_type is None:
            return cls(codes, Scales(codes.new_empty(*codes.shape[:-1], 0).float()), scheme)
        scales = Scales(
            _unpack_scale(stored("scale"), fmt),
            None if scheme.symmetric else from_codes(stored("zero"), fmt),
            stored("global_scale") if fmt.kind == "nv" else None,
            scheme.group_width(codes.shape[-1]),
        )
        return cls(codes, scales, scheme)


def quantize_weight(
    weight: Tensor,
    scheme: Scheme,
    scales: Scales | None = None,
    *,
    search: Search = "none",
    importance: Tensor | None = None,
    hessian: Tensor | None = None,
    name: str = "",
) -> QuantizedWeight:
    """Round a weight `[..., out, in]` to nearest under `scales`, or under those that `find_scales` gives.

    A NaN or infinite weight raises ModelError that names it.
    """
    if scales is None:
        scales = find_scales(
            weight, scheme, search=search, importance=importance, hessian=hessian, name=name
        )
    else:
        require_finite(weight, name)
    return encode(weight, scales, scheme)


def encode(values: Tensor, scales: Scales, scheme: Scheme) -> QuantizedWeight:
    """Codes of values `[..., out, in]`; values on the grid of `scales` are kept exactly."""
    fmt = scheme.number_format
    if fmt.kind == "none":
        return QuantizedWeight(round_to_grid(values, fmt).to(torch.bfloat16), scales, scheme)
    codes = torch.empty(values.shape, dtype=torch.uint8, device=values.device)
    for rows in pieces(values):
        part = scales.rows(rows)
        scale, zero = expand(part, values.shape[-1])
        elements = values[..., rows, :].detach().float().contiguous() / scale
        if zero is not None:
            elements = elements.round_().add_(zero)
        codes[..., rows, :] = to_codes(elements, fmt)
    return QuantizedWeight(codes, scales, scheme)


def _pack_scale(scale: Tensor, fmt: NumberFormat) -> Tensor:
    if fmt.scale_type == "e8m0":
        return (scale.view(torch.int32) >> 23).to(torch.uint8)
    return scale.to(torch.float8_e4m3fn if fmt.scale_type == "e4m3" else torch.bfloat16)


def _unpack_scale(stored: Tensor, fmt: NumberFormat) -> Tensor:
    if fmt.scale_type == "e8m0":
        return power_of_two(stored.int() - 127)
    return stored.float()
