"""What llm-compressor, GPTQModel, AutoRound and AutoAWQ write is read as the definitions of their formats say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import alphaquant
from alphaquant.errors import ModelError
from alphaquant.models.packed import PackedCheckpoint
from alphaquant.models.packed_config import storage_rule
from tests.models import foreign
from tests.models.foreign import Pack, compressed_tensors, make_foreign

DATA = Path(__file__).parent / "data"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AUTO_ROUND = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "bits": 4,
    "group_size": 32,
    "sym": True,
    "data_type": "int",
}
GROUP = {"num_bits": 4, "strategy": "group", "group_size": 32}
BLOCK = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [16, 32]}
CASES: dict[str, tuple[Pack, dict[str, Any]]] = {
    "gptq-asymmetric": (foreign.gptq(4), GPTQ),
    "gptq-3bit": (foreign.gptq(3), GPTQ | {"bits": 3}),
    "gptq-desc-act": (foreign.gptq(4, order=True), GPTQ | {"desc_act": True}),
    "gptq-borrowing": (foreign.gptq(2, wrap=True), GPTQ | {"bits": 2}),
    "gptq-borrowing-8bit": (foreign.gptq(8, wrap=True), GPTQ | {"bits": 8}),
    "gptq-v2": (foreign.gptq(4, v2=True), GPTQ | {"checkpoint_format": "gptq_v2"}),
    "gptq-v2-zero": (foreign.gptq(8, v2=True, wrap=True), GPTQ | {"format": "gptq_v2", "bits": 8}),
    "auto-round": (
        foreign.without(foreign.gptq(4, zeros=False), "g_idx"),
        AUTO_ROUND,
    ),
    "auto-round-asymmetric": (
        foreign.without(foreign.gptq(2, v2=True), "g_idx"),
        AUTO_ROUND | {"packing_format": "auto_round", "bits": 2, "sym": False},
    ),
    "auto-round-awq": (foreign.awq, AUTO_ROUND | {"packing_format": "auto_round:auto_awq"}),
    "awq": (foreign.awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
    "packed": (foreign.pack_quantized(4), compressed_tensors("pack-quantized", GROUP)),
    "packed-asymmetric": (
        foreign.pack_quantized(4, zeros=True),
        compressed_tensors("pack-quantized", GROUP | {"symmetric": False}),
    ),
    "packed-channel": (
        foreign.pack_quantized(8, group=None),
        compressed_tensors("pack-quantized", {"num_bits": 8, "strategy": "channel"}),
    ),
    "packed-scattered": (
        foreign.pack_quantized(4, index=True),
        compressed_tensors("pack-quantized", GROUP | {"actorder": "group"}, version="0.9.4"),
    ),
    "packed-actorder-static": (
        foreign.pack_quantized(4),
        compressed_tensors("pack-quantized", GROUP | {"actorder": "static"}),
    ),
    "int8-asymmetric": (
        foreign.int8,
        compressed_tensors(
            "int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}
        ),
    ),
    **{
        f"fp8-{strategy}": (
            foreign.float8(strategy),
            compressed_tensors(
                "float-quantized", {"type": "float", "num_bits": 8, "strategy": strategy}
            ),
        )
        for strategy in ("tensor", "channel")
    },
    "fp8-block": (foreign.float8("block"), compressed_tensors("float-quantized", BLOCK)),
    "nvfp4": (
        foreign.nvfp4,
        compressed_tensors(
            "nvfp4-pack-quantized",
            {"type": "float", "num_bits": 4, "strategy": "tensor_group", "group_size": 16},
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_linear_is_what_its_format_says(name: str, tmp_path: Path) -> None:
    folder, expected = make_foreign(tmp_path, *CASES[name])
    checkpoint = PackedCheckpoint(folder)
    assert len(expected) == 14
    for linear, value in expected.items():
        assert torch.equal(checkpoint.weight(linear), value), linear


@pytest.mark.parametrize("name", ["gptq-desc-act", "auto-round", "packed-asymmetric", "fp8-block"])
def test_it_is_a_model_that_generates(name: str, tmp_path: Path) -> None:
    folder, expected = make_foreign(tmp_path, *CASES[name])
    model = alphaquant.load(folder, device="cpu")
    assert model.dtype == torch.bfloat16
    assert torch.equal(
        model.model.layers[1].mlp.up_proj.weight, expected["model.layers.1.mlp.up_proj"]
    )
    assert model.config.decoded_from["quant_method"] == CASES[name][1]["quant_method"]
    assert sum(model.config.decoded_from["linears"].values()) == 14
    tokens = model.generate(torch.arange(5)[None], max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, 8)


def test_exceptions_of_auto_round_are_heeded(tmp_path: Path) -> None:
    extra = {
        r".*layers\.0\.self_attn.*": {"bits": 16, "data_type": "float"},
        "model.layers.1.mlp.down_proj": {"bits": 8},
    }

    def pack(weight: torch.Tensor, generator: torch.Generator) -> Any:
        down = weight.shape == (64, 96)
        return foreign.gptq(8 if down else 4, zeros=False)(weight, generator)

    config = AUTO_ROUND | {"extra_config": extra}
    folder, expected = make_foreign(tmp_path, pack, config, kept=("layers.0.",))
    checkpoint = PackedCheckpoint(folder)
    for linear, value in expected.items():
        assert torch.equal(checkpoint.weight(linear), value), linear
    assert str(checkpoint.stored_as["model.layers.1.mlp.down_proj"].scheme) == "int8-g32"
    assert storage_rule(config)("model.layers.0.self_attn.q_proj") is None


def test_rows_of_dynamic_are_heeded() -> None:
    rows = {r"+:^model\.layers\.0\.": {"bits": 8, "group_size": -1}, r"-:.*o_proj": {}}
    rule = storage_rule(GPTQ | {"dynamic": rows})
    found = [rule(f"model.layers.{name}") for name in ("0.x", "1.x", "1.o_proj")]
    assert [stored and str(stored.scheme) for stored in found] == [
        "int8-perchannel",
        "int4-g32",
        None,
    ]


def test_the_first_row_counts_whether_it_names_a_linear_or_a_pattern() -> None:
    rows = {
        r"+:^a\.x$": {"bits": 8},
        r"+:^a\.": {"bits": 2},
        r"+:^a\.y$": {"bits": 8},
        r"+:^b\.(x|y)$": {"bits": 3},
        r"-:^b.z$": {},
        r"+:^b\.\d$": {"bits": 8},
    }
    rule = storage_rule(GPTQ | {"dynamic": rows})
    found = {name: rule(name) for name in ("a.x", "a.y", "b.x", "b.y", "b.z", "b.7", "b.x.c")}
    assert {n: s and s.scheme.format for n, s in found.items()} == {
        "a.x": "int8",
        "a.y": "int2",
        "b.x": "int3",
        "b.y": "int3",
        "b.z": None,
        "b.7": "int8",
        "b.x.c": "int4",
    }
    layers = {"a*": "fp4", "a.x": "fp6_e2m3", "b.x": "fp4"}
    config = {
        "quant_method": "quark",
        "global_quant_config": {"weight": {"dtype": "fp6_e3m2"}},
        "layer_quant_config": {name: {"weight": {"dtype": d}} for name, d in layers.items()},
    }
    rule = storage_rule(config)
    found = {name: rule(name) for name in ("a.x", "b.x", "b.y")}
    assert [s and s.scheme.format for s in found.values()] == ["mxfp4", "mxfp4", "mxfp6_e3m2"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"quant_method": "hqq"}, "quant_method 'hqq'; read are compressed-tensors, gptq"),
        (
            compressed_tensors("pack-quantized", GROUP | {"num_bits": 3}, version="0.17.1"),
            "x has 3 bits, packed by compressed-tensors 0.17.1.*padded",
        ),
        (compressed_tensors("marlin-24", GROUP), "'marlin-24' is not read; read are int-quantized"),
        (
            compressed_tensors("pack-quantized", GROUP | {"num_bits": 5}),
            "5 bits, which is not read",
        ),
        (GPTQ | {"checkpoint_format": "marlin"}, "'marlin' is not read; read are gptq, gptq_v2"),
        (GPTQ | {"bits": 6}, "x is stored as int6 in gptq.*read are int2, int3"),
        (AUTO_ROUND | {"packing_format": "auto_round:fp8"}, "auto_round:fp8.*llm_compressor"),
        (AUTO_ROUND | {"data_type": "mx_fp"}, "'mx_fp' is not read"),
        ({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv"}, "'gemv'"),
        ({"quant_method": "gptq", "bits": 4}, "lacks the key 'group_size'"),
    ],
)
def test_what_is_not_read_says_why(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        storage_rule(config)("x")


def test_padded_words_without_a_version_are_noticed(tmp_path: Path) -> None:
    def padded(weight: torch.Tensor, generator: torch.Generator) -> Any:
        stored, meant = foreign.pack_quantized(3)(weight, generator)
        words = -(-weight.shape[1] // 10)
        stored["weight_packed"] = torch.zeros(len(weight), words, dtype=torch.int32)
        return stored, meant

    config = compressed_tensors("pack-quantized", GROUP | {"num_bits": 3}) | {"version": None}
    folder, expected = make_foreign(tmp_path, padded, config)
    with pytest.raises(ModelError, match=r"10 words per row, 96 weights of 3 bits fill 9.*0\.18"):
        PackedCheckpoint(folder).weight(next(iter(expected)))


def test_scales_of_an_ignored_linear_are_an_error(tmp_path: Path) -> None:
    config = compressed_tensors("pack-quantized", GROUP) | {"ignore": ["re:.*up_proj"]}
    folder, _ = make_foreign(tmp_path, foreign.pack_quantized(4), config)
    with pytest.raises(ModelError, match=r"has scales of model.layers.0.mlp.up_proj.*ignores it"):
        PackedCheckpoint(folder)


@pytest.mark.parametrize("writer", sorted(path.name for path in DATA.iterdir() if path.is_dir()))
def test_what_the_programs_themselves_saved(writer: str, tmp_path: Path) -> None:
    expected = load_file(DATA / writer / "expected.safetensors")
    folder = tmp_path / writer
    shutil.copytree(DATA / writer, folder)
    dtype = next(iter(expected.values())).dtype
    settings = json.loads((folder / "config.json").read_text())
    settings["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(settings))
    checkpoint = PackedCheckpoint(folder)
    assert checkpoint.stored_as.keys() == expected.keys()
    for linear, value in expected.items():
        assert torch.equal(checkpoint.weight(linear), value), linear
    model = alphaquant.load(folder, device="cpu")
    assert model.dtype == dtype
    assert model.generate(torch.arange(4)[None], max_new_tokens=2, do_sample=False).shape == (1, 6)
