from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.quantized_block import block_weights, load_block
from alphaquant.config import QuantizationConfig
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import collect_pairs
from alphaquant.progress import reporting_to
from tests.algorithms.test_quantize_model import CPU, FolderCache, uniform, windows
from tests.notes import Notes
from tests.observed import run_and_collect
from tests.tiny import TYPES, make_model


def quantize(
    source: Path,
    root: Path,
    scheme: str = "int2-g16",
    tokens: Tensor | None = None,
    batch_size: int = 8,
    **changes: object,
) -> tuple[list[Path], list[str]]:
    """Folders of the blocks under one scheme, and what was told. Without `tokens`, 32 windows."""
    checkpoint = Checkpoint(source)
    notes = Notes()
    with reporting_to(notes):
        folders = quantize_blocks(
            checkpoint,
            uniform(checkpoint, scheme),
            windows(32) if tokens is None else tokens,
            QuantizationConfig(group_size=16, **changes),
            device=CPU,
            batch_size=batch_size,
            blocks=FolderCache(root),
        )
    return folders, notes.said


def codes(folder: Path) -> Tensor:
    """All codes of a block, in a row."""
    return torch.cat([weight.codes.flatten() for weight in load_block(folder).values()])


def hidden_error(source: Path, folders: list[Path]) -> float:
    """How far the last block's outputs on new windows are from the original's."""
    checkpoint = Checkpoint(source)
    model = BlockModel(checkpoint, CPU, torch.float32)
    fresh = torch.randint(0, 256, (16, 24), generator=torch.Generator().manual_seed(9))
    now = model.embed(fresh, 16)
    before = [x.clone() for x in now]
    for index, folder in enumerate(folders):
        weights = block_weights(checkpoint, index, folder)
        now = list(model.advance(model.block(index, weights), index, now))
        before = list(model.advance(model.block(index), index, before))
    return float((now[0] - before[0]).square().mean())


@pytest.mark.parametrize("model_type", TYPES)
def test_every_architecture_comes_closer_to_the_original(tmp_path: Path, model_type: str) -> None:
    source = make_model(tmp_path / "m", model_type, num_hidden_layers=3)
    plain, _ = quantize(source, tmp_path / "plain")
    corrected, told = quantize(source, tmp_path / "corrected", correction="inputs")
    assert sum(note.startswith("correction ") for note in told) == 3
    assert hidden_error(source, corrected) < 1.02 * hidden_error(source, plain)
    assert load_block(corrected[0]).keys() == load_block(plain[0]).keys()


def test_a_correction_that_does_not_help_is_left(tmp_path: Path) -> None:
    """Without any doubt, corrections from a handful of tokens are noise."""
    source = make_model(tmp_path / "m", "llama")
    settings = {"tokens": windows(2, 8), "damping": 0}
    plain, _ = quantize(source, tmp_path / "plain", "int3-g16", **settings)
    settings |= {"correction": "inputs", "correction_prior": 0}
    left, told = quantize(source, tmp_path / "left", "int3-g16", **settings)
    assert len(told) == len(left)
    assert all("left" in note for note in told)
    assert all(
        torch.equal(codes(ours), codes(theirs)) for ours, theirs in zip(plain, left, strict=True)
    )


def test_the_size_of_batches_decides_nothing(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "olmoe")
    settings = {"tokens": windows(16), "correction": "inputs"}
    small, large = (
        quantize(source, tmp_path / str(size), "int4-g16", batch_size=size, **settings)[0][0]
        for size in (3, 16)
    )
    same = (codes(small) == codes(large)).float().mean()
    assert float(same) > 0.97  # sums in another order flip ties


@dataclass
class Moe:
    """The first block of a small mixture of experts, and token windows at its door."""

    model: BlockModel
    block: nn.Module
    specs: list[LinearSpec]
    hidden: list[Tensor]

    def pairs(self, specs: list[LinearSpec], original: list[Tensor]) -> Any:
        """Hessians and drifts of `specs` where the original's stream is `original`."""
        routers = [spec for spec in self.specs if spec.role == "router"]
        return collect_pairs(self.model, self.block, 0, specs, routers, {}, self.hidden, original)

    def alone(self, specs: list[LinearSpec], hidden: list[Tensor]) -> Any:
        """Hessians of `specs` in a plain pass."""
        return run_and_collect(self.model, self.block, 0, specs, hidden)[0]


@pytest.fixture
def moe(tmp_path: Path) -> Moe:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    model = BlockModel(checkpoint, CPU, torch.float32)
    specs = checkpoint.block_specs(0)
    return Moe(model, model.block(0), specs, list(model.embed(windows(4), 2)))


def test_pairs_of_one_stream_have_no_drift_and_the_hessians_of_a_plain_pass(moe: Moe) -> None:
    hessians, drifts = moe.pairs(moe.specs, moe.hidden)
    expected = moe.alone(moe.specs, moe.hidden)
    assert hessians.keys() == drifts.keys() == expected.keys()
    for key, accumulator in hessians.items():
        assert torch.equal(accumulator.total, expected[key].total)
        assert accumulator.tokens == drifts[key].tokens == expected[key].tokens
        assert not drifts[key].total.any()


def test_the_originals_tokens_go_where_the_quantized_models_went(moe: Moe) -> None:
    """Whatever the original's own routers would say, experts see pairs of the same tokens."""
    other = [x.flip(-1) * 2 for x in moe.hidden]
    down = [spec for spec in moe.specs if spec.role == "down"]
    hessians, drifts = moe.pairs(down, other)
    own = moe.alone(down, other)
    assert [hessians[s.input_key].tokens for s in down] != [own[s.input_key].tokens for s in down]
    assert all(drifts[s.input_key].tokens == hessians[s.input_key].tokens for s in down)
    assert all(drifts[s.input_key].total.any() for s in down if drifts[s.input_key].tokens)
