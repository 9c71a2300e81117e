"""What DeepSeek-V2 and V3 have beyond others: latent attention, biased routers, layers behind the last block."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alphaquant.algorithms.allocation_groups import group_linears
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.config import ModelConfig, QuantizationConfig, RotationConfig
from alphaquant.errors import ModelError
from alphaquant.export.dense import export_dense
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.resolve import resolve_model
from alphaquant.models.rotatable import turns
from tests.algorithms.test_quantize_model import uniform
from tests.models.test_block import stream
from tests.tiny import VOCABULARY, make_model

CPU = torch.device("cpu")
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
GROUPED: dict[str, Any] = {
    "q_lora_rank": 20,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "topk_method": "group_limited_greedy",
    "attention_bias": True,
}


def with_further_layer(folder: Path) -> dict[str, torch.Tensor]:
    """Put a layer that predicts a second token behind the blocks, as DeepSeek-V3 has it."""
    path = folder / "model.safetensors"
    tensors, root = load_file(path), "model.layers.2"
    further = {
        n.replace("model.layers.1", root): t.clone()
        for n, t in tensors.items()
        if n.startswith("model.layers.1.")
    }
    further |= {f"{root}.{n}.weight": torch.rand(32).bfloat16() for n in ("enorm", "hnorm")}
    further[f"{root}.eh_proj.weight"] = torch.rand(32, 64).bfloat16()
    save_file(tensors | further, path, metadata={"format": "pt"})
    return further


@pytest.mark.parametrize("changes", [GROUPED, {"n_routed_experts": 8}])
def test_streamed_blocks_give_the_logits_of_transformers(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_model(tmp_path / "m", "deepseek_v2", **changes)
    tokens = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = reference(tokens).logits
    torch.testing.assert_close(stream(folder, tokens), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "inputs", "kernels"),
    [
        (
            "deepseek_v2",
            [{"q", "kv_a"}, {"kv_b"}, {"o"}],
            [{"q"}, {"kv_a"}, {"kv_b"}, {"o"}],
        ),
        (
            "deepseek_v3",
            [{"q_a", "kv_a"}, {"q_b"}, {"kv_b"}, {"o"}],
            [{"q_a", "kv_a"}, {"q_b"}, {"kv_b"}, {"o"}],
        ),
    ],
)
def test_latents_are_read_and_served_as_they_are_computed(
    tmp_path: Path, model_type: str, inputs: list[set[str]], kernels: list[set[str]]
) -> None:
    specs = Checkpoint(make_model(tmp_path / "m", model_type)).block_specs(1)
    attention = [spec for spec in specs if ".self_attn." in spec.name]
    shared: dict[str, set[str]] = {}
    for spec in attention:
        shared.setdefault(spec.input_key, set()).add(spec.role)
    assert list(shared.values()) == inputs
    groups = group_linears(specs, "fused")
    assert [{s.role for s in group.specs} for group in groups[: len(kernels)]] == kernels
    rest = [[s.name.removeprefix("model.layers.1.mlp.") for s in g.specs] for g in groups]
    assert ["shared_experts.gate_proj", "shared_experts.up_proj"] in rest
    assert ["shared_experts.down_proj"] in rest
    (experts,) = (group for group in groups if group.specs[0].expert is not None)
    assert len(experts.specs) == 3 * (6 if model_type == "deepseek_v3" else 4)


def test_a_routers_bias_stays_fp32_in_a_bf16_block(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "deepseek_v3"))
    assert checkpoint.entries[BIAS].dtype == "F32"
    block = BlockModel(checkpoint, CPU, torch.bfloat16).block(1)
    bias = block.get_buffer("mlp.gate.e_score_correction_bias")
    assert torch.equal(bias, checkpoint.tensor(BIAS))
    assert not torch.equal(bias, bias.bfloat16().float())
    assert block.get_parameter("mlp.gate.weight").dtype == torch.bfloat16


def test_what_is_no_linear_of_a_block_is_exported_as_it_was(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "deepseek_v3")
    further = with_further_layer(source)
    checkpoint = Checkpoint(source)
    assert not any(spec.name.startswith("model.layers.2.") for spec in checkpoint.specs)
    (tmp_path / "b").mkdir()
    blocks = quantize_blocks(
        checkpoint,
        uniform(checkpoint, "int4-g16"),
        None,
        QuantizationConfig(group_size=16, method="rtn"),
        device=CPU,
        batch_size=4,
        blocks=FreshBlocks(tmp_path / "b"),
    )
    (tmp_path / "out").mkdir()
    export_dense(checkpoint, blocks, {}, tmp_path / "out")
    out, before = Checkpoint(tmp_path / "out"), load_file(source / "model.safetensors")
    assert out.entries.keys() == before.keys()
    for name in [*further, BIAS]:
        assert out.tensor(name).dtype == before[name].dtype
        assert torch.equal(out.tensor(name), before[name])
    linear = "model.layers.1.self_attn.kv_b_proj.weight"
    assert not torch.equal(out.tensor(linear), before[linear])


def rotation_turns(checkpoint: Checkpoint, **settings: Any) -> Any:
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    rotation = RotationConfig(kind="hadamard", **settings)
    return turns(checkpoint.architecture, checkpoint.raw_config, shapes, checkpoint.specs, rotation)


def test_a_layer_behind_the_blocks_is_a_reason_not_to_rotate(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "deepseek_v3")
    assert rotation_turns(Checkpoint(folder))
    with_further_layer(folder)
    with pytest.raises(ModelError, match=r"model\.layers\.2\..* behind the last decoder block"):
        rotation_turns(Checkpoint(folder))


def test_heads_of_latent_attention_are_not_turned(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "deepseek_v2"))
    output = "model.layers.0.self_attn.o_proj.weight"
    assert rotation_turns(checkpoint)[output].inputs is None
    with pytest.raises(ModelError, match=r"come from kv_b_proj.*Use rotation\.heads=false"):
        rotation_turns(checkpoint, heads=True)


@pytest.mark.parametrize(
    ("model_type", "key", "value"),
    [
        ("deepseek_v2", "norm_topk_prob", True),
        ("deepseek_v2", "scoring_func", "sigmoid"),
        ("deepseek_v3", "scoring_func", "softmax"),
        ("deepseek_v3", "moe_layer_freq", 2),
    ],
)
def test_a_setting_that_transformers_passes_over_is_refused(
    tmp_path: Path, model_type: str, key: str, value: object
) -> None:
    folder = make_model(tmp_path / "m", model_type)
    resolve_model(ModelConfig(path=str(folder)))
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"config\.json has {key}: {value!r}; transformers"):
        resolve_model(ModelConfig(path=str(folder)))
