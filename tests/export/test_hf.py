"""The patch of transformers: when it is on, what it refuses. That every mixture loads, see test_fresh_process.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.integrations.compressed_tensors import CompressedTensorsDequantize

from alphaquant import hf
from alphaquant.evaluation.activations import simulated_activations
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.models.loading import load_model
from alphaquant.models.rows import ARCHITECTURES
from tests.export.packed_models import (
    CPU,
    PACKABLE,
    Mixture,
    always,
    answers,
    by_role,
    exported,
    logits,
    make_wide,
    partly_kept,
    stock_logits,
    three_leaves,
)

hf.remove()  # collecting this file must not change transformers for the others
QUICK = ("llama", "mixtral", "olmoe")
DENSE = [name for name in PACKABLE if not ARCHITECTURES[name].experts_keys]


MODELS = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow])
    for name in PACKABLE
    if name not in DENSE or name in QUICK  # the patch is about experts
]


@pytest.fixture(scope="module", params=MODELS)
def checkpoint(request: Any, tmp_path_factory: Any) -> Checkpoint:
    return make_wide(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    hf.install()
    yield
    hf.remove()


@pytest.mark.parametrize("mixture", [by_role, three_leaves])
def test_so_it_is_when_decoded_at_once(
    checkpoint: Checkpoint, mixture: Mixture, tmp_path: Path
) -> None:
    dense, packed = exported(checkpoint, mixture, "compressed-tensors", tmp_path)
    settings = CompressedTensorsConfig(dequantize=True)
    assert torch.equal(stock_logits(packed, quantization_config=settings), logits(dense))


def test_int8_for_weights_and_activations(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """transformers rounds activations of plain linears, not of experts: those alone, or decoded at once."""
    experts = any(spec.expert is not None for spec in checkpoint.specs)

    def mixture(spec: LinearSpec) -> str:
        return "int8-perchannel" if spec.expert is not None or not experts else "bf16"

    inputs = {
        spec.name: "int8"
        for spec in checkpoint.specs
        if spec.role not in ("router", "lm_head") and mixture(spec) != "bf16"
    }
    dense, packed = exported(
        checkpoint, mixture, "compressed-tensors", tmp_path, activations=inputs
    )
    decoded = {} if experts else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    assert torch.equal(stock_logits(packed, **decoded), logits(dense))


@pytest.mark.parametrize(
    ("inputs", "apart"), [("mxfp4", 0), ("mxfp6", 0), ("mxfp8", 0), ("int8", 1.5), ("fp8", 1.5)]
)
def test_inputs_are_rounded_as_evaluation_simulates(
    inputs: str, apart: float, tmp_path: Path
) -> None:
    """mx formats to the bit. Scales per token are bf16 there: `apart` times as far from ours as ours from unrounded, at most."""
    checkpoint = make_wide(tmp_path / "model", "llama")
    asked = {s.name: inputs for s in checkpoint.specs if s.role != "lm_head"}
    dense, packed = exported(
        checkpoint, always("int4-g32"), "compressed-tensors", tmp_path, activations=asked
    )
    model = load_model(packed, CPU, dtype=torch.bfloat16)
    with simulated_activations(model, checkpoint.architecture, asked):
        ours = answers(model)
    rounding = (ours - logits(dense)).float().norm()
    assert rounding > 0
    assert (stock_logits(packed) - ours).float().norm() <= apart * rounding


def test_the_patch_is_put_on_once_and_comes_off(tmp_path: Path) -> None:
    method = CompressedTensorsDequantize.convert
    hf.install()
    assert CompressedTensorsDequantize.convert is method
    hf.remove()
    assert CompressedTensorsDequantize.convert is not method
    assert CompressedTensorsDequantize.convert.__module__.startswith("transformers.")
    hf.remove()
    checkpoint = make_wide(tmp_path / "model", "olmoe")
    dense, packed = exported(checkpoint, always("nvfp4"), "compressed-tensors", tmp_path)
    assert not torch.allclose(stock_logits(packed), logits(dense), atol=0.01)


@pytest.mark.parametrize("release", ["5.17.0", "5.22.2", "5.25.0", "6.0.0"])
def test_other_releases_are_refused(release: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(transformers, "__version__", release)
    with pytest.raises(
        ImportError, match=rf"knows transformers 5\.23, 5\.24, found {release}.*alphaquant\.load"
    ):
        hf.install()


def test_a_checkpoint_that_lost_an_expert_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = make_wide(tmp_path / "model", "olmoe")
    _, packed = exported(checkpoint, partly_kept, "compressed-tensors", tmp_path)
    tensors = load_file(packed / "model.safetensors")
    del tensors["model.layers.1.mlp.experts.3.up_proj.weight_scale"]
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError):
        AutoModelForCausalLM.from_pretrained(packed)


def test_scales_that_no_group_speaks_of_are_an_error(tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", "llama")
    _, packed = exported(checkpoint, always("fp8-perchannel"), "compressed-tensors", tmp_path)
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["ignore"].append("re:.*down_proj$")
    (packed / "config.json").write_text(json.dumps(config))
    settings = CompressedTensorsConfig(dequantize=True)
    with pytest.raises(RuntimeError):
        stock_logits(packed, quantization_config=settings)
