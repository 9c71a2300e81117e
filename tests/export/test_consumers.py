"""What a consumer would refuse is refused before anything is quantized, with the linears and a plan that passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from alphaquant.algorithms.allocation_groups import group_linears
from alphaquant.config import ExportConfig
from alphaquant.errors import PlanError
from alphaquant.export.consumers import candidates, require, violations
from alphaquant.export.group_rules import Violation
from alphaquant.export.linear_rules import Candidate, Destination, fits
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.support import SUPPORT, all_load
from alphaquant.models.architecture import Architecture
from alphaquant.models.linear import LinearSpec
from alphaquant.models.rows import ARCHITECTURES, architecture_of
from alphaquant.models.tensors import tensor_index
from alphaquant.plan import QuantPlan
from benchmarks.consumers.plans import (
    MODELS,
    Case,
    attention,
    blocks,
    every,
    expert,
    roles,
)
from benchmarks.consumers.vllm_plans import BROKEN, HEADS, OTHER_MODELS, SOUND
from tests.tiny import make_model

Model = tuple[Architecture, list[LinearSpec]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """Architecture and linears of one of MODELS, made when it is first asked for."""
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            kind, changes = MODELS[name]
            folder = make_model(tmp_path_factory.mktemp(name) / name, kind, **changes)
            raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            shapes = {tensor: entry.shape for tensor, entry in tensor_index(folder).items()}
            row = architecture_of(raw)
            made[name] = (row, row.with_head(row.linears(raw, shapes), shapes))
        return made[name]

    return get


def told(case: Case, model: Callable[[str], Model]) -> list[Violation]:
    architecture, specs = model(case.model)
    return violations(case.plan(specs), architecture, export_of(case))


def export_of(case: Case) -> ExportConfig:
    return ExportConfig.model_validate(
        {
            "format": case.export,
            "consumers": case.asked,
            "tensor_parallel": case.tensor_parallel,
        }
    )


LOADING = [case for case in SOUND + OTHER_MODELS + HEADS if case.rule is None]
REFUSED = [case for case in BROKEN + HEADS if case.rule]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_a_broken_plan_is_refused_by_its_rule(case: Case, model: Callable[[str], Model]) -> None:
    found = told(case, model)
    assert case.rule in {violation.rule for violation in found}
    names = {spec.name for spec in model(case.model)[1]}
    for violation in found:
        assert violation.linears
        assert names.issuperset(violation.linears)
        assert violation.linears[0] in str(violation)


@pytest.mark.parametrize("case", LOADING, ids=lambda case: case.name)
def test_a_sound_plan_is_accepted(case: Case, model: Callable[[str], Model]) -> None:
    assert told(case, model) == []


@pytest.mark.parametrize(
    "case",
    [c for c in BROKEN if c.rule in ("format", "shape", "words", "tensor_parallel", "fused")],
    ids=lambda case: case.name,
)
def test_the_remedy_mends_the_plan(case: Case, model: Callable[[str], Model]) -> None:
    """Doing what every message says leads to a plan that passes."""
    architecture, specs = model(case.model)
    plan = case.plan(specs)
    for _ in range(3):
        found = violations(plan, architecture, export_of(case))
        if not found:
            return
        schemes = dict(plan.schemes)
        for violation in found:
            scheme = Scheme.parse(violation.remedy.split()[1])
            schemes |= dict.fromkeys(violation.linears, scheme)
        plan = QuantPlan(plan.specs, schemes, plan.activations)
    assert violations(plan, architecture, export_of(case)) == []


@pytest.mark.parametrize("name", ["llama", "olmoe", "qwen2_moe", "mixtral"])
def test_fused_plans_never_break_the_rule_of_fusing(
    name: str, model: Callable[[str], Model]
) -> None:
    """Random schemes for the groups that granularity=fused makes; formats may still be refused, mixtures not."""
    architecture, specs = model(name)
    random = np.random.default_rng(0)
    choices = ["bf16", "int2", "int3", "int4", "int8-g64", "mxfp4", "mxfp8", "nvfp4", "int4-asym"]
    rows = [spec for spec in specs if spec.role != "lm_head"]
    for _ in range(50):
        schemes: dict[str, Scheme] = {}
        for group in group_linears(rows, "fused"):
            text = "bf16" if group.specs[0].role == "router" else str(random.choice(choices))
            schemes |= dict.fromkeys((spec.name for spec in group.specs), Scheme.parse(text))
        plan = QuantPlan(rows, schemes)
        for consumer in ("vllm", "sglang"):
            export = ExportConfig(format="compressed-tensors", consumers=(consumer,))  # type: ignore[arg-type]
            rules = {violation.rule for violation in violations(plan, architecture, export)}
            assert rules <= ({"format"} if consumer == "sglang" else set())


def test_a_message_says_who_what_where_and_what_to_do(model: Callable[[str], Model]) -> None:
    architecture, specs = model("olmoe")
    plan = Case("", "olmoe", expert(3, "int8", "int4")).plan(specs)
    export = ExportConfig(format="compressed-tensors", consumers=("vllm",))
    with pytest.raises(PlanError) as error:
        require(violations(plan, architecture, export))
    assert str(error.value) == (
        "vllm: all experts of block 0 are one kernel and must share one scheme; found int4-g128, int8-g128, "
        "and 1 more such groups are mixed [24 linears: model.layers.0.mlp.experts.0.gate_proj, "
        "model.layers.0.mlp.experts.0.up_proj, model.layers.0.mlp.experts.0.down_proj, ...]. "
        "Use int8-g128 for all of them; allocation.granularity=fused sees to it."
    )


def test_a_format_that_another_export_carries_is_sent_there(model: Callable[[str], Model]) -> None:
    architecture, specs = model("llama")
    plan = Case("", "llama", every("mxfp6")).plan(specs)
    export = ExportConfig(format="compressed-tensors", consumers=("vllm",))
    (found,) = violations(plan, architecture, export)
    assert found.remedy == "Use int6-g64 for them, or export.format=quark."


def test_groups_that_do_not_fit_are_mended_for_all(model: Callable[[str], Model]) -> None:
    architecture, specs = model("llama-64")
    export = ExportConfig(format="compressed-tensors", consumers=("vllm",))
    (found,) = violations(Case("", "llama-64", every("int4")).plan(specs), architecture, export)
    assert found.remedy == "Use int4-g64 for them, or quantization.group_size=64 for all."


def test_dense_checkpoints_load_anywhere(model: Callable[[str], Model]) -> None:
    architecture, specs = model("olmoe")
    plan = Case("", "olmoe", expert(0, "fp6", "int4")).plan(specs)
    assert violations(plan, architecture, ExportConfig(consumers=("vllm", "sglang"))) == []


@pytest.mark.parametrize(
    ("mixture", "consumer", "export", "rule"),
    [
        (every("fp4"), None, "compressed-tensors", "carrier"),
        (every("int6"), None, "gptq", "carrier"),
        (every("int4-g96"), None, "compressed-tensors", "shape"),
        (every("int3"), "transformers", "gptq", "format"),
        (every("int4"), "gptqmodel", "compressed-tensors", "consumer"),
        (every("mxfp4"), "transformers", "quark", "consumer"),
        (blocks("int4", "int8"), "transformers", "gptq", "uniform"),
        (every("int3"), "sglang", "compressed-tensors", "format"),
        (every("mxfp4"), "sglang", "compressed-tensors", "format"),
        (roles("int4", v="int8"), "sglang", "gptq", "fused"),
        (attention("mxfp8", "int4"), "sglang", "compressed-tensors", "format"),
    ],
)
def test_rules_of_other_consumers(
    mixture: Any, consumer: str | None, export: Any, rule: str, model: Callable[[str], Model]
) -> None:
    architecture, specs = model("llama")
    asked: Any = (consumer,) if consumer else ()
    found = violations(
        Case("", "llama", mixture).plan(specs),
        architecture,
        ExportConfig(format=export, consumers=asked),
    )
    assert {violation.rule for violation in found} == {rule}
    assert {violation.consumer for violation in found} == {consumer or export}


def test_one_checkpoint_can_serve_two_consumers_where_names_agree(
    model: Callable[[str], Model],
) -> None:
    export = ExportConfig(format="gptq", consumers=("vllm", "gptqmodel"))
    for name in ("olmoe", "llama"):
        architecture, specs = model(name)
        plan = Case("", name, blocks("int4", "int8")).plan(specs)
        assert violations(plan, architecture, export) == []


def test_activations_count_only_where_the_checkpoint_names_them(
    model: Callable[[str], Model],
) -> None:
    _, specs = model("llama")
    plan = Case("", "llama", every("int4"), activation="mxfp8").plan(specs)
    forms: Any = ("compressed-tensors", "gptq")
    inputs = [
        {linear.activation for linear in candidates(plan, ExportConfig(format=form))}
        for form in forms
    ]
    assert inputs == [{"mxfp8"}, {None}]


def test_every_consumer_has_a_row_for_every_export() -> None:
    rows = [(row.consumer, row.export) for row in SUPPORT]
    assert len(rows) == len(set(rows)) == 4 * 3
    assert all(bool(row.linears) is not bool(row.refuses) for row in SUPPORT)


def test_kept_linears_are_never_in_the_way() -> None:
    spec = LinearSpec("model.layers.0.mlp.down_proj", "down", 0, None, 7, 13, "in", "down")
    kept = Candidate(spec, Scheme("bf16"))
    to = Destination.of("gptq", ("vllm", "gptqmodel"), 3, "llama")
    assert fits(to, kept)
    assert ARCHITECTURES["llama"].module_names == ()


def test_a_menu_is_narrowed_to_what_all_consumers_load() -> None:
    assert all_load(("vllm", "transformers"), "compressed-tensors", "mxfp8")
    assert not all_load(("vllm", "transformers"), "compressed-tensors", "mxfp6")
    assert all_load(("vllm",), "quark", "mxfp6")
