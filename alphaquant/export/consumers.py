"""Whether the consumers that are asked for will load a plan's checkpoint, told before anything is quantized.

`violations` looks at a plan; `foreseen` at a policy that has not chosen yet. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence

from alphaquant.config import ExportConfig
from alphaquant.errors import FormatError, PlanError
from alphaquant.export.group_rules import GROUP_RULES, Violation
from alphaquant.export.linear_rules import (
    Candidate,
    Destination,
    Reason,
    nearest_scheme,
    other_exports,
    reasons,
)
from alphaquant.formats.carriers import Carrier, carrier_of
from alphaquant.models.architecture import Architecture
from alphaquant.models.packed_config import StoredAs
from alphaquant.models.stock import Need, need_of
from alphaquant.plan import QuantPlan

_ACTIVE = "compressed-tensors"
"""The export format that says how activations are quantized."""


def violations(
    plan: QuantPlan, architecture: Architecture, export: ExportConfig
) -> list[Violation]:
    """Every reason why the checkpoint of `plan` would not load where `export` wants it; dense loads anywhere."""
    if export.format == "dense":
        return []
    to = Destination.of(
        export.format, export.consumers, export.tensor_parallel, architecture.model_type
    )
    linears = candidates(plan, export)
    grouped = [found for rule in GROUP_RULES for found in rule(to, architecture, linears)]
    return _single(to, linears) + grouped


def plan_needs(plan: QuantPlan, architecture: Architecture, export: ExportConfig) -> Need:
    """What plain transformers will need to load the checkpoint of `plan`, as `transformers_needs` will see from its files.

    Raises FormatError for a scheme that `export` does not carry.
    """
    alike = {(one.in_experts, *one.stored): one for one in candidates(plan, export)}
    stored = [(linear.in_experts, _stored(linear, export)) for linear in alike.values()]
    if export.format == "dense" or all(kind is None for _, kind in stored):
        return need_of(architecture.model_type, ())
    if export.format != _ACTIVE:
        return "alphaquant.load"
    return need_of(architecture.model_type, stored)


def _stored(linear: Candidate, export: ExportConfig) -> StoredAs | None:
    if linear.kept or export.format == "dense":
        return None
    carrier = carrier_of(linear.scheme, export.format, linear.activation)
    if not isinstance(carrier, Carrier):
        raise FormatError(carrier)
    return StoredAs(linear.scheme, carrier)


def require(found: Sequence[Violation]) -> None:
    """Raise PlanError with every violation, one a line, if there is one."""
    if found:
        head = ["the checkpoint would not load as export.consumers asks:"] * (len(found) > 1)
        raise PlanError("\n".join((*head, *map(str, found))))


def candidates(plan: QuantPlan, export: ExportConfig) -> list[Candidate]:
    """The linears of a plan with what the checkpoint says of them."""
    inputs = plan.activations if export.format == _ACTIVE else {}
    return [
        Candidate(spec, scheme, None if scheme.format == "bf16" else inputs.get(spec.name))
        for spec in plan.specs
        for scheme in (plan.schemes[spec.name],)
    ]


def _single(to: Destination, linears: Sequence[Candidate]) -> list[Violation]:
    """Violations of single linears; those with the same scheme and reason are one."""
    alike: dict[object, list[Candidate]] = {}
    for linear in linears:
        alike.setdefault((linear.place, linear.stored), []).append(linear)
    found: dict[tuple[Reason, str], list[Candidate]] = {}
    for same in alike.values():
        for reason in reasons(to, same[0]):
            found.setdefault((reason, str(same[0])), []).extend(same)
    return [
        Violation(
            reason.consumer,
            reason.rule,
            tuple(linear.spec.name for linear in same),
            f"found {kind}; {reason.text}",
            _remedy(to, reason, same),
        )
        for (reason, kind), same in found.items()
    ]


def _remedy(to: Destination, reason: Reason, linears: Sequence[Candidate]) -> str:
    if reason.rule == "router":
        return "Set allocation.skip_router=true, and take them out of allocation.overrides."
    if reason.rule == "head":
        return "Leave allocation.lm_head empty."
    if reason.rule == "attention":
        return "Set allocation.skip_attention=true."
    nearest = nearest_scheme(to, linears)
    ways = [f"Use {nearest} for them"]
    if (
        nearest.format == linears[0].scheme.format
        and nearest.group_size != linears[0].scheme.group_size
    ):
        ways.append(f"quantization.group_size={nearest.group_size or -1} for all")
    ways += [f"export.format={export}" for export in other_exports(to, linears)]
    return f"{', or '.join(ways)}."
