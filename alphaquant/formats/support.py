"""What each consumer loads from each export format, as rows.

Found by giving checkpoints to the consumers' own loaders (`make consumers` asks again): vLLM 0.33.0, GPTQModel 7.7.0,
transformers 5.23.0 with compressed-tensors 0.20.0 and `import alphaquant.hf`. SGLang 0.5.23 was read, not run.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from alphaquant.formats.carriers import ACTIVATIONS, PackedFormat
from alphaquant.formats.scheme import Scheme

Consumer = Literal["transformers", "vllm", "sglang", "gptqmodel"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Schemes that a consumer loads."""

    formats: tuple[str, ...]
    activations: tuple[str | None, ...] = (None,)
    """Activation formats that may come with them; None: none."""
    groups: tuple[int, ...] | None = None
    """Group sizes; None: any."""
    per_channel: bool = True
    """Whether one scale per output channel will do."""
    asymmetric: bool = False

    def takes(self, scheme: Scheme, activation: str | None) -> bool:
        """Whether the row holds for this scheme."""
        if scheme.format not in self.formats or activation not in self.activations:
            return False
        if not scheme.symmetric and not self.asymmetric:
            return False
        if scheme.group_size is None:
            return self.per_channel
        return self.groups is None or scheme.group_size in self.groups

    def __str__(self) -> str:
        """As messages list it: `int4, int8 (groups of 32, 64, 128 or per channel, symmetric)`."""
        limits = []
        if self.groups is not None:
            sizes = f"groups of {', '.join(map(str, self.groups))}" if self.groups else ""
            limits.append(" or ".join(filter(None, (sizes, "per channel" * self.per_channel))))
        elif not self.per_channel:
            limits.append("not per channel")
        if any(name.startswith("int") for name in self.formats) and not self.asymmetric:
            limits.append("symmetric")
        if None not in self.activations:
            limits.append(f"with activations as {' or '.join(map(str, self.activations))}")
        return ", ".join(self.formats) + (f" ({', '.join(limits)})" if limits else "")


@dataclass(frozen=True, slots=True)
class Support:
    """One consumer reading one export format."""

    consumer: Consumer
    export: PackedFormat
    linears: tuple[Accepted, ...] = ()
    """Outside routed experts."""
    experts: tuple[Accepted, ...] = ()
    refuses: str = ""
    """Why it reads none of them, and what to use instead."""
    fuses: bool = False
    """Whether linears that are one kernel when served must share one scheme."""
    uniform: str = ""
    """Why all quantized linears must share one scheme."""
    head: bool = False
    """Whether a quantized lm_head is known to load."""
    module_names: bool = False
    """Whether it wants experts under transformers' names where those on disk differ."""

    def menu(self, expert: bool) -> tuple[Accepted, ...]:
        """What is accepted inside or outside routed experts."""
        return self.experts if expert else self.linears

    def takes(self, scheme: Scheme, activation: str | None, expert: bool) -> bool:
        """Whether a linear of `scheme` loads."""
        return any(row.takes(scheme, activation) for row in self.menu(expert))


_INTS = ("int2", "int3", "int4", "int6", "int8")
_GPTQ = ("int2", "int3", "int4", "int8")
_MARLIN = (32, 64, 128)
_MX = (
    Accepted(("mxfp4",), (None, "mxfp4", "mxfp8", "fp8")),
    Accepted(("mxfp8",), (None, "mxfp8")),
    Accepted(("nvfp4",)),
)
_FP8_BOTH = Accepted(("fp8",), ("fp8",), groups=())
_INT8_BOTH = Accepted(("int8",), ("int8",), groups=())
_ASKED = (None, *ACTIVATIONS)
_TRANSFORMERS = (
    Accepted(_INTS, _ASKED, asymmetric=True),
    Accepted(("fp8", "mxfp4", "mxfp6", "mxfp8", "nvfp4"), _ASKED),
)
"""Some only after `import alphaquant.hf`: `models.stock.need_of` says which."""

SUPPORT = (
    Support("transformers", "compressed-tensors", _TRANSFORMERS, _TRANSFORMERS, head=True),
    Support(
        "transformers",
        "gptq",
        (Accepted(("int4", "int8"), groups=_MARLIN),),
        uniform="transformers ignores what a gptq checkpoint says of single linears",
    ),
    Support(
        "transformers",
        "quark",
        refuses="transformers reads quark checkpoints only with AMD's package; use compressed-tensors",
    ),
    Support(
        "vllm",
        "compressed-tensors",
        (
            Accepted(_INTS, (None, "int8"), asymmetric=True),
            Accepted(("fp8",), (None, "fp8"), groups=()),
            *_MX,
        ),
        (
            Accepted(("int2", "int3", "int4", "int6"), per_channel=False, asymmetric=True),
            Accepted(("int8",), per_channel=False),
            _INT8_BOTH,
            _FP8_BOTH,
            *_MX,
        ),
        fuses=True,
        head=True,
    ),
    Support(
        "vllm",
        "gptq",
        (Accepted(("int4", "int8"), groups=_MARLIN),),
        (Accepted(("int4", "int8"), groups=_MARLIN),),
        fuses=True,
        head=True,
    ),
    Support(
        "vllm",
        "quark",
        (Accepted(("mxfp4", "mxfp6", "mxfp6_e3m2")),),
        (Accepted(("mxfp4", "mxfp6", "mxfp6_e3m2")),),
        fuses=True,
    ),
    Support(
        "sglang",
        "compressed-tensors",
        (
            Accepted(("int4",), groups=_MARLIN, asymmetric=True),
            Accepted(("int8",), groups=_MARLIN),
            Accepted(("fp8",), (None, "fp8"), groups=()),
            _INT8_BOTH,
            Accepted(("nvfp4",)),
        ),
        (Accepted(("int4", "int8"), groups=_MARLIN), _FP8_BOTH, Accepted(("nvfp4",))),
        fuses=True,
    ),
    Support(
        "sglang",
        "gptq",
        (Accepted(_GPTQ, groups=_MARLIN),),
        (Accepted(("int4", "int8"), groups=_MARLIN),),
        fuses=True,
    ),
    Support("sglang", "quark", (Accepted(("mxfp4",)),), (Accepted(("mxfp4",)),), fuses=True),
    Support(
        "gptqmodel",
        "compressed-tensors",
        refuses="GPTQModel reads gptq checkpoints only; use export.format=gptq",
    ),
    Support("gptqmodel", "gptq", (Accepted(_GPTQ),), (Accepted(_GPTQ),), module_names=True),
    Support(
        "gptqmodel",
        "quark",
        refuses="GPTQModel reads gptq checkpoints only; use export.format=gptq",
    ),
)


def support_of(consumer: str, export: PackedFormat) -> Support:
    """The row of a consumer and an export format."""
    return next(row for row in SUPPORT if (row.consumer, row.export) == (consumer, export))


def all_load(consumers: Sequence[str], export: PackedFormat, name: str) -> bool:
    """Whether every consumer loads linears of a format, in its usual form, inside and outside experts."""
    scheme = Scheme.parse(name)
    rows = [support_of(consumer, export) for consumer in consumers]
    return scheme.format == "bf16" or all(
        row.takes(scheme, None, expert) for row in rows for expert in (False, True)
    )
