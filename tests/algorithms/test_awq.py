"""AWQ: scales that leave the model as it is, found as the paper finds them, and what they save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alphaquant.algorithms.awq import ScaledBlock, scale_block
from alphaquant.algorithms.quantized_block import (
    block_weights,
    load_block,
    load_moved,
    save_retuned_block,
)
from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.algorithms.router import repair_routers, trainable_routers
from alphaquant.algorithms.router_models import Student, Teacher
from alphaquant.algorithms.router_windows import split_windows
from alphaquant.algorithms.tune_model import tune_model
from alphaquant.config import QuantizationConfig, RotationConfig, RouterConfig
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import Ruler
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.foldable import Fold, folds
from alphaquant.text.windows import held_out
from tests.algorithms.test_quantize_model import CPU, quantize, uniform, windows
from tests.observed import run_and_collect
from tests.tiny import TYPES, make_model

CONFIG = QuantizationConfig(method="awq", group_size=16)


def with_outliers(folder: Path, model_type: str, **options: Any) -> Checkpoint:
    """A tiny model whose norms make a few channels much larger than the others."""
    source = make_model(folder, model_type, uneven_norms=True, **options)
    shard = source / "model.safetensors"
    tensors = load_file(shard)
    for name, tensor in tensors.items():
        if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
            tensor[[3, 17]] *= 12
    save_file(tensors, shard, metadata={"format": "pt"})
    return Checkpoint(source)


def scaled(
    checkpoint: Checkpoint, dtype: torch.dtype, text: str = "int3-g16", index: int = 0
) -> tuple[BlockModel, Any, list[Tensor], ScaledBlock]:
    """A block with its inputs, and the block as AWQ scales it."""
    model = BlockModel(checkpoint, CPU, dtype)
    hidden = model.embed(windows(), 4)
    block = model.block(index)
    specs = checkpoint.block_specs(index)
    observed, _ = run_and_collect(model, block, index, specs, hidden)
    plan = uniform(checkpoint, text)
    return model, block, hidden, scale_block(checkpoint, index, plan, observed, CONFIG, CPU)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_scaled_block_computes_what_the_block_did(tmp_path: Path, model_type: str) -> None:
    checkpoint = with_outliers(tmp_path, model_type, dtype=torch.float64)
    if model_type in ("olmoe", "mixtral", "qwen2_moe"):
        checkpoint.config._experts_implementation = "eager"
    # DeepSeek-V2 and V3 route and turn positions in fp32, whatever the weights are
    close = 1e-5 if model_type in ("deepseek_v2", "deepseek_v3") else 1e-11
    for index in range(checkpoint.blocks):
        model, block, hidden, found = scaled(checkpoint, torch.float64, index=index)
        norms = [f"model.layers.{index}.{n}_layernorm" for n in ("input", "post_attention")]
        if checkpoint.architecture.norm_offset:  # norms that hold w - 1 are left as they are
            assert not {*norms} & {*found.rows}
        else:
            assert all(found.alphas[norm] > 0 for norm in norms)
            assert {*norms} <= {*found.rows}
        # biases of v and up stand in the way of others, or v and up are parts of a linear
        assert bool({*found.rows} - {*norms}) == (model_type not in ("gpt_oss", "phi3"))
        names = dict.fromkeys([*found.rows, *found.columns])
        weights = {name: found.weight(name) for name in names}
        for batch in hidden:
            before, after = (model.run(block, index, batch, w) for w in (None, weights))
            torch.testing.assert_close(after, before, rtol=close, atol=close)


def test_without_one_of_the_two_sides_it_would_not(tmp_path: Path) -> None:
    checkpoint = with_outliers(tmp_path, "qwen3", dtype=torch.float64)
    model, block, hidden, found = scaled(checkpoint, torch.float64)
    before = model.run(block, 0, hidden[0])
    for names in (found.rows, found.columns):
        half = {name: ScaledBlock(checkpoint, rows=found.rows).weight(name) for name in found.rows}
        if names is found.columns:
            half = {n: ScaledBlock(checkpoint, columns=found.columns).weight(n) for n in names}
        assert not torch.allclose(model.run(block, 0, hidden[0], half), before, rtol=1e-2)


def test_the_exponent_is_the_one_that_a_search_on_the_inputs_themselves_finds(
    tmp_path: Path,
) -> None:
    checkpoint = with_outliers(tmp_path, "llama", dtype=torch.float32)
    model, block, hidden, found = scaled(checkpoint, torch.float32)
    names = [f"model.layers.0.self_attn.{role}_proj" for role in "qkv"]
    inputs: list[Tensor] = []
    hook = model.linear(block, 0, names[0]).register_forward_pre_hook(
        lambda _module, args: inputs.append(args[0].flatten(0, 1))
    )
    for batch in hidden:
        model.run(block, 0, batch)
    hook.remove()
    x = torch.cat(inputs)
    weight = torch.cat([checkpoint.weight(name) for name in names])
    losses = []
    for step in range(20):
        scale = x.abs().mean(0) ** (step / 20)
        scale = scale / (scale.max() * scale.min()).sqrt()
        rounded = quantize_weight(weight * scale, Scheme("int3", 16)).dequantize() / scale
        losses.append(float((x @ (weight - rounded).T).square().sum()))
    best = losses.index(min(losses))
    assert best > 0
    assert found.alphas["model.layers.0.input_layernorm"] == best / 20
    scale = x.abs().mean(0) ** (best / 20)
    expected = scale / (scale.max() * scale.min()).sqrt()
    torch.testing.assert_close(found.columns[names[0]].float(), expected, rtol=1e-3, atol=0)


def output_error(checkpoint: Checkpoint, folders: list[Path]) -> float:
    """Squared error of the last block's outputs, relative to their energy."""
    model = BlockModel(checkpoint, CPU, torch.float32)
    ours = theirs = model.embed(windows(), 4)
    for index, folder in enumerate(folders):
        weights = block_weights(checkpoint, index, folder)
        ours = list(model.advance(model.block(index, weights), index, ours))
        theirs = list(model.advance(model.block(index), index, theirs))
    wrong = sum((a - b).square().sum() for a, b in zip(ours, theirs, strict=True))
    return float(wrong / sum(b.square().sum() for b in theirs))


