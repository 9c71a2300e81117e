"""A block that goes by a shortcut answers as if it ran whole."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.hooks import given
from alphaquant.models.linear import Role
from alphaquant.models.observe import calls_once, gather
from alphaquant.models.original import watch
from alphaquant.models.shortcuts import Shortcut, by_shortcuts, shortcut, shortcuts, worth_keeping
from alphaquant.models.shortfalls import Streams, observe_shortfalls
from alphaquant.models.tensor_file import TensorFile
from alphaquant.progress import reporting_to
from tests.notes import Notes
from tests.tiny import MIXTURES, TYPES, WITHOUT_ROW, make_model

DENSE = [name for name in (*TYPES, *WITHOUT_ROW) if name not in (*MIXTURES, "dots1")]
CPU = torch.device("cpu")


def opened(folder: Path, model_type: str) -> tuple[BlockModel, nn.Module, Tensor]:
    """A model, its last block, and five windows that reach it."""
    kind = "generic" if model_type in WITHOUT_ROW else "auto"
    checkpoint = Checkpoint(make_model(folder / model_type, model_type), architecture=kind)
    model = BlockModel(checkpoint, CPU, torch.float32)
    tokens = torch.randint(0, 256, (5, 16), generator=torch.Generator().manual_seed(0))
    hidden = model.embed(tokens, 5)
    for index in range(checkpoint.blocks - 1):
        hidden = list(model.advance(model.block(index), index, hidden))
    return model, model.block(checkpoint.blocks - 1), hidden[0]


def found_in(model: BlockModel, block: nn.Module, hidden: Tensor, role: Role = "o") -> Shortcut:
    found = shortcut(model, block, model.checkpoint.blocks - 1, hidden, role)
    assert found is not None
    return found


def requantized(model: BlockModel, block: nn.Module, *roles: Role) -> None:
    """Linears that are no experts' with other weights, as if they were quantized."""
    last = model.checkpoint.blocks - 1
    for spec in model.checkpoint.block_specs(last):
        if spec.role in roles and spec.expert is None:
            weight = model.linear(block, last, spec.name).weight
            assert isinstance(weight, Tensor)
            with torch.no_grad():
                weight.mul_(0.9)


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize("model_type", [*TYPES, *WITHOUT_ROW])
def test_a_block_answers_alike_whatever_becomes_of_what_is_behind_attention(
    tmp_path: Path, model_type: str, in_file: bool
) -> None:
    model, block, hidden = opened(tmp_path, model_type)
    last = model.checkpoint.blocks - 1
    found = replace(found_in(model, block, hidden), file=TensorFile() if in_file else None)
    for part in (slice(0, 2), slice(2, 5)):
        assert not found.whole
        with found.keeping(block, part):
            model.outputs(block, last, hidden[part])
    assert found.whole
    requantized(model, block, "o", "down")
    expected = torch.cat([model.outputs(block, last, x) for x in (hidden[:2], hidden[2:])])
    parts = block.get_submodule(found.module).children()
    inside = next(part for part in parts if part is not block.get_submodule(found.projection))
    run = by_shortcuts([found], block, lambda batch: model.outputs(block, last, batch))
    with given({"inside": inside}) as ran:
        shorter = torch.cat([run(hidden[:2]), run(hidden[2:])])
    assert not ran
    torch.testing.assert_close(shorter, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.outputs(block, last, hidden), expected)  # it attends again


@pytest.mark.parametrize("model_type", DENSE)
def test_no_product_of_a_dense_block_is_computed_twice(tmp_path: Path, model_type: str) -> None:
    """With both shortcuts nothing runs behind the pass that looked at what down reads but the last linears."""
    model, block, hidden = opened(tmp_path, model_type)
    last = model.checkpoint.blocks - 1
    specs = model.checkpoint.block_specs(last)
    states = HiddenStates(hidden.split(2))
    ways = shortcuts(model, block, last, hidden, len(hidden), ("o", "down"), 0)
    assert [way.role for way in ways] == ["o", "down"]
    for roles in ({"o", "gate", "up", "gate_up"}, {"down"}):
        looked = [spec for spec in specs if spec.role in roles]
        gather(model, block, last, [looked], states, ways=ways)
        requantized(model, block, *{spec.role for spec in looked})
    expected = torch.cat([model.outputs(block, last, x) for x in hidden.split(2)])
    linears = {spec.role: model.linear(block, last, spec.name) for spec in specs}
    run = by_shortcuts(ways, block, lambda batch: model.outputs(block, last, batch))
    with given(linears) as ran:
        shorter = torch.cat([run(batch) for batch in hidden.split(2)])
    assert set(ran) == {"o", "down"}
    assert torch.equal(shorter, expected)


