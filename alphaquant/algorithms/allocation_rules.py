"""Rules that hold before any policy chooses: kept routers and attention, and overrides by name.

A pattern is a glob over the whole name, case-sensitive, or after `re:` a regular expression that
must match from the name's start (`re.match`, as compressed-tensors has it). Among the overrides that
match a linear the last one that speaks of the weight (wq, group_size, skip) decides its format, and
the last one that has an aq its activation format.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from alphaquant.algorithms.allocation_groups import BF16, Granularity, group_linears
from alphaquant.config import AllocationConfig, Override, QuantizationConfig
from alphaquant.errors import PlanError
from alphaquant.formats.scheme import Scheme
from alphaquant.models.linear import ATTENTION_ROLES, HEAD, LinearSpec
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporter


@dataclass(frozen=True, slots=True)
class Rules:
    """What is settled about a plan before bits are spent."""

    specs: tuple[LinearSpec, ...]
    """The linears of the decoder, which bits are spent on."""
    fixed: dict[str, Scheme]
    """Schemes of kept and overridden linears by name."""
    activations: dict[str, str]
    """Activation formats that overrides ask for by name; bf16 stands for none."""
    head: tuple[LinearSpec, Scheme] | None = None
    """lm_head where it is quantized: no policy chooses its format, and no budget counts it."""

    @property
    def free(self) -> list[LinearSpec]:
        """Linears whose scheme a policy chooses."""
        return [spec for spec in self.specs if spec.name not in self.fixed]


def resolve_rules(
    specs: Sequence[LinearSpec], config: AllocationConfig, quantization: QuantizationConfig
) -> Rules:
    """Apply skip_router, skip_attention, lm_head and the overrides, in that order.

    Raises PlanError for a pattern that matches nothing, for an override that says nothing, and under granularity
    fused for activations that one kernel cannot have.
    """
    head = None if config.lm_head is None else _head_scheme(config.lm_head, quantization)
    rows = tuple(spec for spec in specs if spec.role != "lm_head")
    fixed = {spec.name: BF16 for spec in rows if _is_kept(spec, config)}
    activations: dict[str, str] = {}
    names = {spec.name for spec in rows}
    # A tied head has no weight of its own on disk, but plans may still say that it is skipped.
    allowed = dict.fromkeys((*(spec.name for spec in rows), HEAD))
    for override in config.overrides:
        matched = _matches(override.pattern, allowed)
        scheme = _override_scheme(override, config, quantization)
        if matched == [HEAD]:
            head = head if scheme is None else scheme
            if override.aq is not None:
                activations[HEAD] = override.aq
        elif HEAD in matched:
            _note_head(override, scheme)
        for name in names.intersection(matched):
            if scheme is not None:
                fixed[name] = scheme
            if override.aq is not None:
                activations[name] = override.aq
    if granularity_of(config) == "fused":
        _check_kernels([s for s in rows if fixed.get(s.name) != BF16], activations, config)
    if head is None or head == BF16:
        if Scheme.parse(activations.pop(HEAD, "bf16")) != BF16:
            raise PlanError(
                f"an override asks for activations of {HEAD}, which stays as it is; set allocation.lm_head, "
                "such as int8-g128, or remove its aq"
            )
        return Rules(rows, fixed, activations)
    spec = next((spec for spec in specs if spec.role == "lm_head"), None)
    if spec is None:
        raise ValueError(f"{HEAD} is to be quantized, and is not among the linears")
    return Rules(rows, fixed, activations, (spec, head))


def _check_kernels(
    quantized: Sequence[LinearSpec], activations: Mapping[str, str], config: AllocationConfig
) -> None:
    """Raise PlanError where linears that one kernel computes, from one input, would round it differently."""
    for group in group_linears(quantized, "fused"):
        wanted = {
            s.name: activations.get(s.name) or config.default.aq or "bf16" for s in group.specs
        }
        (name, form), *others = wanted.items()
        for other, found in others:
            if found != form:
                raise PlanError(
                    f"{name} and {other} are one kernel and read one input; found aq {form} and aq {found} (bf16: "
                    "none). Use one pattern for both, or allocation.granularity=linear"
                )


def default_scheme(config: AllocationConfig, quantization: QuantizationConfig) -> Scheme:
    """The scheme that `allocation.default` describes."""
    return _parse("allocation.default", config.default.wq, config.default.group_size, quantization)


def _head_scheme(text: str, quantization: QuantizationConfig) -> Scheme:
    return _parse("allocation.lm_head", text, None, quantization)


def granularity_of(config: AllocationConfig) -> Granularity:
    """What shares one format: what serving kernels need for optimised plans, unless the config says."""
    return config.granularity or ("fused" if config.policy in ("budget", "alpha") else "linear")


def finish_plan(rules: Rules, chosen: Mapping[str, Scheme], config: AllocationConfig) -> QuantPlan:
    """Fixed and chosen schemes in the order of the specs, with the activation formats."""
    schemes = {spec.name: rules.fixed.get(spec.name) or chosen[spec.name] for spec in rules.specs}
    activations = {
        spec.name: name
        for spec in rules.specs
        if (name := _activation(spec.name, schemes[spec.name], rules, config)) is not None
    }
    if rules.head is None:
        return QuantPlan(rules.specs, schemes, activations)
    head, scheme = rules.head
    wanted = rules.activations.get(head.name, "bf16")  # no default reaches it
    if Scheme.parse(wanted) != BF16:
        activations[head.name] = wanted
    return QuantPlan((*rules.specs, head), schemes | {head.name: scheme}, activations)


def _is_kept(spec: LinearSpec, config: AllocationConfig) -> bool:
    skip_attention = config.skip_attention
    if skip_attention is None:
        skip_attention = config.policy == "ratio"
    if spec.role == "router":
        return config.skip_router
    return skip_attention and spec.role in ATTENTION_ROLES


def _matches(pattern: str, names: Collection[str]) -> list[str]:
    if pattern in names:  # plans that name every linear, tens of thousands of them
        return [pattern]
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern.removeprefix("re:"))
        except re.error as error:
            raise PlanError(
                f"override pattern {pattern!r} is not a regular expression: {error}"
            ) from error
        matched = [name for name in names if expression.match(name)]
    else:
        matched = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
    if not matched:
        raise PlanError(
            f"override pattern {pattern!r} matches no linear; nearest names: "
            f"{', '.join(_nearest_names(pattern, names))}. Patterns are globs over whole names "
            "without .weight, or regular expressions after re:"
        )
    return matched


def _nearest_names(pattern: str, names: Collection[str], count: int = 3) -> list[str]:
    """Names like the pattern as a whole or in one part, each an example of those that differ in numbers."""
    wanted = _without_numbers(re.sub(r"[*?^$\\]+", "", pattern.removeprefix("re:")).strip("."))
    examples: dict[str, str] = {}
    for name in sorted(names):
        examples.setdefault(_without_numbers(name), name)
    return [
        examples[form] for form in sorted(examples, key=lambda f: -_likeness(wanted, f))[:count]
    ]


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _likeness(wanted: str, name: str) -> float:
    last = wanted.rpartition(".")[2]
    pairs = [(wanted, name), *((last, part) for part in name.split("."))]
    return max(difflib.SequenceMatcher(None, one, other).ratio() for one, other in pairs)


def _override_scheme(
    override: Override, config: AllocationConfig, quantization: QuantizationConfig
) -> Scheme | None:
    """The scheme an override asks for, None when it speaks of activations only."""
    where = f"override {override.pattern!r}"
    if override.skip:
        return BF16
    wq = override.wq
    if wq is None and override.group_size is None:
        if override.aq is None:
            raise PlanError(f"{where} says nothing; give it wq, aq, group_size or skip: true")
        return None
    if wq is None:
        if config.policy not in ("uniform", "manual"):
            raise PlanError(
                f"{where} has a group_size but no wq, and policy {config.policy} has no default "
                "format; add wq, such as int4"
            )
        wq = config.default.wq
    group = config.default.group_size if override.group_size is None else override.group_size
    return _parse(where, wq, group, quantization)


def _parse(where: str, text: str, group: int | None, quantization: QuantizationConfig) -> Scheme:
    scheme = Scheme.parse(
        text,
        group_size=quantization.group_size if group is None else group,
        symmetric=quantization.symmetric,
    )
    fixed_group = scheme.number_format.group_size
    if group is not None and fixed_group not in (None, group):
        reporter().note(
            f"{where}: {scheme.format} has {fixed_group} weights per scale by definition; "
            f"group_size {group} is ignored"
        )
    return scheme


def _note_head(override: Override, scheme: Scheme | None) -> None:
    """A pattern over many linears does not reach the head, which has a setting of its own."""
    if (scheme or BF16) != BF16 or Scheme.parse(override.aq or "bf16") != BF16:
        reporter().note(
            f"override {override.pattern!r} also matches {HEAD}, whose format allocation.lm_head says"
        )


def _activation(name: str, scheme: Scheme, rules: Rules, config: AllocationConfig) -> str | None:
    """The simulated activation format; the default is for quantized weights, bf16 means none."""
    fallback = None if scheme == BF16 else config.default.aq
    wanted = rules.activations.get(name, fallback)
    return None if wanted is None or Scheme.parse(wanted) == BF16 else wanted
