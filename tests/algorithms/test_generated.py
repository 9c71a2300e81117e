"""Windows that a model writes are what it predicts, of the asked size, and the same again with the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.algorithms import generated
from alphaquant.algorithms.generated import replaced, written_windows
from alphaquant.demo import demo_model_path
from alphaquant.models.checkpoint import Checkpoint
from tests.tiny import make_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("windows", "share", "expected"),
    [
        (8, 0.5, [1, 3, 5, 7]),
        (8, 0.25, [3, 7]),
        (8, 1.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 0.5, [2, 4]),
        (3, 0.1, []),
        (1, 0.6, [0]),
    ],
)
def test_windows_that_give_way_are_evenly_spread(
    windows: int, share: float, expected: list[int]
) -> None:
    assert replaced(windows, share) == expected


def test_the_demo_model_writes_what_it_expects() -> None:
    """Its own words surprise it less than evenly drawn ones, and as much as its entropy says."""
    checkpoint = Checkpoint(demo_model_path())
    windows = written_windows(checkpoint, 6, 96, 0, CPU, at_once=4)
    assert windows.shape == (6, 96)
    model = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)
    assert windows.shape[1] <= generated.PIECE  # each is one piece
    with torch.no_grad():
        predicted = model(windows).logits[:, :-1].log_softmax(-1)
    surprise = -predicted.gather(-1, windows[:, 1:, None]).mean()
    entropy = -(predicted.exp() * predicted).sum(-1).mean()
    assert surprise == pytest.approx(float(entropy), rel=0.1)


def test_the_seed_decides(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))
    first, same, other = (written_windows(checkpoint, 3, 24, seed, CPU) for seed in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 3


@pytest.mark.parametrize("model_type", ["llama", "olmoe", "gemma2", "gemma3_text", "qwen3_moe"])
def test_what_was_written_does_not_depend_on_the_cache(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token drawn behind a cache is one of the likeliest that the model finds without one."""
    monkeypatch.setattr(torch, "multinomial", _likeliest)
    checkpoint = Checkpoint(make_model(tmp_path / model_type, model_type))
    windows = written_windows(checkpoint, 3, 20, 0, CPU)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    with torch.no_grad():
        predicted = model(windows).logits[:, :-1]
    gap = predicted.max(-1).values - predicted.gather(-1, windows[:, 1:, None])[..., 0]
    assert gap.abs().max() < 1e-3 * predicted.abs().max()


def _likeliest(shares: torch.Tensor, count: int, **_: Any) -> torch.Tensor:
    return shares.topk(count).indices


def test_pieces_begin_as_the_tokenizer_begins_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "PIECE", 8)
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))
    plain = written_windows(checkpoint, 4, 16, 0, CPU)
    special = set(checkpoint.tokenizer.all_special_ids)
    firsts = plain.view(-1, 8)[:, 0].tolist()
    assert len(set(firsts)) > 1
    assert not special & set(firsts)

    class Beginning:
        """The same with a token in front of every text."""

        bos_token_id = 7

        def __getattr__(self, name: str) -> Any:
            return getattr(checkpoint.tokenizer, name)

        def __len__(self) -> int:
            return len(checkpoint.tokenizer)

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [7]}

    begun = Checkpoint(checkpoint.path)
    monkeypatch.setitem(begun.__dict__, "tokenizer", Beginning())
    assert (written_windows(begun, 4, 16, 0, CPU).view(-1, 8)[:, 0] == 7).all()
