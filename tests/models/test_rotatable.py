"""Which models can be rotated, and what is said of those that cannot. No weights are needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alphaquant.config import RotationConfig
from alphaquant.errors import ConfigError, ModelError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.rotatable import Turn, head_block, turns
from tests.tiny import ROTATABLE, TYPES, make_model


class Model:
    """The headers of a model, to be changed."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.architecture = checkpoint.architecture
        self.config = dict(checkpoint.raw_config)
        self.shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}

    def turns(self, trust_remote_code: bool = False, **settings: Any) -> dict[str, Turn]:
        specs = self.architecture.linears(self.config, self.shapes)
        rotation = RotationConfig(kind="hadamard", **settings)
        return turns(
            self.architecture,
            self.config,
            self.shapes,
            specs,
            rotation,
            trust_remote_code=trust_remote_code,
        )


def headers(tmp_path: Path, model_type: str = "llama", **changes: Any) -> Model:
    return Model(Checkpoint(make_model(tmp_path / "m", model_type, **changes)))


@pytest.mark.parametrize("model_type", ROTATABLE)
def test_all_tensors_but_norms_and_biases_of_outputs_turn(tmp_path: Path, model_type: str) -> None:
    model = headers(tmp_path, model_type)
    still = {name.partition("layers.")[2][2:] for name in set(model.shapes) - set(model.turns())}
    expected = {
        "qwen2": {"self_attn.q_proj.bias", "self_attn.k_proj.bias"},
        "qwen2_moe": {"self_attn.q_proj.bias", "self_attn.k_proj.bias"},
        "qwen3": {"self_attn.q_norm.weight", "self_attn.k_norm.weight"},
        "qwen3_moe": {"self_attn.q_norm.weight", "self_attn.k_norm.weight"},
        "olmoe": {"self_attn.q_norm.weight", "self_attn.k_norm.weight"},
        "deepseek_v2": {f"self_attn.{name}.weight" for name in ("kv_a_layernorm", "kv_b_proj")},
        "deepseek_v3": {
            *(f"self_attn.{name}_a_layernorm.weight" for name in ("q", "kv")),
            *(f"self_attn.{name}_b_proj.weight" for name in ("q", "kv")),
            "mlp.gate.e_score_correction_bias",
        },
        "gpt_oss": {
            "self_attn.sinks",
            "mlp.router.bias",
            *(f"self_attn.{name}_proj.bias" for name in ("q", "k")),
            *(f"mlp.experts.{e}.{name}_proj.bias" for e in range(4) for name in ("gate", "up")),
        },
    }
    assert still == expected.get(model_type, set())


@pytest.mark.parametrize("model_type", sorted(set(TYPES) - set(ROTATABLE)))
def test_types_that_cannot_be_rotated_say_why(tmp_path: Path, model_type: str) -> None:
    model = headers(tmp_path, model_type)
    reason = rf"{model_type} model cannot be rotated exactly: \w.*Use rotation\.kind=none"
    with pytest.raises(ModelError, match=reason):
        model.turns()


def test_of_fused_attention_only_the_values_turn_with_the_heads(tmp_path: Path) -> None:
    model = headers(tmp_path, "phi3")
    name = "model.layers.0.self_attn.qkv_proj"
    norm = "model.layers.0.input_layernorm.weight"
    rows = 2 * 8  # key-value heads, channels of each
    assert model.turns()[f"{name}.weight"] == Turn("residual", "heads", rows, norm)
    assert model.turns(heads=False)[f"{name}.weight"] == Turn("residual", norm=norm)
    model.shapes[f"{name}.bias"] = (64,)
    with pytest.raises(ModelError, match=r"qkv_proj\.bias, which a plain phi3 model has not"):
        model.turns()


def test_a_tied_model_gets_a_head_that_takes_the_final_norm_in(tmp_path: Path) -> None:
    model = headers(tmp_path, tie_word_embeddings=True)
    assert "lm_head.weight" not in model.shapes
    found = model.turns()
    assert found["lm_head.weight"] == Turn("residual", norm="model.norm.weight")
    assert found["model.embed_tokens.weight"] == Turn("residual")


def test_a_clamp_on_the_values_keeps_heads_as_they_are(tmp_path: Path) -> None:
    model = headers(tmp_path, "olmoe", clip_qkv=8.0)
    value = "model.layers.0.self_attn.v_proj.weight"
    assert model.turns()[value].outputs is None
    with pytest.raises(ModelError, match=r"clip_qkv: 8\.0.*Use rotation\.heads=false"):
        model.turns(heads=True)
    model.config["clip_qkv"] = None
    assert model.turns()[value].outputs == "heads"


def test_a_tensor_that_nobody_knows_is_a_reason_to_refuse(tmp_path: Path) -> None:
    for name in (
        "model.layers.0.post_feedforward_layernorm.weight",
        "model.layers.1.input_layernorm.bias",
        "model.layers.1.self_attn.sinks",
        "model.embed_positions.weight",
    ):
        model = headers(tmp_path)
        model.shapes[name] = (32,)
        with pytest.raises(ModelError, match=rf"{name}.*Use rotation\.kind=none"):
            model.turns()


def test_buffers_of_old_checkpoints_do_no_harm(tmp_path: Path) -> None:
    model = headers(tmp_path)
    model.shapes["model.layers.0.self_attn.rotary_emb.inv_freq"] = (4,)
    assert "model.layers.0.self_attn.rotary_emb.inv_freq" not in model.turns()


def test_a_block_without_its_norms_is_refused(tmp_path: Path) -> None:
    model = headers(tmp_path)
    del model.shapes["model.layers.1.input_layernorm.weight"]
    with pytest.raises(ModelError, match=r"no model\.layers\.1\.input_layernorm\.weight"):
        model.turns()


def test_an_architecture_may_say_why_it_cannot_be_rotated(tmp_path: Path) -> None:
    model = headers(tmp_path)
    reason = "norms stand behind its blocks"
    model.architecture = replace(model.architecture, unrotatable=reason)
    with pytest.raises(ModelError, match=rf"llama model cannot be rotated exactly: {reason}"):
        model.turns()


def test_code_that_comes_with_a_model_may_do_anything(tmp_path: Path) -> None:
    model = headers(tmp_path)
    model.config["auto_map"] = {"AutoModelForCausalLM": "modeling.Other"}
    assert model.turns()
    with pytest.raises(ModelError, match="Python code of its own"):
        model.turns(trust_remote_code=True)


def test_blocks_that_do_not_fit_are_refused_with_those_that_do(tmp_path: Path) -> None:
    model = headers(tmp_path)
    with pytest.raises(ConfigError, match=r"rotation\.block 24 .*hidden size 32; use 16, 32 or"):
        model.turns(block=24)


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = headers(tmp_path)
    model.config["num_attention_heads"] = 5
    with pytest.raises(ModelError, match="num_attention_heads: 5"):
        model.turns()


def test_heads_are_cut_into_blocks_where_these_fit() -> None:
    assert head_block(128, None) == 128
    assert head_block(128, 32) == 32
    assert head_block(80, 32) == 80
    assert head_block(16, 32) == 16
