"""Packed checkpoints give the logits of the dense one in our loader; what transformers does, see test_fresh_process.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alphaquant.errors import FormatError, ModelError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.models.loading import load_model
from alphaquant.models.packed import PackedCheckpoint
from tests.export.packed_models import (
    CPU,
    PACKABLE,
    SIZES,
    Mixture,
    answers,
    by_block,
    by_expert,
    by_role,
    exported,
    logits,
    make_wide,
    stock_logits,
)
from tests.tiny import make_model

UNIFORM = [
    *(("compressed-tensors", f"int{bits}-g32") for bits in (2, 3, 4, 6, 8)),
    *(("compressed-tensors", text) for text in ("int3-perchannel", "int4-g32-asym")),
    *(("compressed-tensors", text) for text in ("fp8-perchannel", "mxfp4", "mxfp6", "mxfp8")),
    ("compressed-tensors", "nvfp4"),
    *(("gptq", f"int{bits}-g32") for bits in (2, 3, 4, 8)),
    *(("quark", text) for text in ("mxfp4", "mxfp6", "mxfp6_e3m2")),
]
FORMATS = {
    export: [text for at, text in UNIFORM if at == export]
    for export in ("compressed-tensors", "gptq", "quark")
}
QUICK = ("llama", "olmoe")
MODELS = [
    pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in PACKABLE
]


@pytest.fixture(scope="module", params=QUICK)
def checkpoint(request: Any, tmp_path_factory: Any) -> Checkpoint:
    return make_wide(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module", params=MODELS)
def any_checkpoint(request: Any, tmp_path_factory: Any) -> Checkpoint:
    return make_wide(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.mark.parametrize(
    ("export", "text"), [one for one in UNIFORM if one[0] != "compressed-tensors"]
)
def test_a_packed_model_is_the_dense_one(
    checkpoint: Checkpoint, export: Any, text: str, tmp_path: Path
) -> None:
    dense, packed = exported(checkpoint, lambda spec: text, export, tmp_path)
    assert torch.equal(logits(packed), logits(dense))


@pytest.mark.parametrize("export", FORMATS)
def test_every_format_in_one_model_is_the_dense_one(
    any_checkpoint: Checkpoint, export: Any, tmp_path: Path
) -> None:
    """Linears take the formats in turn, so that each of them stands somewhere in each type of model."""
    places = {spec.name: at for at, spec in enumerate(any_checkpoint.specs)}
    formats = FORMATS[export]

    def in_turn(spec: LinearSpec) -> str:
        return formats[places[spec.name] % len(formats)]

    dense, packed = exported(any_checkpoint, in_turn, export, tmp_path)
    assert torch.equal(logits(packed), logits(dense))


@pytest.mark.parametrize("mixture", [by_block, by_role, by_expert])
def test_a_mixture_is_the_dense_one(
    any_checkpoint: Checkpoint, mixture: Mixture, tmp_path: Path
) -> None:
    dense, packed = exported(any_checkpoint, mixture, "gptq", tmp_path)
    assert torch.equal(logits(packed), logits(dense))


def test_norms_and_routers_that_awq_scaled_are_packed_as_they_are(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "olmoe", uneven_norms=True, **SIZES)
    tokens = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(1))
    dense, packed = exported(
        Checkpoint(folder),
        lambda spec: "int3-g32",
        "compressed-tensors",
        tmp_path,
        tokens=tokens,
        method="awq",
    )
    assert torch.equal(logits(packed), logits(dense))
    name = "model.layers.0.post_attention_layernorm.weight"
    before, after = (load_file(at / "model.safetensors")[name] for at in (folder, packed))
    assert not torch.equal(before, after)


def test_a_float32_model_keeps_its_precision(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "olmoe", dtype=torch.float32, **SIZES)
    dense, packed = exported(
        Checkpoint(folder), lambda spec: "int4-g32", "compressed-tensors", tmp_path
    )
    loaded = [load_model(at, CPU, dtype=torch.float32) for at in (dense, packed)]
    assert torch.equal(*(answers(model) for model in loaded))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_config_without_a_dtype_loses_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = make_model(tmp_path / "model", "llama", dtype=dtype, **SIZES)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    dense, packed = exported(
        Checkpoint(folder), lambda spec: "int4-g32", "compressed-tensors", tmp_path
    )
    loaded = [load_model(at, CPU, dtype=torch.float32) for at in (dense, packed)]
    assert torch.equal(*(answers(model) for model in loaded))


def test_shards_and_their_index_are_kept(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "mixtral", shard="50KB", **SIZES)
    dense, packed = exported(
        Checkpoint(folder), lambda spec: "int4-g32", "compressed-tensors", tmp_path
    )
    index = json.loads((packed / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 2
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight_packed" in index
    assert torch.equal(stock_logits(packed), logits(dense))


def test_experts_can_have_the_names_of_gptqmodel(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "mixtral", **SIZES))
    dense, packed = exported(checkpoint, by_block, "gptq", tmp_path, module_names=True)
    names = PackedCheckpoint(packed)._written.values()
    assert not any("block_sparse_moe" in name for name in names)
    assert torch.equal(logits(packed), logits(dense))


def test_moved_norms_and_trained_routers_are_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "olmoe", **SIZES))
    router = next(spec.name for spec in checkpoint.specs if spec.role == "router")
    trained = {router: torch.ones(4, 64)}
    _, packed = exported(
        checkpoint, lambda spec: "int4-g32", "compressed-tensors", tmp_path, routers=trained
    )
    assert torch.equal(PackedCheckpoint(packed).weight(router).float(), trained[router])


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("export", ["compressed-tensors", "gptq"])
def test_a_quantized_head_is_packed_too(tmp_path: Path, export: Any, tied: bool) -> None:
    sizes = SIZES | {"vocab_size": 288}
    source = make_model(tmp_path / "m", **sizes, tie_word_embeddings=tied, shard="20kB")
    dense, packed = exported(
        Checkpoint(source),
        lambda spec: "int8-g32" if spec.role == "lm_head" else "int4-g32",
        export,
        tmp_path,
        head=True,
    )
    read = PackedCheckpoint(packed)
    assert read.raw_config["tie_word_embeddings"] is False
    assert torch.equal(read.head_weight(), Checkpoint(dense).head_weight())
    assert not torch.equal(read.head_weight(), Checkpoint(source).head_weight())
    assert torch.equal(logits(packed), logits(dense))


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "olmoe", **SIZES))
    found = []
    for name in ("first", "second"):
        _, packed = exported(checkpoint, by_role, "compressed-tensors", tmp_path / name)
        found.append({file.name: file.read_bytes() for file in packed.iterdir()})
    assert found[0] == found[1]


def test_groups_that_do_not_divide_rows_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", **SIZES))
    with pytest.raises(FormatError, match=r"down_proj as int4-g64: groups of 64.*96.*16, 32$"):
        exported(checkpoint, lambda spec: "int4-g64", "compressed-tensors", tmp_path)


def test_a_scheme_without_carrier_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", **SIZES))
    with pytest.raises(FormatError, match=r"layers.0.self_attn.q_proj: gptq does not store int6"):
        exported(checkpoint, lambda spec: "int6-g32", "gptq", tmp_path)


def test_a_checkpoint_that_lost_its_codes_is_named(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "model", "llama", **SIZES))
    _, packed = exported(checkpoint, lambda spec: "mxfp4", "compressed-tensors", tmp_path)
    tensors = load_file(packed / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight_packed"]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers.0.mlp.up_proj.*weight_scale but no codes"):
        load_model(packed, CPU)