def test_norms_that_a_shortcut_alone_reads_do_not_run(tmp_path: Path) -> None:
    """What stands before attention goes with attention's, what stands before the MLP with the MLP's."""
    model, block, hidden = opened(tmp_path, "llama")
    assert found_in(model, block, hidden, "o").unread == ["input_layernorm"]
    assert found_in(model, block, hidden, "down").unread == ["post_attention_layernorm"]
    plain = block.forward

    def read_twice(states: Tensor, **kwargs: Any) -> Any:
        return plain(states, **kwargs) + block.get_submodule("input_layernorm")(states)

    block.forward = read_twice
    assert found_in(model, block, hidden, "o").unread == []


def test_a_norm_that_experts_read_runs(tmp_path: Path) -> None:
    """Experts are cut short while it is tried what attention alone reads, and still count among the readers."""
    model, block, hidden = opened(tmp_path, "olmoe")
    last = model.checkpoint.blocks - 1
    [way] = shortcuts(model, block, last, hidden, 5, ("o", "down"), 0)
    assert way.unread == ["input_layernorm"]


def test_a_pass_ends_where_the_last_input_was_seen(tmp_path: Path) -> None:
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    specs = model.checkpoint.block_specs(last)
    looked = [spec for spec in specs if spec.role in ("q", "k", "v")]
    answers: list[str] = []
    for spec in specs:
        module = model.linear(block, last, spec.name)
        module.register_forward_hook(lambda *_, role=spec.role: answers.append(role))
    seen = gather(model, block, last, [looked], HiddenStates([hidden]), ends=True)
    assert not answers
    assert [one.tokens for one in seen.values()] == [hidden.shape[0] * hidden.shape[1]]
    assert calls_once(model, block, last, hidden[:1])