@pytest.mark.parametrize("text", ["int3-g16", "int4-g16", "int4-g16-asym", "mxfp4"])
def test_outlier_channels_lose_less_than_when_rounded_to_nearest(tmp_path: Path, text: str) -> None:
    checkpoint = with_outliers(tmp_path / "m", "llama")
    plan = uniform(checkpoint, text)
    awq, rtn = (
        output_error(checkpoint, quantize(checkpoint, plan, tmp_path / method, method=method))
        for method in ("awq", "rtn")
    )
    assert awq < 0.8 * rtn


def test_kept_routers_move_with_the_inputs_that_experts_share(tmp_path: Path) -> None:
    checkpoint = with_outliers(tmp_path / "m", "olmoe")
    folders = quantize(checkpoint, uniform(checkpoint, "int3-g16"), tmp_path / "b", method="awq")
    moved = load_moved(folders[0])
    root = "model.layers.0"
    assert {f"{root}.mlp.gate", f"{root}.post_attention_layernorm"} <= {*moved}
    assert not {*moved} & {*load_block(folders[0])}
    norm = checkpoint.weight(f"{root}.post_attention_layernorm").float()
    factor = norm / moved[f"{root}.post_attention_layernorm"].float()
    router = checkpoint.weight(f"{root}.mlp.gate").float() * factor
    torch.testing.assert_close(moved[f"{root}.mlp.gate"].float(), router, rtol=2**-8, atol=0)


def test_kept_linears_of_a_wide_checkpoint_take_16_bits_and_norms_keep_theirs(
    tmp_path: Path,
) -> None:
    checkpoint = with_outliers(tmp_path / "m", "olmoe", dtype=torch.float32)
    folders = quantize(checkpoint, uniform(checkpoint, "int3-g16"), tmp_path / "b", method="awq")
    moved = load_moved(folders[0])
    router = moved["model.layers.0.mlp.gate"]
    assert router.dtype == torch.float32
    assert torch.equal(router.bfloat16().float(), router)
    norm = moved["model.layers.0.input_layernorm"]
    assert not torch.equal(norm.bfloat16().float(), norm)


