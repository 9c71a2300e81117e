from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.router import trainable_routers
from alphaquant.algorithms.router_blocks import BlockRepair, repair_by_block
from alphaquant.algorithms.router_models import Student, Teacher
from alphaquant.algorithms.router_windows import split_windows
from alphaquant.config import QuantizationConfig, RouterConfig
from alphaquant.models.checkpoint import Checkpoint
from tests.algorithms.test_quantize_model import CPU, FolderCache, uniform, windows
from tests.tiny import MIXTURES, make_model

_CONFIG = RouterConfig(epochs=3, learning_rate=0.01, batch_size=4, patience=50)


def rounded(root: Path, model_type: str, text: str) -> tuple[Checkpoint, list[Path]]:
    checkpoint = Checkpoint(make_model(root / "m", model_type))
    config = QuantizationConfig(group_size=16, method="rtn")
    blocks = quantize_blocks(
        checkpoint,
        uniform(checkpoint, text),
        windows(),
        config,
        device=CPU,
        batch_size=4,
        blocks=FolderCache(root / "b"),
    )
    return checkpoint, blocks


def repaired(
    checkpoint: Checkpoint, blocks: list[Path], method: str, tokens: torch.Tensor
) -> BlockRepair:
    routers = trainable_routers(checkpoint, uniform(checkpoint, "int4-g16"))
    split = split_windows(tokens, _CONFIG)
    return repair_by_block(
        checkpoint, blocks, routers, split, _CONFIG, method.split("+"), device=CPU
    )


@pytest.mark.parametrize("method", ["align", "block", "align+block"])
@pytest.mark.parametrize("model_type", MIXTURES)
def test_every_architecture_comes_closer_block_by_block(
    tmp_path: Path, model_type: str, method: str
) -> None:
    checkpoint, blocks = rounded(tmp_path, model_type, "int3-g16")
    tokens = windows(48, 48)
    found = repaired(checkpoint, blocks, method, tokens)
    pairs = list(zip(found.error_before, found.error_after, strict=True))
    assert all(after <= before for before, after in pairs)
    assert found.kl_after <= found.kl_before
    if model_type == "olmoe":
        assert found.kl_after < found.kl_before
        assert any(after < before for before, after in pairs)
    # what is said of the model equals what the whole model, put together, shows
    routers = trainable_routers(checkpoint, uniform(checkpoint, "int4-g16"))
    teacher = Teacher(checkpoint, split_windows(tokens, _CONFIG), CPU, routers)
    student = Student(checkpoint, blocks, CPU, routers)
    kl, changed = student.held_out(teacher)
    assert kl == pytest.approx(found.kl_before, rel=1e-4)
    assert changed == pytest.approx(found.changed_before)
    student.load(found.tensors)
    kl, changed = student.held_out(teacher)
    assert kl == pytest.approx(found.kl_after, rel=1e-4)
    assert changed == pytest.approx(found.changed_after)


@pytest.mark.parametrize("method", ["align", "block"])
def test_an_undamaged_model_keeps_its_routers(tmp_path: Path, method: str) -> None:
    checkpoint, blocks = rounded(tmp_path, "olmoe", "bf16")
    found = repaired(checkpoint, blocks, method, windows(16))
    assert found.error_before == found.error_after == [0, 0]
    assert found.changed_after == [0, 0]
    for name, router in found.tensors.items():
        assert torch.equal(router, checkpoint.weight(name))
