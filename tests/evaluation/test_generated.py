"""Windows that a model writes are what it predicts, of the asked size, and the same again with the same seed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.demo import demo_model_path
from alphaquant.errors import ModelError
from alphaquant.evaluation import generated
from alphaquant.evaluation.generated import replaced, with_written, written_windows
from alphaquant.evaluation.room import Room
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.loading import load_whole
from tests.tiny import make_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("windows", "share", "expected"),
    [
        (8, 0.5, [1, 3, 5, 7]),
        (8, 0.25, [3, 7]),
        (8, 1.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (5, 0.5, [2, 4]),
        (3, 0.1, [2]),
        (3, 0.0, []),
        (1, 0.6, [0]),
    ],
)
def test_windows_that_give_way_are_evenly_spread(
    windows: int, share: float, expected: list[int]
) -> None:
    assert replaced(windows, share) == expected


def test_the_demo_model_writes_what_it_expects() -> None:
    """Its own words surprise it as much as its entropy says, evenly drawn ones far more."""
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
    any_other = torch.randint(len(checkpoint.tokenizer), windows[:, 1:, None].shape)
    assert -predicted.gather(-1, any_other).mean() > 1.5 * surprise


def test_the_seed_decides(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))
    first, same, other = (written_windows(checkpoint, 3, 24, seed, CPU, 9) for seed in (5, 5, 6))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 3


@pytest.mark.parametrize("model_type", ["llama", "olmoe", "gemma2", "gemma3_text", "qwen3_moe"])
def test_what_was_written_does_not_depend_on_the_cache(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token drawn behind a cache is one of the likeliest that the model finds without one."""
    monkeypatch.setattr(generated, "_drawn", _likeliest)
    checkpoint = Checkpoint(make_model(tmp_path / model_type, model_type))
    windows = written_windows(checkpoint, 3, 20, 0, CPU, 2)
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    with torch.no_grad():
        predicted = model(windows).logits[:, :-1]
    gap = predicted.max(-1).values - predicted.gather(-1, windows[:, 1:, None])[..., 0]
    assert gap.abs().max() < 1e-3 * predicted.abs().max()


def _likeliest(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    assert len(logits) == len(draws)
    return logits.argmax(-1, keepdim=True)


def test_tokens_are_drawn_as_often_as_they_are_predicted() -> None:
    shares = torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0])
    draws = torch.arange(1000, dtype=torch.float64) / 1000
    found = generated._drawn(shares.log().expand(1000, -1), draws)
    counts = found.flatten().bincount(minlength=5)
    assert counts.tolist() == pytest.approx((1000 * shares).tolist(), abs=1)
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert generated._drawn(shares.log()[None], last).item() == 3


def test_how_many_are_written_at_once_decides_nothing(tmp_path: Path) -> None:
    """Results are kept by keys that do not know of it."""
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))
    one, four, all_ = (written_windows(checkpoint, 6, 24, 0, CPU, n) for n in (1, 4, 99))
    assert torch.equal(one, all_)
    assert torch.equal(four, all_)


def test_less_memory_means_fewer_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))
    at_once: list[int] = []
    monkeypatch.setattr(
        generated,
        "written_windows",
        lambda _c, count, length, _s, _d, pieces: (
            at_once.append(pieces) or torch.zeros(count, length, dtype=torch.int64)
        ),
    )
    windows = torch.zeros(8, 16, dtype=torch.int64)
    each = generated._piece_bytes(checkpoint, Room(CPU, 8))
    whole = checkpoint.whole_bytes(torch.float32)
    monkeypatch.setattr(Room, "_free", lambda self, device: int((whole + 5.5 * each) / 0.8))
    with_written(checkpoint, windows, 0.5, 0, Room(CPU, 8))
    monkeypatch.setattr(Room, "_free", lambda self, device: None)
    for batch_size in (8, 1):  # which a machine that has run out of memory halves
        with_written(checkpoint, windows, 0.5, 0, Room(CPU, batch_size))
    assert at_once == [5, 512, 64]


def test_a_model_writes_in_what_calibration_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: in bf16 where that is fast, for wide models on a CPU too."""
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))
    loaded: list[torch.dtype] = []

    def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
        model = load_whole(checkpoint, device, dtype)
        loaded.extend({weight.dtype for weight in model.parameters()})
        return model

    monkeypatch.setattr(generated, "load_whole", load)
    fp32 = written_windows(checkpoint, 2, 16, 0, CPU, 4)
    monkeypatch.setattr(generated, "calibration_dtype", lambda *_: torch.bfloat16)
    bf16 = written_windows(checkpoint, 2, 16, 0, CPU, 4)
    assert loaded == [torch.float32, torch.bfloat16]
    assert fp32.shape == bf16.shape


def test_a_model_without_a_cache_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))

    class Forgetful(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 8), past_key_values=None)

    monkeypatch.setattr(generated, "load_whole", lambda *_: Forgetful())
    with pytest.raises(ModelError, match="keeps no keys and values"):
        written_windows(checkpoint, 2, 8, 0, CPU, 4)


def test_a_type_without_a_row_writes_too(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "olmo2", "olmo2"), architecture="generic")
    assert written_windows(checkpoint, 1, 8, 0, CPU, 4).shape == (1, 8)


def test_pieces_begin_as_the_tokenizer_begins_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "PIECE", 8)
    checkpoint = Checkpoint(make_model(tmp_path / "llama", "llama"))
    plain = written_windows(checkpoint, 4, 16, 0, CPU, 9)
    special = set(checkpoint.tokenizer.all_special_ids)
    firsts = plain.view(-1, 8)[:, 0].tolist()
    assert len(set(firsts)) > 1
    assert not special & set(firsts)

    class Beginning:
        """The same with a token in front of every text."""

        all_special_ids = (7, 8)

        def __getattr__(self, name: str) -> Any:
            return getattr(checkpoint.tokenizer, name)

        def __len__(self) -> int:
            return len(checkpoint.tokenizer)

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [7, 20, 8]}

    begun = Checkpoint(checkpoint.path)
    monkeypatch.setitem(begun.__dict__, "tokenizer", Beginning())
    assert (written_windows(begun, 4, 16, 0, CPU, 9).view(-1, 8)[:, 0] == 7).all()
