"""The first DeepSeek-MoE, whose classes are ours, against its equations written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM

from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from tests.tiny import VOCABULARY, make_model

TOKENS = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))


class Reference:
    """The model by the names on disk, one equation a line; one sequence at a time."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = {n: t.double() for n, t in load_file(folder / "model.safetensors").items()}

    def logits(self, tokens: Tensor) -> Tensor:
        x = self.weights["model.embed_tokens.weight"][tokens]
        for block in range(self.config["num_hidden_layers"]):
            root = f"model.layers.{block}"
            x = x + self.attention(self.norm(x, f"{root}.input_layernorm"), f"{root}.self_attn")
            x = x + self.mlp(self.norm(x, f"{root}.post_attention_layernorm"), f"{root}.mlp")
        return self.linear(self.norm(x, "model.norm"), "lm_head")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T

    def norm(self, x: Tensor, name: str) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return x * scale * self.weights[f"{name}.weight"]

    def attention(self, x: Tensor, name: str) -> Tensor:
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        q, k, v = (
            self.linear(x, f"{name}.{part}_proj").view(len(x), count, -1).transpose(0, 1)
            for part, count in (("q", heads), ("k", groups), ("v", groups))
        )
        k, v = (part.repeat_interleave(heads // groups, 0) for part in (self.turned(k), v))
        scores = self.turned(q) @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        later = torch.ones(len(x), len(x)).triu(1).bool()
        out = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        return self.linear(out.transpose(0, 1).reshape(len(x), -1), f"{name}.o_proj")

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions on halves: channel i turns with channel i + d / 2."""
        half = x.shape[-1] // 2
        theta = float(self.config["rope_parameters"]["rope_theta"])
        frequency = theta ** (-torch.arange(half).double() / half)
        angle = torch.arange(x.shape[1])[:, None] * frequency
        first, second = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        if f"{name}.gate.weight" not in self.weights:
            return self.gated(x, name)
        out = self.gated(x, f"{name}.shared_experts")
        chance = self.linear(x, f"{name}.gate").softmax(-1)
        weight, chosen = chance.topk(self.config["num_experts_per_tok"], -1)
        if self.config["norm_topk_prob"]:
            weight = weight / weight.sum(-1, keepdim=True)
        for token in range(len(x)):
            for p, expert in zip(weight[token], chosen[token].tolist(), strict=True):
                out[token] += p * self.gated(x[token], f"{name}.experts.{expert}")
        return out

    def gated(self, x: Tensor, name: str) -> Tensor:
        inner = silu(self.linear(x, f"{name}.gate_proj")) * self.linear(x, f"{name}.up_proj")
        return self.linear(inner, f"{name}.down_proj")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm_topk_prob": True},
        {"num_hidden_layers": 4, "first_k_dense_replace": 0, "moe_layer_freq": 2},
    ],
)
def test_the_model_computes_the_published_equations(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_model(
        tmp_path / "m", "deepseek", dtype=torch.float32, uneven_norms=True, **changes
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reference = Reference(folder)
    expected = torch.stack([reference.logits(window) for window in TOKENS])
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits.double(), expected, rtol=1e-4, atol=1e-5)
    checkpoint = Checkpoint(folder)
    streamed = BlockModel(checkpoint, torch.device("cpu"), torch.float32)
    hidden = streamed.embed(TOKENS, 3)
    for index in range(checkpoint.blocks):
        hidden = list(streamed.advance(streamed.block(index), index, hidden))
    found = streamed.head()(streamed.final_norm(hidden[0]))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_folder_with_code_of_its_own_loads_without_running_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "deepseek")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_deepseek.DeepseekConfig",
        "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("configuration_deepseek.py", "modeling_deepseek.py"):
        (folder / name).write_text("raise RuntimeError('this must not run')")
    assert Checkpoint(folder).config.n_routed_experts == 4
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    out = model.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, use_cache=True)
    again = model.generate(TOKENS[:1], max_new_tokens=4, do_sample=False, use_cache=False)
    assert out.shape == (1, 20)
    assert torch.equal(out, again)
