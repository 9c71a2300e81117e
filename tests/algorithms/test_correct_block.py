from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.quantized_block import block_weights, load_block
from alphaquant.config import QuantizationConfig
from alphaquant.demo import demo_model_path
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.experts import UnfusedExperts
from alphaquant.models.joins import joins
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight
from alphaquant.models.pairs import Pairs, Streams, collect_pairs
from alphaquant.progress import reporting_to
from alphaquant.text import builtin
from tests.algorithms.test_quantize_model import CPU, FolderCache, uniform, windows
from tests.notes import Notes
from tests.observed import run_and_collect
from tests.tiny import TYPES, WITHOUT_ROW, make_model


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


def hidden_error(source: Path, folders: list[Path], fresh: Tensor | None = None) -> float:
    """How far the last block's outputs on new windows are from the original's."""
    checkpoint = Checkpoint(source)
    model = BlockModel(checkpoint, CPU, torch.float32)
    if fresh is None:
        fresh = torch.randint(0, 256, (16, 24), generator=torch.Generator().manual_seed(9))
    now = model.embed(fresh, 16)
    before = [x.clone() for x in now]
    for index, folder in enumerate(folders):
        weights = block_weights(checkpoint, index, folder)
        now = list(model.advance(model.block(index, weights), index, now))
        before = list(model.advance(model.block(index), index, before))
    return float((now[0] - before[0]).square().mean())


@pytest.mark.parametrize("correction", ["inputs", "stream"])
@pytest.mark.parametrize("model_type", TYPES)
def test_every_architecture_comes_closer_to_the_original(
    tmp_path: Path, model_type: str, correction: str
) -> None:
    source = make_model(tmp_path / "m", model_type, num_hidden_layers=3)
    plain, _ = quantize(source, tmp_path / "plain")
    corrected, told = quantize(source, tmp_path / "corrected", correction=correction)
    assert sum(note.startswith("correction ") for note in told) == 3
    assert hidden_error(source, corrected) < 1.02 * hidden_error(source, plain)
    assert load_block(corrected[0]).keys() == load_block(plain[0]).keys()


def test_the_stream_is_brought_back_where_inputs_alone_are_not_enough(tmp_path: Path) -> None:
    """Of a trained model: in one of random weights there is little to tell what is missing by."""
    source = demo_model_path()
    text = "\n".join(document.text for document in builtin.documents("calibration"))
    tokens = AutoTokenizer.from_pretrained(source)(text, return_tensors="pt").input_ids
    windows_of_text = tokens[0, : 72 * 128].view(72, 128)
    errors = {}
    for correction in ("inputs", "stream"):
        learnt = windows_of_text[:56]
        folders, _ = quantize(
            source, tmp_path / correction, "int2-g32", learnt, correction=correction
        )
        errors[correction] = hidden_error(source, folders, windows_of_text[56:])
    assert errors["stream"] < 0.95 * errors["inputs"], errors


@pytest.mark.parametrize("correction", ["inputs", "stream"])
def test_a_correction_that_does_not_help_is_left(tmp_path: Path, correction: str) -> None:
    """Without any doubt, corrections from a handful of tokens are noise."""
    source = make_model(tmp_path / "m", "llama")
    settings = {"tokens": windows(2, 8), "damping": 0}
    plain, _ = quantize(source, tmp_path / "plain", "int3-g16", **settings)
    settings |= {"correction": correction, "correction_prior": 0}
    left, told = quantize(source, tmp_path / "left", "int3-g16", **settings)
    assert len(told) == len(left)
    assert all("left" in note for note in told)
    assert all(
        torch.equal(codes(ours), codes(theirs)) for ours, theirs in zip(plain, left, strict=True)
    )


def test_the_size_of_batches_decides_nothing(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "olmoe")
    settings = {"tokens": windows(16), "correction": "stream"}
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

    def pairs(
        self, specs: list[LinearSpec], original: list[Tensor], *, in_stream: bool = False
    ) -> Pairs:
        """Hessians and what is lacking of `specs` where the original's stream is `original`."""
        routers = [spec for spec in self.specs if spec.role == "router"]
        answers = list(self.model.advance(self.block, 0, original))
        streams = Streams(self.hidden, original, answers)
        found = None
        if in_stream:
            found = joins(self.model, self.block, 0, specs, self.hidden[0])
        return collect_pairs(self.model, self.block, 0, specs, routers, {}, streams, "p", found)

    def alone(
        self, specs: list[LinearSpec], hidden: list[Tensor], weight: RoutingWeight = "none"
    ) -> Any:
        """Hessians of `specs` in a plain pass."""
        return run_and_collect(self.model, self.block, 0, specs, hidden, weight)[0]


@pytest.fixture
def moe(tmp_path: Path) -> Moe:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    model = BlockModel(checkpoint, CPU, torch.float32)
    specs = checkpoint.block_specs(0)
    return Moe(model, model.block(0), specs, list(model.embed(windows(4), 2)))


