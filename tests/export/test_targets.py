"""Targets are disjoint, cover every linear, and mean in each consumer's way of matching what they mean here."""

from __future__ import annotations

import fnmatch
import re
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from alphaquant.export import compressed_tensors, gptq, quark
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.models.packed_config import storage_rule
from tests.specs import moe_specs
from tests.tiny import make_model


@pytest.fixture(scope="module", params=["llama", "olmoe", "mixtral", "deepseek_v3"])
def specs(request: Any, tmp_path_factory: Any) -> list[LinearSpec]:
    folder: Path = tmp_path_factory.mktemp("models") / request.param
    # twelve blocks: 1 must not mean 10 and 11
    return Checkpoint(make_model(folder, request.param, num_hidden_layers=12)).specs


MIXTURES = {
    "uniform": lambda spec: "int4",
    "by block": lambda spec: "int8" if spec.block in (1, 3) else "int4",
    "kept blocks": lambda spec: "bf16" if spec.block in (1, 3) else "int4",
    "by role": lambda spec: {"down": "int8", "v": "bf16", "k": "int8"}.get(spec.role, "int4"),
    "by expert": lambda spec: ("int4", "int8", "bf16", "int2")[(spec.expert or 0) % 4],
    "all": lambda spec: ("int2", "int3", "int4", "int8", "bf16")[
        zlib.crc32(spec.name.encode()) % 5
    ],
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_compressed_tensors_targets_are_disjoint_and_complete(
    specs: list[LinearSpec], mixture: str
) -> None:
    schemes = plan(specs, mixture)
    config = compressed_tensors.quantization_config(specs, schemes)
    for spec in specs:
        found = [
            Scheme(
                f"int{group['weights']['num_bits']}", group["weights"]["group_size"]
            )  # as vLLM: in file order
            for group in config["config_groups"].values()
            for target in group["targets"]
            if matches(target, spec.name)
        ]
        ignored = [target for target in config["ignore"] if matches(target, spec.name)]
        kept = schemes[spec.name].format == "bf16"
        assert (found, len(ignored)) == (([], 1) if kept else ([schemes[spec.name]], 0)), spec.name


@pytest.mark.parametrize("mixture", MIXTURES)
def test_gptq_rules_mean_the_same_by_linear_and_by_kernel(
    specs: list[LinearSpec], mixture: str
) -> None:
    schemes = plan(specs, mixture)
    config = gptq.quantization_config(specs, schemes)
    kernels: dict[str, set[Any]] = {}
    for spec in specs:
        if spec.role in ("lm_head", "router"):
            continue
        wanted = None if schemes[spec.name].format == "bf16" else schemes[spec.name]
        assert gptq_scheme(config, spec.name) == wanted, spec.name
        if kernel := kernel_of(spec):
            kernels.setdefault(kernel, set()).add(wanted)
    assert kernels
    for kernel, wanted_all in kernels.items():
        if len(wanted_all) == 1:
            assert gptq_scheme(config, kernel) == wanted_all.pop(), kernel


def test_quark_globs_match_linears_and_the_experts_folder(specs: list[LinearSpec]) -> None:
    schemes = {
        spec.name: Scheme("mxfp6" if spec.block == 1 else "mxfp4")
        for spec in specs
        if spec.role not in ("lm_head", "router")
    }
    config = quark.quantization_config(specs, schemes)
    wanted = {"mxfp6": "fp6_e2m3", "mxfp4": "fp4"}
    for spec in specs:
        names = [spec.name]
        if spec.expert is not None:
            names.append(spec.name.rpartition(f".{spec.expert}.")[0])
        for name in names:
            found = {
                layer["weight"]["dtype"]
                for glob, layer in config["layer_quant_config"].items()
                if (name in glob if "*" not in glob else fnmatch.fnmatch(name, glob))
            }
            if spec.name in schemes:
                assert found == {wanted[schemes[spec.name].format]}, name
            else:
                assert not found
                assert spec.name in config["exclude"]


@pytest.mark.parametrize("mixture", MIXTURES)
def test_the_reader_understands_what_is_written(specs: list[LinearSpec], mixture: str) -> None:
    schemes = plan(specs, mixture)
    for config in (
        compressed_tensors.quantization_config(specs, schemes),
        gptq.quantization_config(specs, schemes),
    ):
        rule = storage_rule(config)
        for name, scheme in schemes.items():
            if scheme.format != "bf16":
                assert rule(name).scheme == scheme


@pytest.mark.parametrize("writer", [compressed_tensors, gptq, quark])
def test_the_reader_looks_names_up_where_every_expert_has_its_own_scheme(writer: Any) -> None:
    specs = moe_specs(blocks=16, experts=64)
    menu = ("mxfp4", "mxfp6") if writer is quark else ("int4-g32", "int8-g32", "int2-g32")
    schemes = {
        spec.name: Scheme.parse(menu[zlib.crc32(spec.name.encode()) % len(menu)])
        for spec in specs
        if spec.role not in ("lm_head", "router")
    }
    rule = storage_rule(writer.quantization_config(specs, schemes))
    began = time.process_time()
    assert {name: rule(name).scheme for name in schemes} == schemes
    # every name against every row would be ten million matches, and minutes for a model of 18,000 linears
    assert time.process_time() - began < 1


def plan(specs: list[LinearSpec], mixture: str) -> dict[str, Scheme]:
    return {
        spec.name: Scheme.parse(
            "bf16" if spec.role in ("lm_head", "router") else MIXTURES[mixture](spec)
        )
        for spec in specs
    }


def matches(target: str, name: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), name) is not None
    return target == name


def gptq_scheme(config: dict[str, Any], name: str) -> Scheme | None:
    """As GPTQModel and vLLM do it: the first pattern that matches counts."""
    for pattern, settings in config["dynamic"].items():
        if re.match(pattern[2:], name):
            if pattern.startswith("-:"):
                return None
            return Scheme(f"int{settings['bits']}", settings["group_size"])
    return Scheme(f"int{config['bits']}", config["group_size"])


def kernel_of(spec: LinearSpec) -> str | None:
    """What vLLM calls the kernel that a linear is part of."""
    parent, _, leaf = spec.name.rpartition(".")
    if spec.expert is not None:
        return spec.name.rpartition(f".{spec.expert}.")[0]
    kernels = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    return next((f"{parent}.{name}" for name, leaves in kernels.items() if leaf in leaves), None)
