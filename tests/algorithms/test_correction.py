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
from alphaquant.models.linear import LinearSpec
from alphaquant.models.observe import RoutingWeight
from alphaquant.models.original import watch
from alphaquant.models.shortfalls import Observed, Streams, observe_shortfalls
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


@pytest.mark.parametrize("model_type", TYPES)
def test_every_architecture_comes_closer_to_the_original(tmp_path: Path, model_type: str) -> None:
    source = make_model(tmp_path / "m", model_type, num_hidden_layers=3)
    plain, _ = quantize(source, tmp_path / "plain")
    corrected, told = quantize(source, tmp_path / "corrected", correction="stream")
    assert sum(note.startswith("correction: ") for note in told) == 3
    assert hidden_error(source, corrected) < 0.95 * hidden_error(source, plain)
    assert load_block(corrected[0]).keys() == load_block(plain[0]).keys()


@pytest.fixture(scope="module")
def text() -> Tensor:
    """Windows of text that the demo model can read."""
    documents = "\n".join(document.text for document in builtin.documents("calibration"))
    tokens = AutoTokenizer.from_pretrained(demo_model_path())(documents, return_tensors="pt")
    return tokens.input_ids[0, : 72 * 128].view(72, 128)


@pytest.mark.parametrize(("windows", "most"), [(56, 0.8), (8, 1.0)])
def test_the_stream_of_a_trained_model_is_brought_back(
    tmp_path: Path, text: Tensor, windows: int, most: float
) -> None:
    """Also where there is little text to tell what is missing by. In a model of random weights there is little to bring back."""
    errors = {}
    for correction in ("none", "stream"):
        folders, _ = quantize(
            demo_model_path(),
            tmp_path / correction,
            "int2-g32",
            text[:windows],
            correction=correction,
        )
        errors[correction] = hidden_error(demo_model_path(), folders, text[56:])
    assert errors["stream"] < most * errors["none"], errors


def test_a_correction_that_nothing_speaks_for_is_left(tmp_path: Path) -> None:
    """Of one window there are no halves that could agree."""
    source = make_model(tmp_path / "m", "llama")
    settings = {"tokens": windows(1, 64)}
    plain, _ = quantize(source, tmp_path / "plain", "int3-g16", **settings)
    left, told = quantize(source, tmp_path / "left", "int3-g16", correction="stream", **settings)
    assert len(told) == len(left)
    assert all("0% to 0%" in note for note in told)
    # the first block's q, k and v see what they see in a plain pass
    first = [name for name in load_block(plain[0]) if name.endswith(("q_proj", "k_proj", "v_proj"))]
    for name in first:
        assert torch.equal(load_block(plain[0])[name].codes, load_block(left[0])[name].codes)


def test_the_size_of_batches_decides_nothing(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "olmoe")
    settings = {"tokens": windows(16), "correction": "stream"}
    small, large = (
        quantize(source, tmp_path / str(size), "int4-g16", batch_size=size, **settings)[0][0]
        for size in (3, 16)
    )
    same = (codes(small) == codes(large)).float().mean()
    assert float(same) > 0.97  # sums in another order flip ties