def test_a_rotated_model_is_scaled_too(tmp_path: Path) -> None:
    source = with_outliers(tmp_path, "llama")
    config = RotationConfig(kind="hadamard")
    model, block, hidden, found = scaled(RotatedCheckpoint(source, config), torch.float32)
    names = [*found.rows, *(name for name in found.columns if name not in found.rows)]
    before = model.run(block, 0, hidden[0])
    after = model.run(block, 0, hidden[0], {name: found.weight(name) for name in names})
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_scaled_exactly_is_left_out_with_the_reason(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path, "qwen2"))
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    specs = checkpoint.block_specs(0)

    def found(**more: tuple[int, ...]) -> dict[str, str]:
        groups = folds(checkpoint.architecture, checkpoint.raw_config, shapes | more, specs)
        return {
            group.source if isinstance(group, Fold) else ",".join(group.roles): ""
            if isinstance(group, Fold)
            else group.reason
            for group in groups
        }

    root = "model.layers.0"
    assert found() == {
        f"{root}.input_layernorm": "",
        f"{root}.post_attention_layernorm": "",
        "o": f"{root}.self_attn.v_proj has a bias",
        f"{root}.mlp.up_proj": "",
    }
    strange = found(**{f"{root}.mlp.adapter.weight": (32, 32)})
    assert strange["q,k,v"] == f"what {root}.mlp.adapter.weight reads is not known"
    assert strange[f"{root}.mlp.up_proj"] == ""
    biased = found(**{f"{root}.input_layernorm.bias": (32,)})
    assert biased["q,k,v"] == f"{root}.input_layernorm has a bias"


def test_end_to_end_tuning_begins_at_the_scaled_norms(tmp_path: Path) -> None:
    checkpoint = with_outliers(tmp_path / "m", "olmoe")
    folders = quantize(checkpoint, uniform(checkpoint, "int3-g16"), tmp_path / "b", method="awq")
    config = QuantizationConfig(tune="model", tune_model_steps=6)
    model, tuning = tune_model(checkpoint, folders, windows(24), config, device=CPU, batch_size=4)
    assert tuning.kl_after <= tuning.kl_before
    after = [tmp_path / "t" / str(index) for index in range(len(folders))]
    for index, folder in enumerate(after):
        folder.mkdir(parents=True)
        save_retuned_block(folder, *model.stored(index))
        assert load_moved(folder).keys() >= load_moved(folders[index]).keys()
    ruler = Ruler(checkpoint, windows(24)[held_out(24).start :], Room(CPU, 4))
    ruler.put_blocks(after)
    assert float(ruler.measure().kl.mean()) == pytest.approx(tuning.kl_after, rel=0.05)


@pytest.mark.parametrize("method", ["align", "kl"])
def test_routers_are_repaired_in_the_basis_of_their_scaled_inputs(
    tmp_path: Path, method: Any
) -> None:
    checkpoint = with_outliers(tmp_path / "m", "olmoe")
    plan = uniform(checkpoint, "int2-g16")
    folders = quantize(checkpoint, plan, tmp_path / "b", method="awq")
    config = RouterConfig(method=method, epochs=1, batch_size=4, learning_rate=1e-3)
    routers = trainable_routers(checkpoint, plan)
    tokens = windows(24, 24)
    found = repair_routers(checkpoint, folders, routers, tokens, config, device=CPU)
    assert found.kl_after < found.kl_before
    windows_of = split_windows(tokens, config)
    student = Student(checkpoint, folders, CPU, routers)
    student.load({name: tensor.float() for name, tensor in found.tensors.items()})
    now, _ = student.held_out(Teacher(checkpoint, windows_of, CPU, routers))
    assert now == pytest.approx(found.kl_after, rel=1e-3)
