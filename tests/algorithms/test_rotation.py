from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alphaquant.algorithms.rotation import (
    RotatedCheckpoint,
    best_seed,
    peak_ratio,
    rotate_model,
)
from alphaquant.config import RotationConfig
from alphaquant.errors import ModelError
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from tests.tiny import ROTATABLE, VOCABULARY, make_model

CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in ROTATABLE} | {
    "olmoe with a clamp": ("olmoe", {"clip_qkv": 0.2}),
    "llama with every bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "qwen3 with biases of attention": ("qwen3", {"attention_bias": True}),
    "llama of an odd size": ("llama", {"hidden_size": 28, "head_dim": 6}),
    "latent attention with every bias": ("deepseek_v3", {"attention_bias": True}),
    "latent queries of full rank": ("deepseek_v3", {"q_lora_rank": None}),
}
ROTATIONS = {
    "residual and heads": {},
    "residual alone": {"heads": False},
    "blocks": {"block": 4},
}
TOKENS = torch.randint(0, VOCABULARY, (3, 16), generator=torch.Generator().manual_seed(1))


def hadamard(**settings: Any) -> RotationConfig:
    return RotationConfig(kind="hadamard", **settings)


def logits(checkpoint: Checkpoint) -> Tensor:
    """In fp64, whose matrix products leave what RMSNorm does in fp32 as the only rounding."""
    model = BlockModel(checkpoint, torch.device("cpu"), torch.float64)
    hidden = model.embed(TOKENS, batch_size=3)
    for index in range(checkpoint.blocks):
        hidden = list(model.advance(model.block(index), index, hidden))
    return torch.cat([model.head()(model.final_norm(batch)) for batch in hidden])


def change(rotated: Checkpoint, original: Tensor) -> float:
    """Largest change of a logit, relative to the largest logit."""
    return float((logits(rotated) - original).abs().max() / original.abs().max())


@pytest.fixture
def llama(tmp_path: Path) -> Checkpoint:
    return Checkpoint(make_model(tmp_path / "m", dtype=torch.float32, uneven_norms=True))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_rotated_model_gives_the_logits_of_the_original(
    tmp_path: Path, case: str, tied: bool
) -> None:
    model_type, changes = CASES[case]
    changes = changes | {"tie_word_embeddings": tied}
    folder = make_model(
        tmp_path / "m", model_type, dtype=torch.float32, uneven_norms=True, **changes
    )
    checkpoint = Checkpoint(folder)
    original = logits(checkpoint)
    for name, settings in ROTATIONS.items():
        rotated = RotatedCheckpoint(checkpoint, hadamard(**settings), torch.float64)
        assert change(rotated, original) < 1e-5, name
        assert rotated.specs[-1].name == "lm_head"
        assert all(rotated.dtype(n) == rotated.tensor(n).dtype for n in rotated.entries)


def test_every_linear_that_touches_the_residual_stream_or_heads_changes(llama: Checkpoint) -> None:
    both = RotatedCheckpoint(llama, hadamard())
    alone = RotatedCheckpoint(llama, hadamard(heads=False))
    assert both.turns_heads
    assert not alone.turns_heads
    for spec in llama.specs:
        assert not torch.allclose(both.weight(spec.name), llama.weight(spec.name)), spec
        same = torch.equal(both.weight(spec.name), alone.weight(spec.name))
        assert same == (spec.role not in ("v", "o")), spec
    for name in ("model.norm", "model.layers.1.input_layernorm"):
        assert torch.equal(both.weight(name), torch.ones(32))


def test_a_centred_embedding_would_change_the_model(llama: Checkpoint) -> None:
    class Centred(RotatedCheckpoint):
        def tensor(self, name: str) -> Tensor:
            if name != "model.embed_tokens.weight":
                return super().tensor(name)
            rows = llama.tensor(name).double()
            return self.residual.apply(rows - rows.mean(-1, keepdim=True))

    original = logits(llama)
    assert change(Centred(llama, hadamard(), torch.float64), original) > 1e-2


