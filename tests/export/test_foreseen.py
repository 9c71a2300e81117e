"""What can be told of a checkpoint before anything is computed: what will not load, and how large it will be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alphaquant.config import AllocationConfig, ExportConfig, QuantizationConfig
from alphaquant.export.foreseen import foreseen, foreseen_need, known_plan
from alphaquant.export.size import checkpoint_size
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.rows import ARCHITECTURES
from alphaquant.models.tensors import tensor_index
from benchmarks.consumers.checkpoints import make
from benchmarks.consumers.plans import Case, attention, blocks, every
from tests.specs import moe_specs
from tests.tiny import make_model

VLLM = ExportConfig(format="compressed-tensors", consumers=("vllm",))
GROUPS = QuantizationConfig(group_size=8)


def rules(export: ExportConfig = VLLM, **allocation: Any) -> list[str]:
    config = AllocationConfig.model_validate(allocation)
    found = foreseen(moe_specs(), ARCHITECTURES["olmoe"], config, GROUPS, export)
    return [violation.rule for violation in found]


@pytest.mark.parametrize(
    ("allocation", "expected"),
    [
        ({"policy": "uniform", "default": {"wq": "int4"}}, []),
        ({"policy": "uniform", "default": {"wq": "fp8-perchannel"}}, ["format"]),
        ({"policy": "budget", "formats": ["int4", "int8"]}, []),
        ({"policy": "alpha", "formats": ["int4", "int8-asym"]}, ["format"]),
        ({"policy": "budget", "formats": ["int4", "int8"], "granularity": "linear"}, ["granularity"]),
        ({"policy": "ratio", "granularity": "expert", "bf16_ratio": 0.5}, ["shape", "granularity"]),
    ],
)  # fmt: skip
def test_policies_that_could_choose_what_does_not_load(
    allocation: dict[str, Any], expected: list[str]
) -> None:
    assert rules(**allocation) == expected


def test_a_format_of_the_menu_is_to_be_left_out() -> None:
    config = AllocationConfig(formats=("int4", "int8-asym"))
    (found,) = foreseen(moe_specs(), ARCHITECTURES["olmoe"], config, GROUPS, VLLM)
    assert (
        found.remedy
        == "Leave int8-g8-asym out of allocation.formats. Instead: Use int8-g8 for them."
    )


def test_groups_that_fit_no_format_of_the_menu_are_told_once() -> None:
    config = AllocationConfig(formats=("int4", "int8"))
    groups = QuantizationConfig(group_size=32)
    found = foreseen(moe_specs(), ARCHITECTURES["olmoe"], config, groups, VLLM)
    assert [(violation.rule, len(violation.linears)) for violation in found] == [("shape", 8)]


def test_an_override_that_no_choice_can_agree_with_is_refused() -> None:
    kept = {"overrides": [{"pattern": "*.q_proj", "skip": True}], "policy": "budget"}
    assert rules(**kept, formats=["int4", "int8"]) == ["fused"]
    assert rules(**kept, formats=["int4", "bf16"]) == []


def test_dense_is_not_looked_at() -> None:
    assert rules(ExportConfig(consumers=("vllm",)), policy="uniform", default={"wq": "fp6"}) == []


def test_only_plans_that_look_at_no_weights_are_known() -> None:
    uniform = AllocationConfig(policy="uniform")
    assert known_plan(moe_specs(), uniform, GROUPS) is not None
    assert known_plan(moe_specs(), AllocationConfig(), GROUPS) is None


@pytest.mark.parametrize(
    ("allocation", "form", "needs"),
    [
        ({"policy": "uniform", "default": {"wq": "int4"}}, "compressed-tensors", "nothing"),
        ({"policy": "uniform", "default": {"wq": "nvfp4"}}, "compressed-tensors", "alphaquant.hf"),
        ({"policy": "budget", "formats": ["int4", "int8"]}, "compressed-tensors", None),
        ({"policy": "budget", "formats": ["int4-asym", "int8-asym"]}, "compressed-tensors", "alphaquant.hf"),
        ({"policy": "budget", "formats": ["int4", "bf16"]}, "gptq", "alphaquant.load"),
        ({"policy": "budget"}, "dense", "nothing"),
    ],
)  # fmt: skip
def test_what_transformers_will_need_is_foreseen_where_no_choice_changes_it(
    allocation: dict[str, Any], form: Any, needs: str | None
) -> None:
    config = AllocationConfig.model_validate(allocation)
    export = ExportConfig(format=form)
    found = foreseen_need(moe_specs(), ARCHITECTURES["olmoe"], config, GROUPS, export)
    assert found == needs


@pytest.mark.parametrize(
    ("mixture", "export"),
    [
        (every("int4-asym"), "compressed-tensors"),
        (attention("nvfp4", "int3-g32"), "compressed-tensors"),
        (every("mxfp6"), "quark"),
        (blocks("int8", "bf16"), "gptq"),
    ],
)
def test_the_size_is_that_of_the_checkpoint(mixture: Any, export: Any, tmp_path: Path) -> None:
    case = Case("size", "olmoe", mixture, export=export)
    made = make(case, tmp_path)
    original = Checkpoint(tmp_path / "models" / "olmoe")
    told = checkpoint_size(case.plan(original.specs), original.entries, ExportConfig(format=export))
    (file,) = made.packed.glob("*.safetensors")
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    assert told.bytes == file.stat().st_size - header
    linears = {f"{spec.name}." for spec in original.specs if spec.role != "lm_head"}
    stored = {n for n in tensor_index(made.packed) if f"{n.rpartition('.')[0]}." in linears}
    assert 2 < told.bits_per_weight < 16
    assert len(stored) >= len(linears)


def test_a_dense_checkpoint_is_as_large_as_the_original(tmp_path: Path) -> None:
    original = Checkpoint(make_model(tmp_path / "model", "llama"))
    plan = Case("", "llama", every("int4")).plan(original.specs)
    told = checkpoint_size(plan, original.entries, ExportConfig())
    assert told.bits_per_weight == 16
    (file,) = original.path.glob("*.safetensors")
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    assert told.bytes == file.stat().st_size - header
