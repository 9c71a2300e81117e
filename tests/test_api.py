from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import alphaquant
from alphaquant.errors import ConfigError, DataError, ModelError, PlanError
from tests.tiny import byte_tokenizer, make_model

CONFIG = {
    "default": {"wq": "int4", "aq": "bf16", "group_size": 16},
    "overrides": [
        {"pattern": "model.layers.0.*", "wq": "int8", "comment": "first block"},
        {"pattern": "model.layers.*.mlp.gate", "skip": True},
        {"pattern": "lm_head", "skip": True},
    ],
}


@pytest.fixture
def model(tmp_path: Path) -> torch.nn.Module:
    folder = make_model(tmp_path / "m", "olmoe")
    return alphaquant.load_hf_causal_lm(str(folder), dtype="fp32")


def windows() -> list[torch.Tensor]:
    return list(torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0)).split(1))


def test_gptq_changes_the_model_to_what_the_quantizers_say(
    model: torch.nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(CONFIG))
    config = alphaquant.load_layer_config(path)
    planned = alphaquant.plan_model_layer_schemes(model, config)
    quantizers = alphaquant.gptq_quantize_model(model, windows(), dict(planned), device="cpu")
    assert set(quantizers) == {name for name, _ in planned}
    assert str(quantizers["model.layers.0.self_attn.q_proj"].scheme) == "int8-g16"
    assert str(quantizers["model.layers.1.mlp.experts.3.down_proj"].scheme) == "int4-g16"
    q = quantizers["model.layers.1.self_attn.o_proj"].dequantize()
    assert torch.equal(model.model.layers[1].self_attn.o_proj.weight, q)  # type: ignore[index,union-attr]
    expert = quantizers["model.layers.1.mlp.experts.3.down_proj"].dequantize()
    assert torch.equal(model.model.layers[1].mlp.experts.down_proj[3], expert)  # type: ignore[index,union-attr]


def test_the_config_itself_may_be_given(model: torch.nn.Module) -> None:
    quantizers = alphaquant.rtn_quantize_model(model, CONFIG, device="cpu")
    assert len(quantizers) == 2 * (4 + 3 * 4)


