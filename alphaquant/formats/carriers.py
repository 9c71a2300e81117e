"""Carriers: the ways in which checkpoints of other software's formats store a quantized linear.

One row per way. A scheme without a row has no carrier in that export format, and the reason is said. Tensor names
and layouts follow compressed-tensors 0.20, GPTQ v1 (AutoGPTQ, GPTQModel) and AMD Quark. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from alphaquant.formats.scheme import Scheme

PackedFormat = Literal["compressed-tensors", "gptq", "quark"]
Layout = Literal["words", "elements", "bytes", "columns", "quark", "interleaved"]
"""words: int32 bit stream along the row, `weight_packed` and `weight_shape`. elements: one 8-bit number each, `weight`.
bytes: fp4 and fp6 bit stream in `weight_packed`. quark: the same in `weight`. columns: int32 bit stream along the
input channels, `qweight`, `qzeros`, `scales`, `g_idx`. interleaved: int32 words of eight output channels in AWQ's order."""

ACTIVATIONS = ("int4", "int8", "fp8", "mxfp4", "mxfp6", "mxfp8")
"""Activation formats that a compressed-tensors checkpoint can ask its consumer for, with scales found as it runs."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """One way to store a quantized linear."""

    export: PackedFormat
    name: str
    """The `format` of a compressed-tensors config group; the export format's own name elsewhere."""
    layout: Layout
    formats: tuple[str, ...]
    """Number formats that are stored this way."""
    asymmetric: bool = False
    """Whether zero points can be stored."""
    per_channel: bool = False
    """Whether one scale per output channel is all that fits."""
    activation: tuple[str, ...] = ()
    """Activation formats that make a linear be stored this way; empty: those without one, or any other."""
    zero_offset: int = 0
    """What consumers add to a stored zero point."""


_CT: PackedFormat = "compressed-tensors"
CARRIERS = (
    Carrier(_CT, "int-quantized", "elements", ("int8",), per_channel=True, activation=("int8",)),
    Carrier(_CT, "float-quantized", "elements", ("fp8",), per_channel=True, activation=("fp8",)),
    Carrier(
        _CT, "pack-quantized", "words", ("int2", "int3", "int4", "int6", "int8"), asymmetric=True
    ),
    Carrier(_CT, "naive-quantized", "elements", ("fp8",)),
    Carrier(_CT, "mxfp4-pack-quantized", "bytes", ("mxfp4",)),
    Carrier(_CT, "mxfp6-pack-quantized", "bytes", ("mxfp6",)),
    Carrier(_CT, "mxfp8-quantized", "elements", ("mxfp8",)),
    Carrier(_CT, "nvfp4-pack-quantized", "bytes", ("nvfp4",)),
    Carrier("gptq", "gptq", "columns", ("int2", "int3", "int4", "int8"), zero_offset=1),
    Carrier("quark", "quark", "quark", ("mxfp4", "mxfp6", "mxfp6_e3m2")),
)
"""What is written, and read."""

GPTQ_V2 = Carrier("gptq", "gptq_v2", "columns", ("int2", "int3", "int4", "int8"), asymmetric=True)
AWQ = Carrier("gptq", "awq", "interleaved", ("int4",), asymmetric=True)
"""Ways of other software that are read and not written."""

_SIMULATED: Mapping[str, str] = {
    "fp4": "no checkpoint format stores fp4 with free float scales; use nvfp4 or mxfp4",
    "fp6": "no checkpoint format stores fp6 with float scales; use mxfp6",
    "fp6_e3m2": "no checkpoint format stores fp6_e3m2 with float scales; use mxfp6_e3m2 (quark)",
    "fp8_e5m2": "no checkpoint format stores fp8_e5m2 weights; use fp8",
    "nf4": "only bitsandbytes stores nf4, and with scales of another kind; use mxfp4 or int4",
    "mxfp8_e5m2": "no checkpoint format stores mxfp8_e5m2 weights; use mxfp8",
}


def carrier_of(
    scheme: Scheme, export: PackedFormat, activation: str | None = None
) -> Carrier | str:
    """The way in which `export` stores a linear of `scheme`, or the reason why it cannot.

    `activation` is the format of its inputs, which the checkpoint asks the consumer for.
    """
    if activation is not None:
        if reason := unasked(export, activation):
            return reason
        activation = _name_of_inputs(activation)
    rows = [row for row in CARRIERS if row.export == export]
    for row in rows:
        if scheme.format not in row.formats:
            continue
        if row.activation and activation not in row.activation:
            continue
        if row.per_channel and scheme.group_size is not None:
            continue
        if not scheme.symmetric and not row.asymmetric:
            return (
                f"{export} stores no zero points; use {scheme.format} with -sym, or compressed-tensors"
                if export == "gptq"
                else f"{row.name} stores no zero points; use {scheme.format} with -sym"
            )
        return row
    if reason := _SIMULATED.get(scheme.format):
        return f"{reason}. As it is, it can be exported as simulation only (export.format=dense)"
    elsewhere = sorted({row.export for row in CARRIERS if scheme.format in row.formats})
    stored = sorted({name for row in rows for name in row.formats})
    return (
        f"{export} does not store {scheme.format}, only {', '.join(stored)}; "
        f"{scheme.format} goes into {' or '.join(elsewhere)}"
    )


