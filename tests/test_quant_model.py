"""Load, quantize, evaluate, save and push: a face of the code that runs use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import alphaquant
from alphaquant import AlphaQuantModel, QuantizeConfig
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.config import RotationConfig
from alphaquant.errors import ConfigError, FormatError, ModelError, PlanError, UserError
from alphaquant.evaluation.generated import with_written
from alphaquant.evaluation.room import Room
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.packed import PackedCheckpoint
from alphaquant.plan import QuantPlan
from tests.tiny import make_model

TOKENS = torch.randint(0, 256, (6, 32), generator=torch.Generator().manual_seed(0))
CONFIG = QuantizeConfig(
    bits=4,
    group_size=32,
    dynamic={
        "+:.*experts.{expert_index}.down_proj": {"bits": 8},
        "-:.*o_proj": {},
    },
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("models") / "olmoe"
    return make_model(folder, "olmoe", hidden_size=64, intermediate_size=96)


@pytest.fixture(scope="module")
def quantized(original: Path) -> AlphaQuantModel:
    model = AlphaQuantModel.load(original, CONFIG, device="cpu")
    model.quantize(list(TOKENS))
    return model


def test_it_gives_the_weights_that_a_run_gives(
    original: Path, quantized: AlphaQuantModel, tmp_path: Path
) -> None:
    checkpoint, run = Checkpoint(original), CONFIG.run_config()
    plan = quantized.plan
    assert isinstance(plan, QuantPlan)
    (tmp_path / "blocks").mkdir()
    blocks = quantize_blocks(
        checkpoint,
        plan,
        TOKENS,
        run.quantization,
        device=torch.device("cpu"),
        batch_size=8,
        blocks=FreshBlocks(tmp_path / "blocks"),
    )
    for ours, theirs in zip(quantized._made.blocks, blocks, strict=True):
        for file in theirs.glob("*.safetensors"):
            assert (ours / file.name).read_bytes() == file.read_bytes()
    down = plan.schemes["model.layers.1.mlp.experts.2.down_proj"]
    assert (str(down), str(plan.schemes["model.layers.0.self_attn.o_proj"])) == ("int8-g32", "bf16")
    assert quantized.bits_per_weight == plan.bits_per_weight


def test_what_was_evaluated_is_saved_loaded_and_generates(
    original: Path, quantized: AlphaQuantModel, tmp_path: Path
) -> None:
    scores = quantized.evaluate(limit=2, sequence_length=32)
    assert {"perplexity", "kl_mean"} <= set(scores["metric"])
    saved = quantized.save(tmp_path / "out")
    dense = quantized.save(tmp_path / "dense", format="dense")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        values = [alphaquant.load(folder, device="cpu")(tokens).logits for folder in (saved, dense)]
        assert torch.equal(values[0], values[1])
        assert torch.equal(quantized.model(tokens).logits, values[0])
    text = quantized.generate("hello", max_new_tokens=3, do_sample=False)
    again = AlphaQuantModel.load(saved, device="cpu")
    assert again.generate("hello", max_new_tokens=3, do_sample=False) == text
    assert torch.equal(
        again.generate(tokens, max_new_tokens=2, do_sample=False),
        quantized.generate(tokens, max_new_tokens=2, do_sample=False),
    )
    assert "KL to the original" in (saved / "README.md").read_text()
    assert (saved / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_quantizing_reports_every_linear(original: Path) -> None:
    model = AlphaQuantModel.load(original, QuantizeConfig(quantization={"method": "rtn"}))
    before = model.generate(torch.arange(4)[None], max_new_tokens=2, do_sample=False)
    assert before.shape == (1, 6)
    text = "the quick brown fox jumps over the lazy dog. " * 40
    errors = model.quantize([text], samples=2, sequence_length=32)
    assert len(errors) == 2 * (4 + 4 * 3)
    assert (errors["error"] > 0).all()


def test_the_model_writes_a_share_of_its_windows(
    original: Path, quantized: AlphaQuantModel
) -> None:
    written = with_written(Checkpoint(original), TOKENS, 0.5, 3, Room(torch.device("cpu"), 8))
    same = (written == TOKENS).all(-1).tolist()
    assert same == [True, False] * 3
    errors = []
    for tokens, share in ((TOKENS, 0.5), (written, 0.0)):
        model = AlphaQuantModel.load(original, CONFIG, device="cpu")
        errors.append(model.quantize(list(tokens), generated=share, seed=3))
    pd.testing.assert_frame_equal(*errors)
    with pytest.raises(ConfigError, match="0 to 1; it is 50"):
        quantized.quantize(list(TOKENS), generated=50)


def test_a_recipe_rotates_corrects_and_lets_the_model_write(original: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(bits=8, group_size=32, recipe="balanced")
    model = AlphaQuantModel.load(original, config, device="cpu")
    asked = model.quantize(list(TOKENS))
    scores = model.evaluate(limit=2, sequence_length=32).set_index("metric")
    assert 0 <= scores.loc["kl_mean", "value"].min() < 5e-3
    saved = load_file(model.save(tmp_path / "dense", format="dense") / "model.safetensors")
    rotated = RotatedCheckpoint(Checkpoint(original), RotationConfig(kind="hadamard"))
    name = "model.layers.0.self_attn.q_proj.weight"
    turned = rotated.tensor(name).float()
    assert (saved[name].float() - turned).abs().max() < 0.02 * turned.abs().max()

    said = QuantizeConfig(
        bits=8, group_size=32, rotation="hadamard", quantization={"correction": "stream"}
    )
    spelt = AlphaQuantModel.load(original, said, device="cpu")
    pd.testing.assert_frame_equal(spelt.quantize(list(TOKENS), generated=0.5), asked)
    without = spelt.quantize(list(TOKENS))
    assert not without["error"].equals(asked["error"])


def test_what_cannot_be_done_is_told_before_the_model_writes_and_leaves_nothing(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alphaquant.quantized.with_written", lambda *_: pytest.fail("it wrote"))
    wrong = QuantizeConfig(recipe="balanced", dynamic={"nope": {}})
    model = AlphaQuantModel.load(original, wrong, device="cpu")
    with pytest.raises(PlanError, match="nope"):
        model.quantize(list(TOKENS))
    assert not list(model._scratch.iterdir())
    gemma = make_model(tmp_path / "gemma2", "gemma2")
    with pytest.raises(ModelError, match="rotat"):
        AlphaQuantModel.load(gemma, QuantizeConfig(recipe="balanced")).quantize(list(TOKENS))
    nearest = QuantizeConfig(group_size=32, recipe="balanced", quantization={"method": "rtn"})
    model = AlphaQuantModel.load(original, nearest, device="cpu")
    for _ in range(2):
        model.quantize(list(TOKENS))
    assert len(list(model._scratch.iterdir())) == 1, "what was there before is gone"


def test_bits_are_spent_as_a_run_spends_them(original: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(target_bits=5, group_size=32, formats=["int3", "int4", "int8"])
    model = AlphaQuantModel.load(original, config, device="cpu")
    model.quantize(list(TOKENS))
    assert 4.5 < model.bits_per_weight <= 5
    assert model.plan is not None
    formats = {scheme.format for scheme in model.plan.schemes.values()}
    assert len(formats - {"bf16"}) > 1
    # what serving kernels fuse has one format
    for names in (("q", "k", "v"), ("gate", "up", "down")):
        schemes = {
            model.plan.schemes[s.name] for s in model.plan.specs if s.role in names and s.block == 1
        }
        assert len(schemes) == 1
    saved = model.save(tmp_path / "out")
    assert f"{model.bits_per_weight:.2f} bits per weight" in (saved / "README.md").read_text()


def test_an_interrupted_save_leaves_nothing(
    quantized: AlphaQuantModel, tmp_path: Path, monkeypatch: Any
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("alphaquant.export.packed.write_safetensors", stop)
    with pytest.raises(KeyboardInterrupt):
        quantized.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_elses_is_refused(quantized: AlphaQuantModel, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    with pytest.raises(UserError, match="was not saved by AlphaQuant"):
        quantized.save(foreign)
    assert [path.name for path in foreign.iterdir()] == ["config.json"]
    saved = quantized.save(tmp_path / "ours", format="dense")
    assert "quantization_config" not in json.loads((saved / "config.json").read_text())
    quantized.save(saved)
    assert len(PackedCheckpoint(saved).stored_as) == 2 * (3 + 4 * 3)


def test_wrong_use_is_explained(original: Path, quantized: AlphaQuantModel, tmp_path: Path) -> None:
    fresh = AlphaQuantModel.load(original)
    with pytest.raises(ModelError, match="not quantized yet; call quantize first"):
        fresh.save(tmp_path / "out")
    with pytest.raises(ModelError, match="not quantized yet"):
        fresh.evaluate()
    with pytest.raises(ConfigError, match="format 'awq' is not known; allowed: compressed-tensors"):
        quantized.save(tmp_path / "out", format="awq")  # type: ignore[arg-type]
    six = AlphaQuantModel.load(original, QuantizeConfig(bits=6, quantization={"method": "rtn"}))
    six.quantize(list(TOKENS))
    with pytest.raises(FormatError, match="gptq does not store int6"):
        six.save(tmp_path / "out", format="gptq")
    saved = quantized.save(tmp_path / "saved")
    with pytest.raises(ModelError, match=r"already quantized\. Start from the original"):
        AlphaQuantModel.load(saved).quantize(list(TOKENS))
    with pytest.raises(PlanError, match="matches no linear"):
        AlphaQuantModel.load(original, QuantizeConfig(dynamic={"x": {"bits": 8}})).quantize(
            list(TOKENS)
        )
    with pytest.raises(ModelError, match="does not exist"):
        AlphaQuantModel.load(tmp_path / "nothing")