def test_gptq_keeps_closer_to_the_original_than_rtn(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen2")
    layers = {"default": {"wq": "int3", "group_size": 16}}
    tokens = torch.cat(windows())
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = []
    with torch.no_grad():
        base = torch.log_softmax(original(tokens).logits, -1)
        for method in ("rtn", "gptq"):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            if method == "rtn":
                alphaquant.rtn_quantize_model(model, layers, device="cpu")
            else:
                alphaquant.gptq_quantize_model(
                    model, windows(), layers, "cpu", alphaquant.GPTQConfig(actorder=True)
                )
            ours = torch.log_softmax(model(tokens).logits, -1)
            losses.append(float((base.exp() * (base - ours)).sum(-1).mean()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_is_rotated_before_it_is_quantized(tmp_path: Path, tied: bool) -> None:
    folder = make_model(tmp_path / "m", "olmoe", uneven_norms=True, tie_word_embeddings=tied)
    layers = {"default": {"wq": "int8", "group_size": 16}}
    tokens = torch.cat(windows())
    original, plain, rotated = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(3)
    )
    alphaquant.gptq_quantize_model(plain, windows(), layers, "cpu")
    quantizers = alphaquant.gptq_quantize_model(
        rotated, windows(), layers, "cpu", alphaquant.GPTQConfig(use_hadamard=True)
    )
    name = "model.layers.1.self_attn.o_proj"
    weights = [m.get_submodule(name).weight for m in (original, plain, rotated)]
    assert torch.equal(weights[2], quantizers[name].dequantize())
    assert torch.allclose(weights[0], weights[1], atol=0.02)
    assert not torch.allclose(weights[0], weights[2], atol=0.2)
    assert not rotated.config.tie_word_embeddings
    assert torch.equal(rotated.model.norm.weight, torch.ones(32))
    with torch.no_grad():
        base, ours = (torch.log_softmax(m(tokens).logits, -1) for m in (original, rotated))
    assert float((base.exp() * (base - ours)).sum(-1).mean()) < 0.01


def test_a_model_without_a_row_is_quantized_by_the_names_of_its_linears(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "starcoder2")
    model = alphaquant.load_hf_causal_lm(str(folder), dtype="fp32")
    layers = {"default": {"wq": "int8", "group_size": 16}}
    with pytest.raises(ModelError, match="'starcoder2' is not supported"):
        alphaquant.rtn_quantize_model(model, layers, device="cpu")
    planned = alphaquant.plan_model_layer_schemes(model, layers, model_type="generic")
    alphas = alphaquant.alpha_hill_from_model(model, model_type="generic")
    assert {name for name, _ in planned} == set(alphas) - {"lm_head"}
    quantizers = alphaquant.gptq_quantize_model(
        model, windows(), layers, "cpu", model_type="generic"
    )
    assert set(quantizers) == {name for name, _ in planned}
    name = "model.layers.1.mlp.c_fc"
    assert torch.equal(model.get_submodule(name).weight, quantizers[name].dequantize())


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_is_named_is_quantized_and_tied_no_longer(tmp_path: Path, tied: bool) -> None:
    folder = make_model(tmp_path / "m", tie_word_embeddings=tied)
    model = alphaquant.load_hf_causal_lm(str(folder), dtype="fp32")
    embedding = model.get_submodule("model.embed_tokens").weight.clone()  # type: ignore[operator]
    layers = {
        "default": {"wq": "int4", "group_size": 16},
        "overrides": [{"pattern": "lm_head", "wq": "int8", "group_size": 32}],
    }
    planned = alphaquant.plan_model_layer_schemes(model, layers)
    quantizers = alphaquant.gptq_quantize_model(model, windows(), dict(planned), "cpu")
    assert str(quantizers["lm_head"].scheme) == "int8-g32"
    head = model.get_submodule("lm_head").weight
    assert torch.equal(head, quantizers["lm_head"].dequantize())  # type: ignore[arg-type]
    assert torch.equal(model.get_submodule("model.embed_tokens").weight, embedding)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "out")  # type: ignore[operator]
    again = alphaquant.load_hf_causal_lm(str(tmp_path / "out"), dtype="fp32")
    assert torch.equal(again.get_submodule("lm_head").weight, head)  # type: ignore[arg-type]


def test_data_loader_yields_single_windows(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    loader = alphaquant.CalibrationDataLoader(
        str(text), nsamples=5, seqlen=64, tokenizer=byte_tokenizer()
    )
    shapes = {tuple(window.shape) for window in loader}
    assert shapes == {(1, 64)}
    assert len(loader) == len(list(loader)) == 5


def test_alpha_of_every_linear(model: torch.nn.Module) -> None:
    alphas = alphaquant.alpha_hill_from_model(model, filter_regex=r"experts\.\d+\.up_proj")
    assert len(alphas) == 8
    row = alphas["model.layers.0.mlp.experts.0.up_proj"]
    assert row["shape"] == (48, 32)
    assert row["alpha"] > 1
    fixed = alphaquant.alpha_hill_from_model(model, k=12, filter_regex="q_proj")
    assert {row["k_used"] for row in fixed.values()} == {12}


def test_wrong_use_is_explained(model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="0 is not a group size"):
        alphaquant.GPTQConfig(groupsize=0)
    uneven = [torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 9, dtype=torch.long)]
    with pytest.raises(DataError, match="of one length"):
        alphaquant.gptq_quantize_model(model, uneven, CONFIG, device="cpu")
    with pytest.raises(DataError, match="tokenizer"):
        alphaquant.CalibrationDataLoader()
    with pytest.raises(DataError, match="empty"):
        alphaquant.gptq_quantize_model(model, [], CONFIG, device="cpu")
    with pytest.raises(PlanError, match=r"nearest: model\.layers\.0"):
        alphaquant.rtn_quantize_model(model, {"model.layer.0.q": {"wq": "int4"}}, device="cpu")
    with pytest.raises(PlanError, match="matches no linear"):
        alphaquant.rtn_quantize_model(
            model, {"overrides": [{"pattern": "transformer.*", "wq": "int4"}]}, device="cpu"
        )
    with pytest.raises(ConfigError, match="not valid JSON"):
        alphaquant.load_layer_config(make_file(tmp_path / "bad.json"))


def make_file(path: Path) -> Path:
    path.write_text("{")
    return path


def test_exports_are_pinned() -> None:
    assert sorted(alphaquant.__all__) == [
        "AlphaQuantModel",
        "CalibrationDataLoader",
        "EXPERT_INDEX_PLACEHOLDER",
        "GPTQConfig",
        "QuantizeConfig",
        "alpha_hill_from_model",
        "gptq_quantize_model",
        "load",
        "load_hf_causal_lm",
        "load_layer_config",
        "load_tokenizer",
        "plan_model_layer_schemes",
        "push_to_hub",
        "rtn_quantize_model",
    ]
    assert all(hasattr(alphaquant, name) for name in alphaquant.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        alphaquant.nothing  # noqa: B018
