"""Why linears of a plan would not load together: kernels that compute several, readers that know one scheme, names.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from alphaquant.export.linear_rules import Candidate, Destination, richest_scheme
from alphaquant.models.architecture import Architecture

_SHOWN = 3
_TILE = 128


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason why a checkpoint would not load, or would load wrongly."""

    consumer: str
    """Who refuses: a consumer, or the export format when it cannot hold the scheme."""
    rule: str
    linears: tuple[str, ...]
    message: str
    """What was found and what is allowed."""
    remedy: str
    """The nearest plan that passes."""

    def __str__(self) -> str:
        """One paragraph: who, what, which linears, and what to do."""
        count = f"{len(self.linears)} linear{'s' * (len(self.linears) != 1)}"
        shown = ", ".join(self.linears[:_SHOWN]) + ", ..." * (len(self.linears) > _SHOWN)
        named = f" [{count}: {shown}]" if self.linears else ""
        return f"{self.consumer}: {self.message}{named}. {self.remedy}"


Rule: TypeAlias = Callable[[Destination, Architecture, Sequence[Candidate]], Iterator[Violation]]


def _readers(
    to: Destination, architecture: Architecture, linears: Sequence[Candidate]
) -> Iterator[Violation]:
    """Every consumer reads the export format."""
    for row in to.rows:
        if row.refuses:
            yield Violation(
                row.consumer, "consumer", _names_of(linears), row.refuses, "Or use dense."
            )


def _fused(
    to: Destination, architecture: Architecture, linears: Sequence[Candidate]
) -> Iterator[Violation]:
    """What one kernel computes has one scheme: q, k and v; gate and up; all experts of a block."""
    groups: dict[str, list[Candidate]] = {}
    for linear in linears:
        groups.setdefault(linear.spec.fused_key, []).append(linear)
    mixed: dict[str, list[list[Candidate]]] = {}
    for key, group in groups.items():
        if len({linear.stored for linear in group}) > 1:
            mixed.setdefault(key.rpartition(".")[2], []).append(group)
    for row in to.rows:
        for found in mixed.values() if row.fuses else ():
            first = found[0]
            more = f", and {len(found) - 1} more such groups are mixed" if len(found) > 1 else ""
            yield Violation(
                row.consumer,
                "fused",
                _names_of([linear for group in found for linear in group]),
                f"{_called(first)} of block {first[0].spec.block} are one kernel and must share one "
                f"scheme; found {_kinds(first)}{more}",
                f"Use {richest_scheme(to, first)} for all of them; allocation.granularity=fused sees to it.",
            )


def _uniform(
    to: Destination, architecture: Architecture, linears: Sequence[Candidate]
) -> Iterator[Violation]:
    """Some readers know one scheme per checkpoint."""
    quantized = [linear for linear in linears if not linear.kept]
    experts = [linear for linear in linears if linear.in_experts]
    for row in to.rows:
        why, ruled = row.uniform, quantized
        if (row.consumer, row.export) == ("vllm", "gptq") and any(
            one.spec.role == "gate" and one.spec.cols % _TILE for one in experts
        ):
            why = f"its kernel for experts with inputs that are no multiple of {_TILE} knows one scheme"
            ruled = [one for one in linears if one.in_experts or not one.kept]
        if why and len({linear.stored for linear in ruled}) > 1:
            yield Violation(
                row.consumer,
                "uniform",
                _names_of(ruled),
                f"{why}, which all must share; found {_kinds(ruled)}",
                f"Use allocation.policy=uniform with {richest_scheme(to, ruled)}, or "
                "export.format=compressed-tensors.",
            )


def _names(
    to: Destination, architecture: Architecture, linears: Sequence[Candidate]
) -> Iterator[Violation]:
    """One checkpoint has one set of names."""
    wants = {row.module_names: row.consumer for row in to.rows}
    experts = [linear for linear in linears if linear.in_experts]
    if len(wants) == 2 and architecture.module_names and experts:
        yield Violation(
            " and ".join(row.consumer for row in to.rows),
            "names",
            _names_of(experts),
            f"{wants[True]} wants the experts of {architecture.model_type} under transformers' names, "
            f"{wants[False]} under those of the original checkpoint",
            "Export twice, with one of them in export.consumers each time.",
        )


GROUP_RULES: tuple[Rule, ...] = (_readers, _fused, _uniform, _names)


def _called(group: Sequence[Candidate]) -> str:
    """What a fused group is called: `q, k and v`, or `all experts`."""
    if group[0].in_experts:
        return "all experts"
    *most, last = dict.fromkeys(linear.spec.role for linear in group)
    return f"{', '.join(most)} and {last}"


def _kinds(linears: Sequence[Candidate]) -> str:
    return ", ".join(sorted(set(map(str, linears))))


def _names_of(linears: Sequence[Candidate]) -> tuple[str, ...]:
    return tuple(linear.spec.name for linear in linears)
