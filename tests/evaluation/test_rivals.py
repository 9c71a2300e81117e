"""Rivals stand beside a run's own plan on equal terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alphaquant.algorithms import quantize_model
from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.memory_plan import MemoryPlan
from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.config import AllocationConfig, ComparisonConfig, QuantizationConfig
from alphaquant.evaluation.baseline import Baseline
from alphaquant.evaluation.heldout import write_baseline
from alphaquant.evaluation.rivals import OWN_PLAN, rival_scores
from alphaquant.evaluation.room import Room
from alphaquant.models.checkpoint import Checkpoint
from tests.algorithms.test_quantize_model import CPU, FolderCache, windows
from tests.evaluation.test_evaluate import confine
from tests.tiny import make_model


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    "head",
    [
        {"lm_head": "int6-g16"},
        {"overrides": [{"pattern": "lm_head", "wq": "int8-asym", "group_size": -1}]},
    ],
)
def test_the_own_plan_and_its_uniform_twin_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: dict[str, Any], whole: bool
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m"))
    rounding = QuantizationConfig(method="rtn", group_size=16)
    allocation = AllocationConfig.model_validate(
        {"policy": "uniform", "default": {"wq": "int4"}} | head
    )
    own = allocate(checkpoint.plannable, allocation, rounding)
    blocks = quantize_blocks(
        checkpoint,
        own,
        windows(),
        rounding,
        device=CPU,
        batch_size=4,
        blocks=FolderCache(tmp_path / "b"),
    )
    room, limits = Room(CPU, 4), []
    if not whole:
        room = confine(monkeypatch)

        def smallest(limit: int, *_: Any) -> MemoryPlan:
            limits.append(limit)
            return MemoryPlan(4, hidden_on_disk=True, hessians_on_disk=True, hessians=0, solving=0)

        monkeypatch.setattr(quantize_model, "memory_within", smallest)
    write_baseline(checkpoint, windows(), tmp_path, room)
    scores = rival_scores(
        checkpoint,
        own,
        blocks,
        windows(),
        windows(),
        Baseline(tmp_path).predictions(checkpoint, CPU),
        allocation,
        rounding,
        ComparisonConfig(uniform=("int4",), methods=("rtn",)),
        room,
        rotated=False,
    )
    found = {(score.model, score.metric): score.value for score in scores}
    for metric in ("bits_per_weight", "kl_mean", "perplexity"):
        assert found["uniform int4, rtn", metric] == pytest.approx(found[OWN_PLAN, metric])
    assert found[OWN_PLAN, "kl_mean"] > 1e-3
    assert limits == ([] if whole else [room.memory_limit])
