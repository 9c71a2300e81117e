"""Tensors and hidden states that wait in a file come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.models.hidden_states import HiddenStates
from alphaquant.models.tensor_file import TensorFile


def test_tensors_come_back_and_leave_no_file(tmp_path: Path) -> None:
    file = TensorFile(tmp_path)
    values = [torch.randn(3, 4), torch.randn(2, 5).bfloat16(), torch.randn(4, 3).T]
    waiting = [file.keep(tensor) for tensor in values]
    for tensor, one in zip(values, waiting, strict=True):
        assert torch.equal(one(), tensor)
        assert one().dtype == tensor.dtype
    assert not list(tmp_path.iterdir())
    file.clear()
    with pytest.raises(OSError, match="shorter than what was written"):
        waiting[2]()
    assert torch.equal(file.keep(values[0])(), values[0])


@pytest.mark.parametrize("on_disk", [False, True])
def test_batches_are_replaced_one_by_one(tmp_path: Path, on_disk: bool) -> None:
    batches = [torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(1, 3, 4)]
    hidden = HiddenStates(iter(batches), TensorFile(tmp_path) if on_disk else None)
    expected = [batch + 1 for batch in batches]
    hidden.advance(lambda batch: batch + 1)
    assert len(hidden) == 3
    assert all(torch.equal(a, b) for a, b in zip(hidden, expected, strict=True))


@pytest.mark.parametrize("on_disk", [False, True])
def test_hidden_states_put_together_are_not_held_twice(tmp_path: Path, on_disk: bool) -> None:
    batches = [torch.randn(2, 3, 4), torch.randn(1, 3, 4)]
    hidden = HiddenStates(batches, TensorFile(tmp_path) if on_disk else None)
    whole = hidden.together()
    assert torch.equal(whole, torch.cat(batches))
    parts = list(hidden)
    assert all(torch.equal(part, batch) for part, batch in zip(parts, batches, strict=True))
    shared = parts[0].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert shared != on_disk
    hidden.advance(lambda batch: batch + 1)
    assert torch.equal(whole, torch.cat(batches))  # whoever has it may go on
    assert torch.equal(torch.cat(list(hidden)), whole + 1)