def can_store(export: PackedFormat, number_format: str) -> bool:
    """Whether a checkpoint in format `export` can hold linears of a number format, symmetric at least."""
    return number_format == "bf16" or any(
        row.export == export and number_format in row.formats for row in CARRIERS
    )


def unasked(export: PackedFormat, activation: str) -> str | None:
    """Why a checkpoint cannot ask for inputs in a format; None: it can."""
    activation = _name_of_inputs(activation)
    if export != "compressed-tensors":
        return (
            f"{export} checkpoints ask for no activation format, found aq {activation}; "
            "use compressed-tensors, or leave aq out"
        )
    if activation in ACTIVATIONS:
        return None
    return (
        f"no checkpoint asks for activations as {activation}, only as {', '.join(ACTIVATIONS)} (a scale per "
        "token, or per 32 features of mx formats). As they are, they can be simulated only (export.format=dense)"
    )


def _name_of_inputs(activation: str) -> str:
    """The scheme of inputs as `ACTIVATIONS` writes it: one scale per token needs no word."""
    return str(Scheme.parse(activation, group_size=None)).removesuffix("-perchannel")


def misfit(carrier: Carrier, scheme: Scheme, rows: int, cols: int) -> str | None:
    """Why a `[rows, cols]` matrix of `scheme` does not fit its carrier; None: it does."""
    group = scheme.group_width(cols)
    if cols % group:
        return (
            f"groups of {group} do not divide rows of {cols} weights; "
            f"group sizes that do: {', '.join(str(size) for size in _divisors(cols))}"
        )
    if carrier.layout == "columns" and (cols % 32 or rows % 32):
        return f"GPTQ packs 32 channels at a time; [{rows}, {cols}] is no multiple of that"
    if carrier.layout in ("bytes", "quark") and cols * scheme.number_format.bits % 8:
        return f"rows of {cols} weights of {scheme.number_format.bits} bits do not fill whole bytes"
    return None


def stored_tensors(
    carrier: Carrier, scheme: Scheme, rows: int, cols: int, dtype: str
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The tensors of a linear by leaf name: safetensors dtype and shape. `dtype` is the model's own."""
    bits, groups = scheme.number_format.bits, scheme.groups(cols)
    scale = (scale_dtype(scheme, dtype), (rows, groups))
    if carrier.layout == "columns":
        return {
            "qweight": ("I32", (cols * bits // 32, rows)),
            "qzeros": ("I32", (groups, rows * bits // 32)),
            "scales": ("F16", (groups, rows)),
            "g_idx": ("I32", (cols,)),
        }
    if carrier.layout == "words":
        zeros = (
            {} if scheme.symmetric else {"weight_zero_point": ("I32", (_words(rows, bits), groups))}
        )
        return {
            "weight_packed": ("I32", (rows, _words(cols, bits))),
            "weight_scale": scale,
            "weight_shape": ("I64", (2,)),
            **zeros,
        }
    if carrier.layout == "elements":
        zeros = {} if scheme.symmetric else {"weight_zero_point": ("I8", (rows, groups))}
        return {
            "weight": ("I8" if scheme.number_format.is_integer else "F8_E4M3", (rows, cols)),
            "weight_scale": scale,
            **zeros,
        }
    codes = "weight" if carrier.layout == "quark" else "weight_packed"
    shared = {"weight_global_scale": ("F32", (1,))} if scheme.number_format.kind == "nv" else {}
    return {codes: ("U8", (rows, cols * bits // 8)), "weight_scale": scale, **shared}


def leaf_names(carrier: Carrier, scheme: Scheme) -> tuple[str, ...]:
    """The tensors of a linear by leaf name, as `stored_tensors` gives them."""
    width = scheme.group_size or 32
    return tuple(stored_tensors(carrier, scheme, 32, 32 * width, "BF16"))


def scale_dtype(scheme: Scheme, dtype: str) -> str:
    """The safetensors dtype of stored scales: the model's own where the format leaves it free."""
    fixed = {"e8m0": "U8", "e4m3": "F8_E4M3"}
    return fixed.get(scheme.number_format.scale_type or "", dtype)


def _words(count: int, bits: int) -> int:
    return -(-count * bits // 32)


def _divisors(cols: int) -> list[int]:
    """Powers of two from 16 to 256 that divide `cols`, else -1 for per channel."""
    return [size for size in (16, 32, 64, 128, 256) if cols % size == 0] or [-1]
