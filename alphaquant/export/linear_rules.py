"""Why a single linear of a plan would not load where its checkpoint must, and what it could be instead.

A rule looks at one linear and one scheme. Rules follow what the consumers' own loaders refuse, or load wrongly without
a word. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

from alphaquant.formats.carriers import Carrier, PackedFormat, carrier_of, misfit
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.support import Support, support_of
from alphaquant.formats.table import FORMATS
from alphaquant.models.linear import ATTENTION_ROLES, LinearSpec

_WORD = 32
_VOCABULARY_STEP = 64
_ROW_PARALLEL = ("o", "down")
"""Roles whose inputs, not outputs, are spread over the GPUs of tensor parallelism."""
_GROUPS = (128, 64, 32, 16, None)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a checkpoint must load."""

    export: PackedFormat
    rows: tuple[Support, ...]
    """Of the consumers."""
    shares: int = 1
    """GPUs of tensor parallelism."""
    model_type: str = ""

    @classmethod
    def of(
        cls, export: PackedFormat, consumers: Sequence[str], shares: int, model_type: str
    ) -> Destination:
        """The destination of named consumers, each counted once."""
        rows = tuple(support_of(name, export) for name in dict.fromkeys(consumers))
        return cls(export, rows, shares, model_type)

    def elsewhere(self, export: PackedFormat) -> Destination:
        """The same consumers, reading another export format."""
        names = [row.consumer for row in self.rows]
        return Destination.of(export, names, self.shares, self.model_type)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A linear with the scheme that it has or could have."""

    spec: LinearSpec
    scheme: Scheme
    activation: str | None = None
    """Activation format that the checkpoint asks for."""

    def __str__(self) -> str:
        """As messages name it: `int4-g128 with activations as int8`."""
        with_activation = f" with activations as {self.activation}" if self.activation else ""
        return f"{self.scheme}{with_activation}"

    @property
    def kept(self) -> bool:
        """Whether the linear is not quantized."""
        return self.scheme.format == "bf16"

    @property
    def in_experts(self) -> bool:
        """Whether it belongs to a routed expert."""
        return self.spec.expert is not None

    @property
    def stored(self) -> tuple[Scheme, str | None]:
        """What must be equal for two linears to be one kernel."""
        return self.scheme, self.activation

    @property
    def place(self) -> tuple[object, ...]:
        """All that rules for single linears look at, besides what is stored."""
        return self.spec.role, self.spec.rows, self.spec.cols, self.in_experts


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a linear would not load."""

    consumer: str
    """Who refuses: a consumer, or the export format when it cannot hold the scheme."""
    rule: str
    text: str


def reasons(to: Destination, linear: Candidate) -> Iterator[Reason]:
    """Every reason against one linear; none for one that is kept."""
    if linear.kept:
        return
    spec, scheme = linear.spec, linear.scheme
    if spec.role == "router":
        for row in to.rows:
            text = "routers and gates of shared experts are no linears to it and must stay bf16"
            yield Reason(row.consumer, "router", text)
        return
    carrier = carrier_of(scheme, to.export, linear.activation)
    if not isinstance(carrier, Carrier):
        yield Reason(to.export, "carrier", carrier)
        return
    if unfit := misfit(carrier, scheme, spec.rows, spec.cols):
        yield Reason(to.export, "shape", unfit)
    if to.rows and (uneven := _unshared(to.shares, linear)):
        yield Reason(f"tensor_parallel={to.shares}", "tensor_parallel", uneven)
    for row in to.rows:
        if row.refuses:
            continue  # said once for the whole checkpoint
        if spec.role == "lm_head" and (homeless := _no_head(row, to, linear)):
            yield Reason(row.consumer, "head", homeless)
        elif row.fuses and scheme.group_size and scheme.group_size > spec.cols:
            text = f"groups of {scheme.group_size} are longer than rows of {spec.cols} weights"
            yield Reason(row.consumer, "shape", text)
        elif not row.takes(scheme, linear.activation, linear.in_experts):
            where = "routed experts" if linear.in_experts else "linears outside routed experts"
            menu = "; ".join(map(str, row.menu(linear.in_experts))) or "no quantized ones"
            yield Reason(row.consumer, "format", f"allowed for {where} in {to.export}: {menu}")
        elif torn := _torn(row, carrier, linear):
            yield Reason(row.consumer, "words", torn)
        elif (
            row.consumer == "vllm" and to.model_type == "deepseek" and spec.role in ATTENTION_ROLES
        ):
            text = "it gives the attention of DeepSeek v1 no name that a scheme could be found by"
            yield Reason(row.consumer, "attention", text)


