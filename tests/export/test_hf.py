"""After `import alphaquant.hf`, plain transformers loads every mixture exactly, and without it as it always did."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from transformers.integrations.compressed_tensors import CompressedTensorsDequantize

from alphaquant import hf
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.models.rows import ARCHITECTURES
from tests.export.packed_models import (
    PACKABLE,
    Mixture,
    by_block,
    by_expert,
    by_role,
    exported,
    logits,
    make_wide,
    stock_logits,
)

hf.remove()  # collecting this file must not change transformers for the others
QUICK = ("llama", "mixtral", "olmoe")
DENSE = [name for name in PACKABLE if not ARCHITECTURES[name].experts_keys]


def partly_kept(spec: LinearSpec) -> str:
    return "bf16" if spec.expert == 1 else "mxfp4"


def three_leaves(spec: LinearSpec) -> str:
    """Neighbours whose tensors have other names: `weight_packed`, `weight` with a scale, `weight` alone."""
    return ("mxfp4", "mxfp8", "bf16")[(spec.expert or 0) % 3]


def some_zero_points(spec: LinearSpec) -> str:
    return "int4-g32-asym" if spec.block == 0 else "int6-g32"


def always(text: str) -> Mixture:
    return lambda spec: text


MIXTURES = {
    "block": by_block,
    "role": by_role,
    "expert": by_expert,
    "partly kept": partly_kept,
    "three leaves": three_leaves,
    "zero points": some_zero_points,
    "nvfp4": always("nvfp4"),
    "mxfp8": always("mxfp8"),
}


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


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_mixture_is_the_dense_one(
    checkpoint: Checkpoint, mixture: str, tmp_path: Path
) -> None:
    dense, packed = exported(checkpoint, MIXTURES[mixture], "compressed-tensors", tmp_path)
    assert torch.equal(stock_logits(packed), logits(dense))


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


def test_importing_it_is_enough(tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", "olmoe")
    dense, packed = exported(checkpoint, by_block, "compressed-tensors", tmp_path)
    torch.save(logits(dense), tmp_path / "expected.pt")
    program = f"""
import torch, alphaquant.hf
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(packed)!r})
found = model(torch.arange(48)[None] * 5 % 250).logits
assert torch.equal(found, torch.load({str(tmp_path / "expected.pt")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
