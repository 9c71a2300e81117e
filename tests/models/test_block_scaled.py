"""FP8 weights under block scales are read as the bf16 weights that they stand for, and everything follows from those."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

import alphaquant
from alphaquant import AlphaQuantModel, QuantizeConfig
from alphaquant.algorithms.alpha import alpha_table
from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.config import AlphaConfig, ModelConfig, RotationConfig
from alphaquant.config.file import parse_config
from alphaquant.errors import ModelError
from alphaquant.export.rotated import export_rotated
from alphaquant.formats.block_scaled import decode_block_scaled
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.loading import load_model
from alphaquant.models.projections import GATED
from alphaquant.models.resolve import read_config, resolve_model
from flows.preflight import foreseen_size
from tests.export.packed_models import exported
from tests.models.fp8 import WEIGHTS, as_fp8, change_config, settings
from tests.models.test_block import stream
from tests.models.test_latent_attention import with_further_layer
from tests.tiny import VOCABULARY, make_model

CPU = torch.device("cpu")
TOKENS = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(1))
MODELS = ("qwen3", "qwen3_moe", "deepseek_v3")
RAGGED = (16, 12)
"""Divides no hidden size, no expert and no latent of the tiny models."""
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """An FP8 folder and its bf16 twin."""
    folder = make_model(tmp_path / "m", request.param)
    return as_fp8(folder, tmp_path / "twin", RAGGED), tmp_path / "twin"


@pytest.fixture
def qwen3(tmp_path: Path) -> Path:
    return as_fp8(make_model(tmp_path / "m", "qwen3"), tmp_path / "twin", RAGGED)


@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16, torch.float8_e8m0fnu])
def test_every_tensor_is_that_of_the_twin_bit_for_bit(
    tmp_path: Path, model_type: str, scales: torch.dtype
) -> None:
    folder = make_model(tmp_path / "m", model_type)
    as_fp8(folder, tmp_path / "twin", RAGGED, scales=scales, apart=scales != torch.float32)
    found, twin = Checkpoint(folder), Checkpoint(tmp_path / "twin")
    assert found.entries.keys() == twin.entries.keys() == found.layout.files.keys()
    assert found.specs == twin.specs
    assert found.whole_bytes(torch.bfloat16) == twin.whole_bytes(torch.bfloat16)
    for name, entry in twin.entries.items():
        assert (found.entries[name].dtype, found.entries[name].shape) == (entry.dtype, entry.shape)
        assert torch.equal(found.tensor(name), twin.tensor(name)), name
    assert len(found.layout.fp8) >= 14
    assert "quantization_config" not in found.raw_config
    assert not hasattr(found.config, "quantization_config")


@pytest.mark.parametrize(("dtype", "stored"), [("float32", "F32"), (None, "BF16")])
def test_values_are_of_the_type_that_the_config_or_the_embedding_names(
    qwen3: Path, dtype: str | None, stored: str
) -> None:
    change_config(qwen3, dtype=dtype, torch_dtype=None)
    checkpoint = Checkpoint(qwen3)
    assert checkpoint.entries[Q_PROJ].dtype == stored
    if stored == "F32":  # products are not rounded, or not twice
        packed = load_file(qwen3 / WEIGHTS)
        scale = packed[f"{Q_PROJ}_scale_inv"][0, 0]
        assert torch.equal(checkpoint.tensor(Q_PROJ)[0, 0], packed[Q_PROJ].float()[0, 0] * scale)


def test_a_block_that_is_larger_than_the_weight_has_one_scale() -> None:
    elements = torch.tensor([[1.0, -2.0, 0.5]]).to(torch.float8_e4m3fn)
    weight = decode_block_scaled(elements, torch.tensor([[3.0]]), (128, 128), torch.bfloat16)
    assert weight.tolist() == [[3.0, -6.0, 1.5]]


@pytest.mark.parametrize(
    ("model_type", "block"), [("qwen3", (16, 16)), ("qwen3_moe", (8, 8)), ("deepseek_v3", (4, 4))]
)
def test_whole_blocks_are_decoded_as_transformers_does(
    tmp_path: Path, model_type: str, block: tuple[int, int]
) -> None:
    folder = as_fp8(make_model(tmp_path / "m", model_type), tmp_path / "twin", block)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=FineGrainedFP8Config(dequantize=True)
    ).state_dict()
    ours = load_model(folder, CPU, dtype=torch.bfloat16).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_streams_loads_and_generates(pair: tuple[Path, Path]) -> None:
    folder, twin = pair
    reference = AutoModelForCausalLM.from_pretrained(twin, dtype=torch.float32)
    model = load_model(folder, CPU)
    with torch.no_grad():
        expected = reference(TOKENS).logits
        assert torch.equal(model(TOKENS).logits, expected)
        assert torch.equal(alphaquant.load_hf_causal_lm(str(folder))(TOKENS).logits, expected)
    torch.testing.assert_close(stream(folder, TOKENS), expected, rtol=1e-4, atol=1e-5)
    assert not hasattr(model.config, "quantization_config")


def test_alpha_and_sensitivity_are_those_of_the_twin(pair: tuple[Path, Path]) -> None:
    first, second = (Checkpoint(folder) for folder in pair)
    pd.testing.assert_frame_equal(*(alpha_table(c, AlphaConfig()) for c in (first, second)))
    schemes = [Scheme.parse("int4-g16")]
    pd.testing.assert_frame_equal(
        *(sensitivity_table(c, TOKENS, schemes, device=CPU) for c in (first, second))
    )


def assert_same(ours: Path, theirs: Path) -> None:
    """Same config.json, same tensors in the one file of weights."""
    assert read_config(ours) == read_config(theirs)
    first, second = (load_file(folder / WEIGHTS) for folder in (ours, theirs))
    assert first.keys() == second.keys()
    assert all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype
        for name in first
    )


def test_quantized_checkpoints_are_those_of_the_twin(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    written = [
        exported(
            Checkpoint(folder),
            lambda spec: "int8-perchannel" if spec.role in GATED.values() else "bf16",
            "compressed-tensors",
            tmp_path / str(i),
            tokens=TOKENS,
            method="gptq",
        )
        for i, folder in enumerate(pair)
    ]
    for ours, theirs in zip(*written, strict=True):
        assert_same(ours, theirs)
    loaded = [load_model(at, CPU) for at in written[0]]
    with torch.no_grad():
        first, second = (model(TOKENS).logits for model in loaded)
    assert torch.equal(first, second)


def test_the_library_quantizes_it(qwen3: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(bits=8, group_size=4, quantization={"method": "rtn"})
    model = AlphaQuantModel.load(qwen3, config, device="cpu")
    model.quantize(list(TOKENS))
    saved = model.save(tmp_path / "saved", format="dense")
    assert "quantization_config" not in read_config(saved)
    with torch.no_grad():
        change = load_model(saved, CPU)(TOKENS).logits - load_model(qwen3, CPU)(TOKENS).logits
    assert 0 < float(change.abs().max()) < 0.1


def test_exports_have_no_file_for_scales(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen3_moe")
    as_fp8(folder, tmp_path / "twin", RAGGED, apart=True)
    checkpoint = Checkpoint(folder)
    dense, _ = exported(checkpoint, lambda spec: "bf16", "compressed-tensors", tmp_path / "out")
    assert [path.name for path in dense.glob("*.safetensors")] == ["model-1-of-2.safetensors"]
    listed = json.loads((dense / "model.safetensors.index.json").read_text())["weight_map"]
    assert listed.keys() == checkpoint.entries.keys()
    assert "quantization_config" not in read_config(dense)
    model, info = AutoModelForCausalLM.from_pretrained(
        dense, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    with torch.no_grad():
        torch.testing.assert_close(
            stream(folder, TOKENS), model(TOKENS).logits, rtol=1e-4, atol=1e-5
        )


def test_a_rotated_model_is_that_of_the_twin(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for i, folder in enumerate(pair):
        (tmp_path / str(i)).mkdir()
        rotated = RotatedCheckpoint(
            Checkpoint(folder), RotationConfig(kind="hadamard", heads=False)
        )
        export_rotated(rotated, tmp_path / str(i))
    assert_same(tmp_path / "0", tmp_path / "1")


def test_a_layer_behind_the_last_block_is_decoded_and_copied(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "deepseek_v3")
    further = with_further_layer(folder)
    as_fp8(folder, tmp_path / "twin", RAGGED)
    checkpoint, twin = Checkpoint(folder), load_file(tmp_path / "twin" / WEIGHTS)
    assert not any(spec.name.startswith("model.layers.2.") for spec in checkpoint.specs)
    linear = "model.layers.2.self_attn.kv_b_proj.weight"
    assert linear in checkpoint.layout.fp8
    for out in exported(
        checkpoint,
        lambda spec: "int8-perchannel" if spec.role == "o" else "bf16",
        "compressed-tensors",
        tmp_path / "out",
    ):
        written = load_file(out / WEIGHTS)
        assert all(torch.equal(written[name], twin[name]) for name in further)


def test_plan_sees_the_model_that_it_stands_for(pair: tuple[Path, Path]) -> None:
    sizes, references = [], []
    for folder in pair:
        config = parse_config(
            {
                "model": {"path": str(folder)},
                "allocation": {"policy": "uniform", "formats": ["int8"]},
                "quantization": {"group_size": 4},
            }
        )
        references.append(resolve_model(config.model))
        sizes.append(foreseen_size(config, references[-1]))
    assert sizes[0] == sizes[1] is not None
    assert references[0].digest != references[1].digest


def test_another_scale_is_another_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen3")
    as_fp8(folder, tmp_path / "twin", RAGGED, apart=True)
    before = resolve_model(ModelConfig(path=str(folder))).digest
    file = folder / "model-2-of-2.safetensors"
    factors = load_file(file)
    factors[f"{Q_PROJ}_scale_inv"][1, 1] *= 2
    save_file(factors, file, metadata={"format": "pt"})
    assert resolve_model(ModelConfig(path=str(folder))).digest != before


def damaged(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("scales", "found"),
    [
        (None, r"scale_inv is missing from the checkpoint, which has .*q_proj\.weight as F8_E4M3"),
        (
            torch.ones(4, 2),
            r"is F32 \[4, 2\]; .* of \[64, 32\] in blocks of \[16, 12\] .* needs \[4, 3\]",
        ),
        (torch.ones(()), r"is F32 \[\]; .* needs \[4, 3\]"),
        (torch.ones(4, 3, dtype=torch.uint8), r"is U8 \[4, 3\]; .* in F32, BF16, F16, F8_E8M0"),
    ],
)
def test_scales_that_do_not_fit_their_weight_are_named(
    qwen3: Path, scales: torch.Tensor | None, found: str
) -> None:
    name = f"{Q_PROJ}_scale_inv"
    damaged(qwen3, lambda t: t.pop(name) if scales is None else t.update({name: scales}))
    for read in (lambda: Checkpoint(qwen3), lambda: resolve_model(ModelConfig(path=str(qwen3)))):
        with pytest.raises(ModelError, match=found):
            read()


def test_a_scale_that_is_no_number_is_named(qwen3: Path) -> None:
    damaged(qwen3, lambda t: t[f"{Q_PROJ}_scale_inv"][3, 2].fill_(torch.nan))
    with pytest.raises(ModelError, match=r"q_proj\.weight holds 128 NaN"):  # 16 rows, 8 columns
        stream(qwen3, TOKENS)


@pytest.mark.parametrize(
    "other",
    [
        settings() | {"weight_block_size": None},
        settings((0, 128)),
        settings(fmt="e5m2"),
        settings(activation_scheme="static"),
        {"quant_method": "fbgemm_fp8"},
    ],
)
def test_other_fp8_is_refused_with_what_is_read(qwen3: Path, other: dict[str, Any]) -> None:
    change_config(qwen3, quantization_config=other)
    with pytest.raises(
        ModelError, match=r"already quantized.*of a packed qwen3 only FP8 .* weight_block_size"
    ):
        resolve_model(ModelConfig(path=str(qwen3)))
    with pytest.raises(ModelError, match=r"has quant_method 'f.*; read are compressed-tensors"):
        load_model(qwen3, CPU)


def test_fused_experts_are_read_in_mxfp4_alone(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "gpt_oss")
    change_config(folder, quantization_config=settings())
    with pytest.raises(ModelError, match="packed gpt_oss only experts in MXFP4"):
        resolve_model(ModelConfig(path=str(folder)))
