"""A block that recalls what attention has handed on answers as if it attended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alphaquant.models.attended import Attended, attended
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.hooks import given
from alphaquant.models.original import watch
from alphaquant.models.shortfalls import Streams, observe_shortfalls
from tests.tiny import TYPES, WITHOUT_ROW, make_model

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


def found_in(model: BlockModel, block: nn.Module, hidden: Tensor) -> Attended:
    found = attended(model, block, model.checkpoint.blocks - 1, hidden)
    assert found is not None
    return found


@pytest.mark.parametrize("model_type", [*TYPES, *WITHOUT_ROW])
def test_a_block_answers_alike_whatever_becomes_of_what_is_behind(
    tmp_path: Path, model_type: str
) -> None:
    model, block, hidden = opened(tmp_path, model_type)
    last = model.checkpoint.blocks - 1
    found = found_in(model, block, hidden)
    projection = block.get_submodule(found.projection)
    for part in (slice(0, 2), slice(2, 5)):
        assert not found.whole
        with given({"o": projection}) as seen:
            model.outputs(block, last, hidden[part])
        found.keep(part, seen["o"])
    assert found.whole
    with torch.no_grad():  # as if it was quantized
        projection.weight.mul_(0.9)
        for spec in model.checkpoint.block_specs(last):
            if spec.role == "down":
                weight = model.linear(block, last, spec.name).weight
                assert isinstance(weight, Tensor)
                weight.mul_(1.1)
    expected = model.outputs(block, last, hidden)
    parts = block.get_submodule(found.attention).children()
    inside = next(part for part in parts if part is not projection)
    recall = found.recalling(block, lambda batch: model.outputs(block, last, batch))
    with given({"inside": inside}) as ran:
        recalled = torch.cat([recall(hidden[:3]), recall(hidden[3:])])
    assert not ran
    torch.testing.assert_close(recalled, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.outputs(block, last, hidden), expected)  # it attends again


def test_attention_that_does_more_than_project_is_not_recalled(tmp_path: Path) -> None:
    model, block, hidden = opened(tmp_path, "llama")
    attention = block.get_submodule("self_attn")
    plain = attention.forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output, weights = plain(*args, **kwargs)
        return 2 * output, weights

    attention.forward = doubled
    assert attended(model, block, model.checkpoint.blocks - 1, hidden) is None


def test_attention_whose_other_answers_are_read_is_not_recalled(tmp_path: Path) -> None:
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
    assert attended(model, block, model.checkpoint.blocks - 1, hidden) is None


def test_a_gate_inside_attention_is_not_recalled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be solved when what o reads is kept already."""
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    specs = [
        replace(spec, role="gate") if spec.role == "v" else spec
        for spec in model.checkpoint.block_specs(last)
    ]
    assert attended(model, block, last, hidden) is not None
    monkeypatch.setattr(Checkpoint, "block_specs", lambda *_: specs)
    assert attended(model, block, last, hidden) is None


def test_it_is_kept_behind_queries_keys_and_values_alone(tmp_path: Path) -> None:
    """The pass that looks at them, and any before it, attends with what they were."""
    model, block, hidden = opened(tmp_path, "llama")
    last = model.checkpoint.blocks - 1
    specs = model.checkpoint.block_specs(last)
    original = watch(model, block, last, specs, hidden, 5)
    found = found_in(model, block, hidden)
    streams = Streams(hidden + 0.1, original, 2, found)

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