def _no_head(row: Support, to: Destination, linear: Candidate) -> str | None:
    """Why a quantized lm_head would not load: vLLM pads it to whole steps of its vocabulary, some tensors wrongly."""
    if not row.head:
        return f"a quantized lm_head is not known to load from {to.export}; keep it bf16"
    if row.consumer != "vllm":
        return None
    rows, scheme = linear.spec.rows, linear.scheme
    if to.model_type == "gemma2":
        return "it has no lm_head for Gemma 2, whose embedding predicts; keep it bf16"
    if to.export == "gptq" and rows % _VOCABULARY_STEP:
        return (
            f"it loads gptq heads of vocabularies that are a multiple of {_VOCABULARY_STEP}; "
            f"{rows} tokens are not. Keep it bf16"
        )
    if not scheme.symmetric and rows * scheme.number_format.bits % _WORD:
        return f"zero points of {rows} tokens fill no whole {_WORD}-bit words; symmetric heads load"
    return None


def _unshared(shares: int, linear: Candidate) -> str | None:
    """Why GPUs cannot share the inputs of a linear: each needs whole groups and whole words."""
    cols, scheme = linear.spec.cols, linear.scheme
    if shares == 1 or linear.spec.role not in _ROW_PARALLEL:
        return None
    share, left = divmod(cols, shares)
    if left:
        return f"{shares} GPUs cannot share rows of {cols} weights"
    if scheme.group_size and share % scheme.group_size:
        return (
            f"{shares} GPUs get {share} of {cols} weights of a row each, no multiple of the group"
        )
    if scheme.number_format.is_integer and share * scheme.number_format.bits % _WORD:
        return (
            f"{shares} GPUs get {share} of {cols} weights of a row each, no whole {_WORD}-bit words"
        )
    return None


def _torn(row: Support, carrier: Carrier, linear: Candidate) -> str | None:
    """Why a row of an expert does not fit vLLM's buffers, which are of whole words."""
    if row.consumer != "vllm" or not linear.in_experts or carrier.layout != "words":
        return None
    cols, bits = linear.spec.cols, linear.scheme.number_format.bits
    return (
        f"rows of {cols} weights fill no whole {_WORD}-bit words" if cols * bits % _WORD else None
    )


def fits(to: Destination, linear: Candidate) -> bool:
    """Whether nothing speaks against a linear."""
    return next(reasons(to, linear), None) is None


def nearest_scheme(to: Destination, linears: Sequence[Candidate]) -> Scheme:
    """What all of the linears could have instead of the first one's scheme: its format if possible, else its bits."""
    was, cols = linears[0].scheme, linears[0].spec.cols

    def distance(scheme: Scheme) -> tuple[bool, float]:
        bits = scheme.bits_per_weight(cols) - was.bits_per_weight(cols)
        return scheme.format != was.format, abs(bits)

    return min(_common(to, linears, _every_scheme(was.group_size)), key=distance)


def richest_scheme(to: Destination, linears: Sequence[Candidate]) -> Scheme:
    """Of the schemes that some of the linears have, the one of the most bits that all could have."""
    own = _common(to, linears, dict.fromkeys(linear.scheme for linear in linears))
    if not own:
        return nearest_scheme(to, linears)
    return max(own, key=lambda scheme: scheme.bits_per_weight(linears[0].spec.cols))


def other_exports(to: Destination, linears: Sequence[Candidate]) -> list[PackedFormat]:
    """Other export formats from which all consumers load the linears as they are."""
    return [
        export
        for export in get_args(PackedFormat)
        if export != to.export and _suits(to, export, linears)
    ]


def _suits(to: Destination, export: PackedFormat, linears: Sequence[Candidate]) -> bool:
    there = to.elsewhere(export)
    read = not any(row.refuses for row in there.rows)
    return read and all(fits(there, linear) for linear in linears)


def _common(
    to: Destination, linears: Sequence[Candidate], options: Sequence[Scheme] | dict[Scheme, None]
) -> list[Scheme]:
    """The options that every linear could have; linears of one shape and place are asked once."""
    alike = {(linear.place, linear.activation): linear for linear in linears}
    return [
        scheme
        for scheme in options
        if all(fits(to, Candidate(s.spec, scheme, s.activation)) for s in alike.values())
    ]


def _every_scheme(group: int | None) -> list[Scheme]:
    """Symmetric schemes of every format, with `group` and the usual group sizes."""
    free = [fmt.name for fmt in FORMATS.values() if fmt.kind in ("int", "float")]
    fixed = [Scheme(fmt.name) for fmt in FORMATS.values() if fmt.kind not in ("int", "float")]
    groups = dict.fromkeys((group, *_GROUPS))
    return [Scheme(name, size) for name in free for size in groups] + fixed