def in_pieces(block: nn.Module, size: int) -> None:
    """Let a block's MLP go over its tokens in pieces, where they are more than one."""
    mlp = block.get_submodule("mlp")
    whole = mlp.forward

    def forward(x: Tensor) -> Tensor:
        parts = [whole(part) for part in x.split(size, dim=1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    mlp.forward = forward


def test_linears_that_run_in_pieces_are_seen_whole(tmp_path: Path) -> None:
    """Nothing ends a pass before the last piece, and what is in pieces is no shortcut."""
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    in_pieces(block, 12)
    assert not calls_once(model, block, last, hidden[:1])
    down = [spec for spec in model.checkpoint.block_specs(last) if spec.role == "down"]
    ways = shortcuts(model, block, last, hidden, len(hidden), ("o", "down"), 0)
    assert [way.role for way in ways] == ["o", "down"]  # eight tokens are one piece
    for ends in (False, True):
        seen = gather(model, block, last, [down], HiddenStates([hidden]), ways=ways, ends=ends)
        assert [one.tokens for one in seen.values()] == [hidden.shape[0] * hidden.shape[1]]
    assert [way.whole for way in ways] == [True, False]


def test_a_full_disk_costs_the_shortcut_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, block, hidden = opened(tmp_path, "llama")
    file = TensorFile()
    [way] = shortcuts(model, block, 1, hidden, 5, ("o",), 0, file)
    notes = Notes()
    with reporting_to(notes):
        way.keep(slice(0, 3), torch.zeros(3, 16, 8))
        monkeypatch.setattr(TensorFile, "write", full)
        way.keep(slice(3, 5), torch.zeros(2, 16, 8))
    assert not way.whole
    assert notes.said == ["what self_attn hands on is not kept: [Errno 28] No space left on device"]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_too_large_for_half_of_the_memory_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    roles: tuple[Role, ...] = ("o", "down")
    ways = shortcuts(model, block, last, hidden, 100, roles, 0)
    both = sum(100 * hidden.shape[1] * way.width * 4 for way in ways)
    cases = ((2 * both, both, 2), (2 * both - 2, 0, 1), (2 * both, both + 1, 1), (0, 0, 0))
    for free, beside, expected in cases:
        monkeypatch.setattr("alphaquant.models.shortcuts.free_memory", lambda _, free=free: free)
        monkeypatch.setattr("alphaquant.models.shortcuts._SPARE", 1)
        assert len(shortcuts(model, block, last, hidden, 100, roles, beside)) == expected


def test_an_mlps_inputs_are_kept_on_a_cpu_where_there_is_plenty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    attention, mlp = (
        100 * hidden.shape[1] * way.width * 4
        for way in shortcuts(model, block, last, hidden, 100, ("o", "down"), 0)
    )
    for free, expected in ((2 * (attention + 8 * mlp), 2), (2 * (attention + 8 * mlp) - 2, 1)):
        monkeypatch.setattr("alphaquant.models.shortcuts.free_memory", lambda _, free=free: free)
        found = shortcuts(model, block, last, hidden, 100, ("o", "down"), 0)
        assert [way.role for way in found] == ["o", "down"][:expected]


@pytest.mark.parametrize(
    ("device", "limited", "roles"),
    [("cpu", False, ("o", "down")), ("cpu", True, ("o",)), ("cuda", True, ("o", "down"))],
)
def test_a_limit_keeps_an_mlps_inputs_out_of_a_cpus_memory(
    device: str, limited: bool, roles: tuple[Role, ...]
) -> None:
    assert worth_keeping(torch.device(device), limited=limited) == roles


def test_attention_that_does_more_than_project_has_no_shortcut(tmp_path: Path) -> None:
    model, block, hidden = opened(tmp_path, "llama")
    attention = block.get_submodule("self_attn")
    plain = attention.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output, weights = plain(*args, **kwargs)
        return 2 * output, weights

    attention.forward = doubled
    assert shortcut(model, block, model.checkpoint.blocks - 1, hidden, "o") is None


@pytest.mark.parametrize("use", [lambda x: x + 1, lambda x: x.mean()])
def test_attention_whose_other_answers_are_needed_has_no_shortcut(tmp_path: Path, use: Any) -> None:
    """Nothing stands for them."""
    model, block, hidden = opened(tmp_path, "llama")
    attention = block.get_submodule("self_attn")
    attend = attention.forward
    attention.forward = lambda *args, **kwargs: (attend(*args, **kwargs)[0], torch.zeros(()))
    plain = block.forward

    def reads(*args: Any, **kwargs: Any) -> Any:
        seen: list[Any] = []
        hook = attention.register_forward_hook(lambda _m, _a, output: seen.append(output[1]))
        try:
            answer = plain(*args, **kwargs)
        finally:
            hook.remove()
        use(seen[0])
        return answer

    block.forward = reads
    assert shortcut(model, block, model.checkpoint.blocks - 1, hidden, "o") is None


def test_attention_whose_other_answers_are_read_has_no_shortcut(tmp_path: Path) -> None:
    model, block, hidden = opened(tmp_path, "llama")
    plain = block.forward

    def reads(*args: Any, **kwargs: Any) -> Any:
        seen: list[Any] = []
        attention = block.get_submodule("self_attn")
        hook = attention.register_forward_hook(lambda _m, _a, output: seen.append(output[1]))
        answer = plain(*args, **kwargs)
        hook.remove()
        return answer + seen[0]

    attention = block.get_submodule("self_attn")
    attend = attention.forward
    attention.forward = lambda *args, **kwargs: (attend(*args, **kwargs)[0], torch.ones(()))
    assert found_in(model, block, hidden).others == 1
    block.forward = reads
    assert shortcut(model, block, model.checkpoint.blocks - 1, hidden, "o") is None


def test_a_gate_inside_attention_has_no_shortcut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be solved when what o reads is kept already."""
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    specs = [
        replace(spec, role="gate") if spec.role == "v" else spec
        for spec in model.checkpoint.block_specs(last)
    ]
    assert shortcut(model, block, last, hidden, "o") is not None
    monkeypatch.setattr(Checkpoint, "block_specs", lambda *_: specs)
    assert shortcut(model, block, last, hidden, "o") is None


def test_it_is_kept_behind_queries_keys_and_values_alone(tmp_path: Path) -> None:
    """The pass that looks at them, and any before it, attends with what they were."""
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    specs = model.checkpoint.block_specs(last)
    original = watch(model, block, last, specs, hidden, 5)
    found = found_in(model, block, hidden)
    streams = Streams(hidden + 0.1, original, 2, [found])

    def look(*roles: str) -> dict[str, Tensor]:
        wanted = [spec for spec in specs if spec.role in roles]
        seen = observe_shortfalls(model, block, last, wanted, {}, streams)
        return {key: hessian.total for key, hessian in seen.hessians.items()}

    look("q", "k", "v")
    assert not found.whole
    look("o", "gate", "up")
    assert found.whole
    with_it = look("down")
    without = Streams(streams.now, original, 2)
    expected = observe_shortfalls(
        model, block, last, [spec for spec in specs if spec.role == "down"], {}, without
    )
    for key, total in with_it.items():
        torch.testing.assert_close(total, expected.hessians[key].total)
