from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.quantized_block import block_weights, load_block
from alphaquant.config import QuantizationConfig
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.observe import collect_pairs, run_and_collect
from alphaquant.progress import reporting_to
from tests.algorithms.test_quantize_model import CPU, FolderCache, uniform, windows
from tests.tiny import TYPES, make_model


class Notes:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def update(self, what: str, done: int, total: int) -> None:
        pass

    def note(self, message: str) -> None:
        self.told.append(message)


def quantize(source: Path, root: Path, **changes: object) -> tuple[list[Path], list[str]]:
    checkpoint = Checkpoint(source)
    config = QuantizationConfig(group_size=16, **changes)
    notes = Notes()
    with reporting_to(notes):
        folders = quantize_blocks(
            checkpoint,
            uniform(checkpoint, "int2-g16"),
            windows(32),
            config,
            device=CPU,
            batch_size=8,
            blocks=FolderCache(root),
        )
    return folders, notes.told


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
    checkpoint = Checkpoint(source)
    blocks = {}
    for correction in ("none", "inputs"):
        config = QuantizationConfig(
            group_size=16, correction=correction, correction_prior=0, damping=0
        )
        notes = Notes()
        with reporting_to(notes):
            blocks[correction] = quantize_blocks(
                checkpoint,
                uniform(checkpoint, "int3-g16"),
                windows(2, 8),
                config,
                device=CPU,
                batch_size=8,
                blocks=FolderCache(tmp_path / correction),
            )
    assert all("left" in note for note in notes.told)
    for one, other in zip(blocks["none"], blocks["inputs"], strict=True):
        ours, theirs = load_block(one), load_block(other)
        assert all(torch.equal(ours[name].codes, theirs[name].codes) for name in ours)


def test_the_size_of_batches_decides_nothing(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "olmoe")
    checkpoint = Checkpoint(source)
    config = QuantizationConfig(group_size=16, correction="inputs")
    codes = []
    for size in (3, 16):
        folders = quantize_blocks(
            checkpoint,
            uniform(checkpoint, "int4-g16"),
            windows(16),
            config,
            device=CPU,
            batch_size=size,
            blocks=FolderCache(tmp_path / str(size)),
        )
        codes.append(torch.cat([w.codes.flatten() for w in load_block(folders[0]).values()]))
    assert float((codes[0] == codes[1]).float().mean()) > 0.97  # sums in another order flip ties


@pytest.fixture
def moe(tmp_path: Path) -> tuple[BlockModel, Checkpoint]:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    return BlockModel(checkpoint, CPU, torch.float32), checkpoint


def test_pairs_of_one_stream_have_no_drift_and_the_hessians_of_a_plain_pass(
    moe: tuple[BlockModel, Checkpoint],
) -> None:
    model, checkpoint = moe
    specs = checkpoint.block_specs(0)
    routers = [spec for spec in specs if spec.role == "router"]
    hidden = model.embed(windows(4), 2)
    block = model.block(0)
    hessians, drifts = collect_pairs(model, block, 0, specs, routers, {}, hidden, hidden)
    expected, _ = run_and_collect(model, block, 0, specs, hidden)
    assert hessians.keys() == drifts.keys() == expected.keys()
    for key, accumulator in hessians.items():
        assert torch.equal(accumulator.total, expected[key].total)
        assert accumulator.tokens == drifts[key].tokens == expected[key].tokens
        assert not drifts[key].total.any()


def test_the_originals_tokens_go_where_the_quantized_models_went(
    moe: tuple[BlockModel, Checkpoint],
) -> None:
    """Whatever the original's own routers would say, experts see pairs of the same tokens."""
    model, checkpoint = moe
    specs = checkpoint.block_specs(0)
    routers = [spec for spec in specs if spec.role == "router"]
    hidden = model.embed(windows(4), 4)
    other = [x.flip(-1) * 2 for x in hidden]
    block = model.block(0)
    down = [spec for spec in specs if spec.role == "down"]
    hessians, drifts = collect_pairs(model, block, 0, down, routers, {}, hidden, other)
    own, _ = run_and_collect(model, block, 0, down, other)
    assert [hessians[s.input_key].tokens for s in down] != [own[s.input_key].tokens for s in down]
    assert all(drifts[s.input_key].tokens == hessians[s.input_key].tokens for s in down)
    assert all(drifts[s.input_key].total.any() for s in down if drifts[s.input_key].tokens)