def test_pairs_of_one_stream_have_no_drift_and_the_hessians_of_a_plain_pass(moe: Moe) -> None:
    found = moe.pairs(moe.specs, moe.hidden)
    hessians, drifts = found.hessians, found.drifts
    expected = moe.alone(moe.specs, moe.hidden, "p")
    assert hessians.keys() == drifts.keys() == expected.keys()
    for key, accumulator in hessians.items():
        assert torch.equal(accumulator.total, expected[key].total)
        assert accumulator.tokens == drifts[key].tokens == expected[key].tokens
        assert not drifts[key].total.any()


def test_the_originals_tokens_go_where_the_quantized_models_went(moe: Moe) -> None:
    """Whatever the original's own routers would say, experts see pairs of the same tokens."""
    other = [x.flip(-1) * 2 for x in moe.hidden]
    down = [spec for spec in moe.specs if spec.role == "down"]
    found = moe.pairs(down, other)
    hessians, drifts = found.hessians, found.drifts
    own = moe.alone(down, other)
    assert [hessians[s.input_key].tokens for s in down] != [own[s.input_key].tokens for s in down]
    assert all(drifts[s.input_key].tokens == hessians[s.input_key].tokens for s in down)
    assert all(drifts[s.input_key].total.any() for s in down if drifts[s.input_key].tokens)


@pytest.mark.parametrize("role", ["q", "o", "gate", "down"])
def test_inputs_are_those_of_a_plain_pass_however_early_it_may_end(moe: Moe, role: str) -> None:
    specs = [spec for spec in moe.specs if spec.role == role]
    found = moe.pairs(specs, moe.hidden, in_stream=True)
    expected = moe.alone(specs, moe.hidden, "p")
    assert found.hessians.keys() == expected.keys()
    assert all(torch.equal(found.hessians[key].total, expected[key].total) for key in expected)
    assert found.shortfalls.keys() == (set(expected) if role in ("o", "down") else set())
    # the same stream lacks nothing but what rounding leaves, where original and quantized block are one
    for key, short in found.shortfalls.items():
        assert float(short.total.abs().max()) < 1e-4 * float(expected[key].total.abs().max())
    assert not any(drift.total.any() for drift in found.drifts.values())


def test_experts_are_asked_for_what_the_answer_lacks_over_their_weights(moe: Moe) -> None:
    """Were each expert to give what is asked of it, the block would answer as the original does."""
    original = [x + 0.1 * x.flip(-1) for x in moe.hidden]
    down = [spec for spec in moe.specs if spec.role == "down"]
    found = moe.pairs(down, original, in_stream=True)
    experts = next(m for m in moe.block.modules() if isinstance(m, UnfusedExperts))
    seen: list[tuple[Tensor, ...]] = []
    hook = experts.register_forward_pre_hook(lambda _module, args: seen.append(args))
    expected = {spec.input_key: torch.zeros(spec.rows, spec.cols) for spec in down}
    for now, before in zip(moe.hidden, original, strict=True):
        with torch.no_grad():
            gap = moe.model.run(moe.block, 0, before) - moe.model.run(moe.block, 0, now)
            x, chosen, weights = seen[-1]
            for token, lacking in enumerate(gap.flatten(0, 1)):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    one = experts[int(expert)]
                    inner = one.join(one.gate_proj(x[token]), one.up_proj(x[token]))
                    asked = lacking / weights[token].sum()
                    key = down[int(expert)].input_key
                    expected[key] += weight * torch.outer(asked, inner)
    hook.remove()
    for key, short in found.shortfalls.items():
        torch.testing.assert_close(short.total, expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_with_a_norm_behind_it_an_output_makes_up_for_its_inputs(
    tmp_path: Path, model_type: str
) -> None:
    kind = "generic" if model_type in WITHOUT_ROW else "auto"
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type), architecture=kind)
    model = BlockModel(checkpoint, CPU, torch.float32)
    block, specs = model.block(0), checkpoint.block_specs(0)
    hidden = list(model.embed(windows(4), 2))
    original = [x + 0.1 * x.flip(-1) for x in hidden]
    streams = Streams(hidden, original, list(model.advance(block, 0, original)))
    for role in ("o", "down"):
        [spec] = [spec for spec in specs if spec.role == role]
        found = joins(model, block, 0, [spec], hidden[0])
        stream = collect_pairs(model, block, 0, [spec], [], {}, streams, "none", found)
        inputs = collect_pairs(model, block, 0, [spec], [], {}, streams)
        expected = checkpoint.weight(spec.name).float() @ inputs.drifts[spec.input_key].total
        apart = stream.shortfalls[spec.input_key].total - expected
        assert 0 < float(apart.norm()) < 1e-3 * float(expected.norm())
