"""The ruler against the comparison of two models that everybody else uses, and what groups cost alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from alphaquant.algorithms.allocation_groups import group_linears
from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.config import QuantizationConfig, RotationConfig
from alphaquant.evaluation.fidelity import compare_tokens
from alphaquant.evaluation.one_at_a_time import MOST_GROUPS, one_at_a_time, too_large
from alphaquant.evaluation.predictions import Predictions, WholeModel
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import Ruler
from alphaquant.export.rotated import export_rotated
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.loading import load_model
from alphaquant.plan import QuantPlan
from tests.tiny import make_model

CPU = torch.device("cpu")
NAME = "model.layers.1.mlp.experts.2.down_proj"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(make_model(tmp_path_factory.mktemp("tiny") / "m", "olmoe"))


def windows(count: int = 5) -> Tensor:
    return torch.randint(256, (count, 24), generator=torch.Generator().manual_seed(0))


def test_an_unchanged_model_is_at_no_distance(checkpoint: Checkpoint) -> None:
    ruler = Ruler(checkpoint, windows(), Room(CPU, 2))
    scores = ruler.measure()
    assert scores.kl.shape == scores.loss.shape == (5,)
    assert float(scores.kl.abs().max()) < 1e-6


def test_it_measures_what_comparing_two_models_measures(checkpoint: Checkpoint) -> None:
    changed = checkpoint.weight(NAME) * 3
    ruler = Ruler(checkpoint, windows(), Room(CPU, 2))
    ruler.put({NAME: changed})
    scores = ruler.measure()
    other = load_model(checkpoint.path, CPU)
    LiveCheckpoint(other).replace(NAME, changed)
    models = (WholeModel(model, CPU, 5) for model in (load_model(checkpoint.path, CPU), other))
    tokens = compare_tokens(*(model.predictions(windows()) for model in models), windows())
    torch.testing.assert_close(scores.kl, tokens.kl.double().mean(1), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(scores.loss, tokens.loss_quantized.double().mean(1))
    torch.testing.assert_close(scores.loss_original, tokens.loss_original.double().mean(1))
    torch.testing.assert_close(scores.agrees, tokens.agrees.double().mean(1))
    ruler.put({NAME: checkpoint.weight(NAME)})
    assert float(ruler.measure().kl.abs().max()) < 1e-6


def test_predictions_that_were_kept_serve_like_fresh_ones(checkpoint: Checkpoint) -> None:
    scores = []
    for original in (None, kept(checkpoint)):
        ruler = Ruler(checkpoint, windows(), Room(CPU, 3), original)
        ruler.put({NAME: checkpoint.weight(NAME) * 3})
        scores.append(ruler.measure().kl)
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-7)


def test_a_rotated_model_is_held_against_the_original(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    out = tmp_path / "rotated"
    out.mkdir()
    export_rotated(RotatedCheckpoint(checkpoint, RotationConfig(kind="hadamard")), out)
    rotated, original = Checkpoint(out), kept(checkpoint)
    ruler = Ruler(rotated, windows(), Room(CPU, 2), original)
    assert 0 <= float(ruler.measure().kl.max()) < 1e-3  # weights are rounded to bf16 once more
    other = Predictions(original.hidden, kept(rotated).head)
    blind = Ruler(rotated, windows(), Room(CPU, 2), other)
    assert float(blind.measure().kl.min()) > 0.01  # another basis under the wrong head


def kept(checkpoint: Checkpoint) -> Predictions:
    model = WholeModel(load_model(checkpoint.path, CPU), CPU, 2)
    found = model.predictions(windows())
    return Predictions(list(found.hidden), found.head)


def test_what_groups_cost_alone_is_measured_one_by_one(checkpoint: Checkpoint) -> None:
    specs = [s for s in checkpoint.specs if s.role not in ("lm_head", "router")]
    scheme = Scheme.parse("int2-g16")
    bf16 = Scheme("bf16")
    plan = QuantPlan(
        [s for s in checkpoint.specs if s.role != "lm_head"],
        {s.name: bf16 if s.role == "router" else scheme for s in checkpoint.specs if s.role != "lm_head"},
    )  # fmt: skip
    losses = sensitivity_table(checkpoint, windows(), [scheme], device=CPU)
    groups = group_linears(specs, "expert")
    rounding = QuantizationConfig(method="rtn", group_size=16)
    found = one_at_a_time(
        checkpoint, plan, groups, losses, windows(), rounding, Room(CPU, 5)
    ).set_index("linear")
    assert sorted(found.index) == sorted(spec.name for spec in specs)
    expert = [s.name for s in specs if (s.block, s.expert) == (1, 2)]
    assert found["kl"][expert].nunique() == 1
    predicted = losses.set_index("linear")["predicted_loss"]
    ratio = float(found["kl"][expert[0]] / predicted[expert].sum())
    assert found["factor"][expert[0]] == pytest.approx(ratio)
    assert (found["kl"] > 1e-8).all()
    # the values of a block's attention matter more than one projection's worth of noise
    assert found["kl"].max() > 3 * found["kl"].min()


def test_large_models_are_spared() -> None:
    assert too_large(3_000_000, 200) is None
    assert "parameters" in str(too_large(7_000_000_000, 200))
    assert "groups" in str(too_large(3_000_000, MOST_GROUPS + 1))