def test_a_hessian_is_factored_once_for_its_correction_and_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model(tmp_path / "m", "llama")
    factored: list[torch.Size] = []
    whole = torch.linalg.cholesky_ex

    def count(matrix: Tensor) -> Any:
        factored.append(matrix.shape)
        return whole(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", count)
    folders, _ = quantize(source, tmp_path / "out", correction="stream")
    assert len(factored) == len(folders) * 4  # what q, o, gate and down read


@dataclass
class Moe:
    """The first block of a small mixture of experts, and token windows at its door."""

    model: BlockModel
    block: nn.Module
    specs: list[LinearSpec]
    hidden: list[Tensor]

    def observed(
        self, specs: list[LinearSpec], hidden: Tensor, windows: int | None = None
    ) -> Observed:
        """Hessians and what is lacking of `specs` where the original's stream is `hidden`, in the first `windows`."""
        original = watch(self.model, self.block, 0, self.specs, hidden[:windows], 2)
        streams = Streams(torch.cat(self.hidden)[:windows], original, 1)
        return observe_shortfalls(self.model, self.block, 0, specs, {}, streams, "p")

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


@pytest.mark.parametrize("roles", [["q"], ["o"], ["o", "gate", "router"], ["down"]])
def test_inputs_are_those_of_a_plain_pass_however_early_it_may_end(
    moe: Moe, roles: list[str]
) -> None:
    specs = [spec for spec in moe.specs if spec.role in roles]
    found = moe.observed(specs, torch.cat(moe.hidden))
    expected = moe.alone(specs, moe.hidden, "p")
    assert found.hessians.keys() == found.shortfalls.keys() == expected.keys()
    for key, hessian in found.hessians.items():
        torch.testing.assert_close(hessian.total, expected[key].total)
        assert hessian.tokens == expected[key].tokens
        # one stream lacks nothing but what rounding leaves, where original and quantized block are one
        short = found.shortfalls[key]
        assert float(short.halves.abs().max()) < 1e-4 * float(expected[key].total.abs().max())
    half = moe.observed(specs, torch.cat(moe.hidden), windows=2).hessians
    for key, first in found.first.items():
        torch.testing.assert_close(first, half[key].total)


def test_readers_of_one_tensor_are_compared_at_one_place(moe: Moe) -> None:
    found = watch(moe.model, moe.block, 0, moe.specs, torch.cat(moe.hidden), 2)
    by_role = {
        role: {found.places[s.input_key] for s in moe.specs if s.role == role}
        for role in ("q", "o", "router", "gate", "down")
    }
    assert all(len(places) == 1 for places in by_role.values())
    assert by_role["router"] == by_role["gate"]
    assert {place.factor for role in ("o", "down") for place in by_role[role]} == {1.0}
    assert {place.factor for role in ("q", "gate") for place in by_role[role]} == {None}
    assert set(found.there) == {place.at for places in by_role.values() for place in places}


def test_experts_pair_the_tokens_that_the_quantized_model_sends_them(moe: Moe) -> None:
    """Whatever the original's own routers would say."""
    other = torch.cat(moe.hidden).flip(-1) * 2
    gates = [spec for spec in moe.specs if spec.role == "gate"]
    found = moe.observed(gates, other)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {spec.input_key: [] for spec in gates}
    experts = next(m for m in moe.block.modules() if isinstance(m, UnfusedExperts))
    calls: list[tuple[Tensor, ...]] = []
    hook = experts.register_forward_pre_hook(lambda _module, args: calls.append(args))
    with torch.no_grad():
        for now, before in zip(torch.cat(moe.hidden).split(1), other.split(1), strict=True):
            moe.model.run(moe.block, 0, before)
            moe.model.run(moe.block, 0, now)
            (was, *_), (x, chosen, weights) = calls[-2:]
            for token, (ids, counts) in enumerate(zip(chosen, weights, strict=True)):
                for expert, count in zip(ids, counts, strict=True):
                    key = gates[int(expert)].input_key
                    seen[key].append((count * (was[token] - x[token]), x[token]))
    hook.remove()
    for key, pairs in seen.items():
        expected = sum((torch.outer(gap, x) for gap, x in pairs), torch.zeros(32, 32))
        total = found.shortfalls[key].halves.sum(0)
        torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-3)


def test_experts_are_asked_for_what_the_answer_lacks_over_their_weights(moe: Moe) -> None:
    """Were each expert to give what is asked of it, the block would answer as the original does."""
    original = [x + 0.1 * x.flip(-1) for x in moe.hidden]
    down = [spec for spec in moe.specs if spec.role == "down"]
    found = moe.observed(down, torch.cat(original))
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
        torch.testing.assert_close(short.halves.sum(0), expected[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model_type", ["gemma2", "olmo2"])
def test_with_a_norm_behind_it_an_output_makes_up_for_its_inputs(
    tmp_path: Path, model_type: str
) -> None:
    kind = "generic" if model_type in WITHOUT_ROW else "auto"
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type), architecture=kind)
    model = BlockModel(checkpoint, CPU, torch.float32)
    block, specs = model.block(0), checkpoint.block_specs(0)
    hidden = torch.cat(list(model.embed(windows(4), 2)))
    original = watch(model, block, 0, specs, hidden + 0.1 * hidden.flip(-1), 2)
    for role in ("o", "down"):
        [spec] = [spec for spec in specs if spec.role == role]
        linear = model.linear(block, 0, spec.name)
        found = observe_shortfalls(model, block, 0, [spec], {}, Streams(hidden, original, 2))
        read: list[Tensor] = []
        hook = linear.register_forward_pre_hook(lambda _module, args, to=read: to.append(args[0]))
        for stream in (hidden + 0.1 * hidden.flip(-1), hidden):
            model.outputs(block, 0, stream)
        hook.remove()
        was, now = (x.flatten(0, -2) for x in read)
        expected = checkpoint.weight(spec.name).float() @ ((was - now).T @ now)
        apart = found.shortfalls[spec.input_key].halves.sum(0) - expected
        assert 0 < float(apart.norm()) < 1e-3 * float(expected.norm())
