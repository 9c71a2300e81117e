from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from tests.tiny import TYPES, VOCABULARY, make_model


def stream(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    return stream_of(BlockModel(Checkpoint(folder), torch.device("cpu"), torch.float32), tokens)


def stream_of(model: BlockModel, tokens: torch.Tensor) -> torch.Tensor:
    """Logits, block by block."""
    hidden = model.embed(tokens, batch_size=2)
    for index in range(model.checkpoint.blocks):
        hidden = list(model.advance(model.block(index), index, hidden))
    return torch.cat([model.head()(model.final_norm(batch)) for batch in hidden])


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_streamed_blocks_give_the_logits_of_transformers(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    folder = make_model(tmp_path / "m", model_type, tie_word_embeddings=tied, shard="20kB")
    tokens = torch.randint(0, VOCABULARY, (5, 16), generator=torch.Generator().manual_seed(1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(tokens).logits
    torch.testing.assert_close(stream(folder, tokens), expected, rtol=1e-4, atol=1e-5)


def test_what_a_model_does_to_its_logits_behind_the_projection_is_done(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "gemma2", final_logit_softcapping=0.5)
    tokens = torch.randint(0, VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    logits = stream(folder, tokens)
    assert 0.3 < float(logits.abs().max()) < 0.5
    model = BlockModel(Checkpoint(folder), torch.device("cpu"), torch.float32)
    hidden = torch.randn(3, 7, 32)
    torch.testing.assert_close(model.head()(hidden)[1], model.head()(hidden[1]))


@pytest.mark.parametrize("model_type", TYPES)
def test_specs_cover_every_matrix_of_the_blocks(tmp_path: Path, model_type: str) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    matrices = {
        name.removesuffix(".weight")
        for name, entry in checkpoint.entries.items()
        if len(entry.shape) == 2 and "embed" not in name
    }
    assert {spec.name for spec in checkpoint.specs} == matrices


@pytest.mark.parametrize("model_type", TYPES)
def test_the_faster_library_is_for_passes_without_experts(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alphaquant.linalg.products.onednn_is_faster", lambda: True)
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    checkpoint = Checkpoint(make_model(tmp_path / "model", model_type))
    model = BlockModel(checkpoint, torch.device("cpu"), torch.float32)
    routed = any(spec.expert is not None for spec in checkpoint.specs)
    with model.products_for(torch.zeros(2, 32, 128)):
        assert (matmul.fp32_precision == "bf16") != routed
    for other in (
        torch.zeros(1, 33, 128),
        torch.zeros(2, 32, 64),
        torch.zeros(2, 32, 128).double(),
    ):
        with model.products_for(other):
            assert matmul.fp32_precision != "bf16"


@pytest.mark.parametrize("model_type", ["llama", "olmoe"])
def test_a_block_that_learns_multiplies_in_bf16_and_is_exact_without_a_gradient(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alphaquant.models.device.capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("alphaquant.models.device.WIDE_IN_PASSES", 1)
    checkpoint = Checkpoint(make_model(tmp_path / "model", model_type))
    model = BlockModel(checkpoint, torch.device("cpu"), torch.float32)
    tokens = torch.randint(0, VOCABULARY, (2, 16))
    block, hidden = model.block(0), model.embed(tokens, 2)[0]
    spec = next(spec for spec in checkpoint.block_specs(0) if spec.name.endswith("v_proj"))
    seen: list[torch.dtype] = []
    model.linear(block, 0, spec.name).register_forward_hook(
        lambda _module, _args, out: seen.append(out.dtype)
    )
    exact = model.run(block, 0, hidden)
    learning = model.learn(block, 0, hidden)
    with torch.no_grad():
        assert torch.equal(model.learn(block, 0, hidden), exact)
    assert seen == [torch.float32, torch.bfloat16, torch.float32]
    assert learning.dtype == torch.float32  # the residual stream is never rounded
    torch.testing.assert_close(learning, exact, rtol=5e-2, atol=5e-2)
    # what stands behind the block is not its matter
    assert not torch.is_autocast_enabled("cpu")