def test_tensors_keep_their_dtype(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "qwen3"))
    rotated = RotatedCheckpoint(checkpoint, hadamard())
    for name in rotated.entries:
        assert rotated.tensor(name).dtype == torch.bfloat16
        assert tuple(rotated.tensor(name).shape) == rotated.entries[name].shape


def test_equal_seeds_give_equal_models_and_others_do_not(llama: Checkpoint) -> None:
    first, again, other = (
        RotatedCheckpoint(llama, hadamard(seed=seed)).weight("model.layers.1.self_attn.v_proj")
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_blocks_of_the_model_turn_their_heads_differently(llama: Checkpoint) -> None:
    rotated = RotatedCheckpoint(llama, hadamard())
    first, second = (rotated._head_rotation(block).matrix() for block in range(2))
    assert not torch.equal(first, second)


def test_an_outlier_channel_is_spread_over_all(llama: Checkpoint) -> None:
    class Outlier(Checkpoint):
        def tensor(self, name: str) -> Tensor:
            tensor = super().tensor(name)
            reads = name.endswith(("q_proj.weight", "k_proj.weight", "gate_proj.weight"))
            return tensor * (1 + 30 * (torch.arange(32) == 3)) if reads else tensor

    checkpoint = Outlier(llama.path)
    rotated = RotatedCheckpoint(checkpoint, hadamard())
    assert peak_ratio(rotated, 32) < 0.7 * peak_ratio(checkpoint, 32)


def test_gaussian_weights_have_nothing_for_a_rotation_to_take_away(llama: Checkpoint) -> None:
    class Gaussian(Checkpoint):
        def tensor(self, name: str) -> Tensor:
            generator = torch.Generator().manual_seed(sum(map(ord, name)))
            return torch.randn(256, 512, generator=generator)

    assert peak_ratio(Gaussian(llama.path)) == pytest.approx(2.854, abs=0.01)


def test_the_best_of_several_seeds_has_the_smallest_peaks(llama: Checkpoint) -> None:
    peaks = {
        seed: peak_ratio(RotatedCheckpoint(llama, hadamard(seed=seed))) for seed in range(3, 7)
    }
    chosen = best_seed(llama, hadamard(seed=3, candidates=4))
    assert chosen.seed == min(peaks, key=peaks.__getitem__)
    assert best_seed(llama, hadamard(seed=3)).seed == 3


def test_a_weight_that_is_not_finite_is_named(llama: Checkpoint) -> None:
    class Broken(Checkpoint):
        def tensor(self, name: str) -> Tensor:
            tensor = super().tensor(name)
            return tensor / 0 if "layers.1.mlp.up_proj" in name else tensor

    rotated = RotatedCheckpoint(Broken(llama.path), hadamard())
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.up_proj\.weight holds .* NaN or infinite"
    ):
        rotated.weight("model.layers.1.mlp.up_proj")


def test_a_tied_model_with_another_head_of_its_own_is_refused(llama: Checkpoint) -> None:
    tied = Checkpoint(llama.path)
    tied.raw_config["tie_word_embeddings"] = tied.config.tie_word_embeddings = True
    rotated = RotatedCheckpoint(tied, hadamard())
    with pytest.raises(ModelError, match=r"tie_word_embeddings: true, but lm_head.weight differs"):
        rotated.weight("lm_head")


@pytest.mark.parametrize("model_type", ROTATABLE)
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_memory_is_rotated_in_place(tmp_path: Path, model_type: str, tied: bool) -> None:
    folder = make_model(
        tmp_path / "m",
        model_type,
        dtype=torch.float32,
        uneven_norms=True,
        tie_word_embeddings=tied,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    before = model.model.layers[1].self_attn.o_proj.weight.clone()
    with torch.no_grad():
        expected = model(TOKENS).logits
        rotate_model(model, hadamard())
        torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model.model.layers[1].self_attn.o_proj.weight, before)
    model.save_pretrained(tmp_path / "rotated")
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "rotated", dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_is_refused_stays_as_it_was(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "olmoe", clip_qkv=1.0, dtype=torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match="clip_qkv"):
        rotate_model(model, hadamard(heads=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
