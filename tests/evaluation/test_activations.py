"""Simulated activations are those that plain transformers computes when a packed checkpoint asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES, QuantizationScheme
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from safetensors.torch import load_file
from torch import Tensor, nn

from alphaquant.config import EvaluationConfig
from alphaquant.errors import FormatError, ModelError
from alphaquant.evaluation.activations import (
    asked_activations,
    round_tokens,
    simulated_activations,
)
from alphaquant.evaluation.evaluate import evaluate_checkpoint
from alphaquant.export.compressed_tensors import config_group
from alphaquant.formats.carriers import ACTIVATIONS, carrier_of
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.loading import load_model
from tests.export.packed_models import (
    SIZES,
    answers,
    exported,
    logits,
    make_wide,
    stock_logits,
)
from tests.tiny import make_model

CPU = torch.device("cpu")
CT: Any = "compressed-tensors"
PRESETS = {
    "W8A8": ("int8-perchannel", "int8"),
    "FP8_DYNAMIC": ("fp8-perchannel", "fp8"),
    "W4A4": ("int4-g128", "int4"),
    "W4A8": ("int4-g128", "int8"),
    "W4AFP8": ("int4-g128", "fp8"),
    "W8A16": ("int8-g128", None),
    "MXFP4": ("mxfp4", "mxfp4"),
    "MXFP4A16": ("mxfp4", None),
    "MXFP6A8": ("mxfp6", "mxfp8"),
    "MXFP8": ("mxfp8", "mxfp8"),
    "NVFP4A16": ("nvfp4", None),
}
PAIRS = [
    ("int8-perchannel", "int8", "int-quantized"),
    ("fp8-perchannel", "fp8", "float-quantized"),
    ("int4-g32", "int8", "pack-quantized"),
    ("int4-g32", "int4", "pack-quantized"),
    ("int4-g32", "fp8", "pack-quantized"),
    ("mxfp8", "mxfp8", "mxfp8-quantized"),
    ("mxfp4", "mxfp8", "mxfp4-pack-quantized"),
    ("mxfp4", "mxfp4", "mxfp4-pack-quantized"),
    ("mxfp6", "mxfp8", "mxfp6-pack-quantized"),
]


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_written_is_what_llm_compressor_writes(preset: str) -> None:
    text, activation = PRESETS[preset]
    written = config_group(Scheme.parse(text), activation, ["Linear"])
    ours = QuantizationScheme.model_validate(written | {"format": None})
    theirs = QuantizationScheme(targets=["Linear"], **PRESET_SCHEMES[preset])
    assert ours.model_dump() == theirs.model_dump()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inputs_are_rounded_as_by_compressed_tensors(activation: str, dtype: torch.dtype) -> None:
    x = inputs().to(dtype)
    found = round_tokens(x, Scheme.parse(activation, group_size=None))
    # in bf16 the other side also rounds the scale and the quotient to bf16, which no kernel does
    assert torch.equal(found, reference(x.float(), activation))


@pytest.mark.parametrize("activation", ["mxfp4", "mxfp6", "mxfp8"])
def test_mx_inputs_do_not_depend_on_the_dtype(activation: str) -> None:
    x = inputs().bfloat16()
    x = x.where(x.view(torch.int16) & 0x7F != 0x60, 1.0)  # a tie of mxfp8's rules, see below
    found = round_tokens(x, Scheme.parse(activation, group_size=None))
    assert torch.equal(found.bfloat16(), reference(x, activation))


def test_a_tie_of_the_two_rules_of_mxfp8_goes_as_in_vllm() -> None:
    """At 1.75 times a power of two the smaller scale still holds the largest value."""
    x = torch.zeros(1, 32)
    x[0, :2] = torch.tensor([1.75, 0.0078125])
    assert round_tokens(x, Scheme.parse("mxfp8"))[0, :2].tolist() == [1.75, 0.0078125]


def test_tokens_are_scaled_by_themselves() -> None:
    x = inputs()
    scheme = Scheme.parse("int8", group_size=None)
    together = round_tokens(x, scheme)
    assert torch.equal(together[:, 3], round_tokens(x[:, 3], scheme))
    assert torch.equal(round_tokens(torch.zeros(2, 64), scheme), torch.zeros(2, 64))


@pytest.mark.parametrize(("text", "activation", "form"), PAIRS)
def test_plain_transformers_computes_what_is_evaluated(
    text: str, activation: str, form: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", **SIZES))
    _, packed = exported(
        checkpoint, lambda spec: text, CT, tmp_path, activations=everywhere(checkpoint, activation)
    )
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert config["format"] == form
    plain = stock_logits(packed, computed=torch.float32)
    assert torch.equal(evaluated(packed, checkpoint), plain)
    assert not torch.allclose(answers(load_model(packed, CPU)), plain, atol=1e-4)


@pytest.mark.parametrize("model_type", ["olmoe", "qwen2_moe"])
def test_experts_are_asked_and_simulated_one_by_one(model_type: str, tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", model_type)
    asked = everywhere(checkpoint, "mxfp4")
    _, packed = exported(checkpoint, lambda spec: "int4-g32", CT, tmp_path, activations=asked)
    assert asked_activations(packed) == asked
    model = load_model(packed, CPU)
    with simulated_activations(model, checkpoint.architecture, asked):
        seen = inputs_of(model, checkpoint, list(asked))
    experts = {spec.name for spec in checkpoint.specs if spec.expert is not None}
    assert seen.keys() - experts == asked.keys() - experts
    assert seen.keys() & experts
    for name, x in seen.items():
        assert torch.equal(x, round_tokens(x, Scheme.parse("mxfp4"))), name


def test_scores_of_a_packed_folder_include_the_activations_it_asks_for(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", **SIZES))
    asked, scores = everywhere(checkpoint, "int4"), {}
    config = EvaluationConfig(tasks=(), limit=2, sequence_length=64)
    for name, activations in (("both", asked), ("weights", {})):
        _, packed = exported(
            checkpoint, lambda spec: "int8-g32", CT, tmp_path / name, activations=activations
        )
        told = [None, activations] if name == "both" else [None]
        for given in told:
            table = evaluate_checkpoint(
                checkpoint, packed, config, device=CPU, batch_size=1, activations=given
            )
            scores[name, given is None] = table.set_index("metric")["value"]["kl_mean"]
    assert scores["both", True] == scores["both", False] > 10 * scores["weights", True] > 0


def test_a_dense_checkpoint_asks_for_nothing(tmp_path: Path) -> None:
    assert asked_activations(make_model(tmp_path / "model", "llama")) == {}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"dynamic": False}, "int8 with token scales .fixed"),
        ({"strategy": "tensor"}, "int8 with tensor scales .found"),
        ({"num_bits": 6}, "int6"),
    ],
)
def test_inputs_that_are_not_simulated_are_said(
    change: dict[str, Any], found: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", **SIZES))
    _, packed = exported(
        checkpoint,
        lambda spec: "int4-g32",
        CT,
        tmp_path,
        activations=everywhere(checkpoint, "int8"),
    )
    config = json.loads((packed / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] |= change
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=found):
        asked_activations(packed)
    answers(load_model(packed, CPU))


def test_an_overflowing_input_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama"))
    model = load_model(checkpoint.path, CPU)
    name = "model.layers.1.mlp.down_proj"
    broken: Any = model.get_submodule("model.layers.1.mlp.up_proj")
    broken.weight.data.fill_(float("inf"))
    with (
        simulated_activations(model, checkpoint.architecture, {name: "int8"}),
        pytest.raises(ModelError, match=r"input of model.layers.1.mlp.down_proj holds NaN"),
    ):
        answers(model)


@pytest.mark.parametrize(
    ("export", "activation", "reason"),
    [
        ("gptq", "int8", "gptq checkpoints ask for no activation format"),
        ("quark", "mxfp4", "quark checkpoints ask for no activation format"),
        (CT, "nvfp4", "no checkpoint asks for activations as nvfp4"),
        (CT, "int8-g32", "no checkpoint asks for activations as int8-g32"),
        (CT, "int8-asym", "no checkpoint asks for activations as int8-perchannel-asym"),
        (CT, "fp6", "no checkpoint asks for activations as fp6"),
    ],
)
def test_activations_that_nobody_is_asked_for(export: Any, activation: str, reason: str) -> None:
    scheme = Scheme.parse("mxfp4" if export == "quark" else "int4-g32")
    assert str(carrier_of(scheme, export, activation)).startswith(reason)


def test_inputs_of_kept_linears_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", **SIZES))
    with pytest.raises(FormatError, match=r"self_attn.o_proj is kept bf16 and has activations as"):
        exported(
            checkpoint,
            lambda spec: "bf16" if spec.role == "o" else "int4-g32",
            CT,
            tmp_path,
            activations=everywhere(checkpoint, "int8"),
        )


@pytest.mark.parametrize("model_type", ["llama", "olmoe"])
def test_a_cache_in_fp8_is_asked_for_with_scales_of_one(model_type: str, tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", model_type)
    dense, packed = exported(checkpoint, lambda spec: "int4-g32", CT, tmp_path, kv_cache="fp8")
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    asked = config["kv_cache_scheme"]
    assert (asked["num_bits"], asked["type"], asked["strategy"]) == (8, "float", "tensor")
    tensors = load_file(packed / "model.safetensors")
    scales = [t for name, t in tensors.items() if name.endswith(("k_scale", "v_scale"))]
    assert [float(scale) for scale in scales] == [1.0] * 4
    assert torch.equal(logits(packed), logits(dense))  # ours leaves keys and values alone
    assert not torch.equal(stock_logits(packed), logits(dense))


def everywhere(checkpoint: Checkpoint, activation: str) -> dict[str, str]:
    return {s.name: activation for s in checkpoint.specs if s.role not in ("router", "lm_head")}


def inputs() -> Tensor:
    """Two windows of tokens with outliers and a token of zeros # [2, 7, 96]"""
    x = torch.randn(2, 7, 96, generator=torch.Generator().manual_seed(0))
    x[..., 5] *= 40
    x[1, 2] = 0
    return x


def reference(x: Tensor, activation: str) -> Tensor:
    """compressed-tensors' own rounding of inputs."""
    written = config_group(Scheme.parse("int4-g32"), activation, ["Linear"])["input_activations"]
    args = QuantizationArgs.model_validate(written)
    scale, zero = compute_dynamic_scales_and_zp(x, args, nn.Identity())
    rounded: Tensor = fake_quantize(x, scale, zero, args)
    return rounded


def evaluated(folder: Path, original: Checkpoint) -> Tensor:
    """Logits of the model that `alphaquant evaluate` scores."""
    model = load_model(folder, CPU)
    with simulated_activations(model, original.architecture, asked_activations(folder)):
        return answers(model)


def inputs_of(model: nn.Module, checkpoint: Checkpoint, names: list[str]) -> dict[str, Tensor]:
    """What linears multiply in one pass; experts without tokens are left out."""
    seen: dict[str, Tensor] = {}
    for name in names:
        module = model.get_submodule(checkpoint.architecture.module_name(name))
        module.register_forward_pre_hook(
            lambda _module, args, name=name: seen.update({name: args[0]})
        )
    answers(model)
    return seen
