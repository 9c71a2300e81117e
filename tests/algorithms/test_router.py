from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.router import repair_routers, trainable_routers
from alphaquant.config import QuantizationConfig, RouterConfig
from alphaquant.errors import DataError
from alphaquant.models.checkpoint import Checkpoint
from tests.algorithms.test_quantize_model import CPU, FolderCache, uniform, windows
from tests.tiny import make_model


@pytest.fixture(scope="module")
def crude(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, list[Path]]:
    """A model rounded so coarsely that its routing suffers."""
    root = tmp_path_factory.mktemp("crude")
    checkpoint = Checkpoint(make_model(root / "m", "olmoe"))
    config = QuantizationConfig(group_size=16, method="rtn", scale_search="none")
    blocks = quantize_blocks(
        checkpoint,
        uniform(checkpoint, "int2-g16"),
        windows(),
        config,
        device=CPU,
        batch_size=4,
        blocks=FolderCache(root / "b"),
    )
    return checkpoint, blocks


@pytest.mark.parametrize("method", ["align", "block", "kl", "ce", "align+block", "align+kl"])
def test_repair_never_ends_worse_and_changes_routers_only(
    crude: tuple[Checkpoint, list[Path]], method: str
) -> None:
    checkpoint, blocks = crude
    routers = trainable_routers(checkpoint, uniform(checkpoint, "int2-g16"))
    config = RouterConfig(method=method, epochs=4, learning_rate=0.01, batch_size=4, patience=50)  # type: ignore[arg-type]
    result = repair_routers(checkpoint, blocks, routers, windows(64, 64), config, device=CPU)
    assert set(result.tensors) == {spec.name for spec in checkpoint.specs if spec.role == "router"}
    assert result.kl_after <= result.kl_before
    if method in ("kl", "ce"):
        assert result.history[0]["heldout_kl"] == result.kl_before
    if method != "ce":
        assert result.kl_after < result.kl_before
        assert any(not torch.equal(t, checkpoint.weight(n)) for n, t in result.tensors.items())
    for share in (*result.changed_before, *result.changed_after):
        assert 0 <= share <= 1


def test_training_is_deterministic(crude: tuple[Checkpoint, list[Path]]) -> None:
    checkpoint, blocks = crude
    routers = trainable_routers(checkpoint, uniform(checkpoint, "int2-g16"))
    config = RouterConfig(method="kl", epochs=1, learning_rate=0.03, batch_size=4)
    first, second = (
        repair_routers(checkpoint, blocks, routers, windows(16), config, device=CPU)
        for _ in range(2)
    )
    assert first.history[1:] == second.history[1:]
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_one_window_is_too_few(crude: tuple[Checkpoint, list[Path]]) -> None:
    checkpoint, blocks = crude
    routers = trainable_routers(checkpoint, uniform(checkpoint, "int2-g16"))
    with pytest.raises(DataError, match="at least 2"):
        repair_routers(
            checkpoint, blocks, routers, windows(1), RouterConfig(method="kl"), device=CPU
        )


def test_quantized_routers_and_gates_of_shared_experts_do_not_train(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "qwen2_moe"))
    kept = trainable_routers(checkpoint, uniform(checkpoint, "int4-g16"))
    assert [spec.name for spec in kept] == ["model.layers.1.mlp.gate"]
    assert not trainable_routers(checkpoint, uniform(checkpoint, "int4-g16", "int4-g16"))
