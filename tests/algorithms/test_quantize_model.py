from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alphaquant.algorithms import quantize_model, sensitivity
from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.quantized_block import (
    block_weights,
    load_block,
    load_errors,
    load_moved,
    load_tuning,
)
from alphaquant.algorithms.sensitivity import sensitivity_table
from alphaquant.config import QuantizationConfig
from alphaquant.errors import ModelError
from alphaquant.export.dense import export_dense
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.linalg.hessian import output_error
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from tests.observed import run_and_collect
from tests.tiny import MIXTURES, TYPES, VOCABULARY, make_model

CPU = torch.device("cpu")


class FolderCache:
    """Blocks in plain folders; remembers which were asked to be computed."""

    def __init__(self, root: Path) -> None:
        self.root, self.ran = root, list[int]()

    def get(self, index: int, ingredients: Any) -> Path | None:
        folder = self.root / str(index)
        return folder if folder.is_dir() else None

    def put(self, index: int, ingredients: Any, write: Callable[[Path], None]) -> Path:
        folder = self.root / str(index)
        folder.mkdir(parents=True)
        write(folder)
        self.ran.append(index)
        return folder


def uniform(checkpoint: Checkpoint, text: str, routers: str = "bf16") -> QuantPlan:
    specs = [spec for spec in checkpoint.specs if spec.role != "lm_head"]
    return QuantPlan(
        specs,
        {s.name: Scheme.parse(routers if s.role == "router" else text) for s in specs},
    )


def windows(count: int = 6, length: int = 24) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def quantize(checkpoint: Checkpoint, plan: QuantPlan, root: Path, **changes: Any) -> list[Path]:
    config = QuantizationConfig(**({"group_size": 16} | changes))
    return quantize_blocks(
        checkpoint, plan, windows(), config, device=CPU, batch_size=4, blocks=FolderCache(root)
    )


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_kept_block_is_not_looked_at_before_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "llama", num_hidden_layers=3))
    plan = uniform(checkpoint, "int4-g16")
    for spec in checkpoint.block_specs(kept):
        plan.schemes[spec.name] = Scheme.parse("bf16")
    plain = quantize(checkpoint, plan, tmp_path / "plain")
    monkeypatch.setattr(quantize_model, "_writes_behind", lambda *_: True)
    ahead = quantize(checkpoint, plan, tmp_path / "ahead")
    for folder, other in zip(plain, ahead, strict=True):
        for file in ("block.safetensors", "errors.parquet"):
            assert (folder / file).read_bytes() == (other / file).read_bytes()


@pytest.mark.parametrize("lost", [None, 1])
@pytest.mark.parametrize("changes", [{}, {"correction": "stream"}, {"tune": "block"}])
def test_solving_the_next_block_while_one_is_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], lost: int | None
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe", num_hidden_layers=3))
    plan = uniform(checkpoint, "int4-g16")
    changes = {"tune_steps": 2} | changes
    plain = quantize(checkpoint, plan, tmp_path / "plain", **changes)
    ahead = tmp_path / "ahead"
    if lost is not None:
        shutil.copytree(tmp_path / "plain", ahead)
        shutil.rmtree(ahead / str(lost))  # the one behind it will be found
    monkeypatch.setattr(quantize_model, "_writes_behind", lambda *_: True)
    for folder, other in zip(plain, quantize(checkpoint, plan, ahead, **changes), strict=True):
        for file in ("block.safetensors", "errors.parquet"):
            assert (folder / file).read_bytes() == (other / file).read_bytes()


class SlowCache(FolderCache):
    """Writes blocks after a while; block `fails` never."""

    def __init__(self, root: Path, fails: int | None = None) -> None:
        super().__init__(root)
        self.fails = fails

    def put(self, index: int, ingredients: Any, write: Callable[[Path], None]) -> Path:
        time.sleep(0.3)
        if index == self.fails:
            raise OSError("no space")
        return super().put(index, ingredients, write)


@pytest.mark.parametrize(("fails", "error"), [(None, RuntimeError), (1, OSError)])
def test_an_error_while_a_block_is_written_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int | None, error: type[Exception]
) -> None:
    """The block is kept; where its writing failed too, that is said, as it went wrong first."""
    checkpoint = Checkpoint(make_model(tmp_path / "m", "llama", num_hidden_layers=3))
    monkeypatch.setattr(quantize_model, "_writes_behind", lambda *_: True)
    solve, solved = quantize_model.solve_block, list[int]()

    def breaks(*args: Any) -> Any:
        solved.append(1)
        if len(solved) == 3:
            raise RuntimeError("out of memory")
        return solve(*args)

    monkeypatch.setattr(quantize_model, "solve_block", breaks)
    cache = SlowCache(tmp_path / "b", fails)
    with pytest.raises(error):
        quantize_blocks(
            checkpoint,
            uniform(checkpoint, "int4-g16"),
            windows(),
            QuantizationConfig(group_size=16),
            device=CPU,
            batch_size=4,
            blocks=cache,
        )
    assert cache.ran == ([0, 1] if fails is None else [0])


@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("method", ["rtn", "gptq", "awq", "adaround"])
def test_every_architecture_quantizes_exports_and_loads(
    tmp_path: Path, model_type: str, method: str
) -> None:
    source = make_model(tmp_path / "m", model_type, shard="30kB")
    checkpoint = Checkpoint(source)
    plan = uniform(checkpoint, "int8-g16")
    folders = quantize(checkpoint, plan, tmp_path / "b", method=method)
    out = tmp_path / "out"
    out.mkdir()
    export_dense(checkpoint, folders, {}, out)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    quantized, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        a = torch.log_softmax(original(windows()).logits, -1)
        b = torch.log_softmax(quantized.eval()(windows()).logits, -1)
    kl = (a.exp() * (a - b)).sum(-1).mean()
    assert 0 < float(kl) < 0.02
    assert {p.name for p in source.iterdir()} == {p.name for p in out.iterdir()}


def test_gptq_leaves_less_output_error_than_rounding(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    folders = quantize(checkpoint, uniform(checkpoint, "int3-g16"), tmp_path / "b")
    for folder in folders:
        errors = load_errors(folder)
        assert (errors["error"] <= errors["error_rtn"] * 1.001).mean() > 0.9
        assert (errors["tokens"] > 0).any()


@pytest.mark.parametrize("routing_weight", ["none", "p", "p2"])
def test_an_expert_that_no_token_reaches_is_quantized_from_its_block(
    tmp_path: Path, routing_weight: str
) -> None:
    source = make_model(tmp_path / "m", "olmoe")
    shard = source / "model.safetensors"
    tensors = load_file(shard)
    # equal logits send every token to the same top experts
    tensors["model.layers.0.mlp.gate.weight"].zero_()
    save_file(tensors, shard, metadata={"format": "pt"})
    checkpoint = Checkpoint(source)
    folders = quantize(
        checkpoint,
        uniform(checkpoint, "int4-g16"),
        tmp_path / "b",
        routing_weight=routing_weight,
    )
    errors = load_errors(folders[0])
    starved = errors[(errors["tokens"] == 0) & errors["expert"].notna()]
    assert len(starved) == 6  # two experts of three linears
    for name in starved["linear"]:
        weight = checkpoint.weight(name).float()
        difference = load_block(folders[0])[name].dequantize() - weight
        assert 0 < float(difference.square().mean() / weight.square().mean()) < 0.05


@pytest.mark.parametrize("routing_weight", ["none", "p", "p2"])
@pytest.mark.parametrize("model_type", MIXTURES)
def test_one_token_is_enough_to_quantize_every_expert(
    tmp_path: Path, model_type: str, routing_weight: str
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    config = QuantizationConfig(group_size=16, routing_weight=routing_weight)  # type: ignore[arg-type]
    folders = quantize_blocks(
        checkpoint,
        uniform(checkpoint, "int4-g16"),
        windows(1, 1),
        config,
        device=CPU,
        batch_size=1,
        blocks=FolderCache(tmp_path / "b"),
    )
    errors = load_errors(folders[-1])
    experts = errors[errors["expert"].notna() & (errors["role"] == "up")]
    assert sorted(experts["tokens"])[-2:] == [1, 1]
    assert sum(experts["tokens"]) == 2
    for name in errors["linear"]:
        weight = checkpoint.weight(name).float()
        difference = load_block(folders[-1])[name].dequantize() - weight
        assert 0 < float(difference.square().mean() / weight.square().mean()) < 0.05


def test_routing_weights_lower_the_weighted_error_of_an_experts_output(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    plan = uniform(checkpoint, "int2-g16")
    same = {"expert_shrinkage": 0.0, "scale_search": "none", "damping": 0.001}
    plain = quantize(checkpoint, plan, tmp_path / "none", routing_weight="none", **same)[0]
    weighted = quantize(checkpoint, plan, tmp_path / "p2", routing_weight="p2", **same)[0]
    up = [s for s in checkpoint.block_specs(0) if s.expert is not None and s.role == "up"]
    model = BlockModel(checkpoint, CPU, torch.float32)
    hidden = model.embed(windows(), 4)
    seen = run_and_collect(model, model.block(0), 0, up, hidden, "p2")[0]

    def error(folder: Path) -> float:
        found = load_block(folder)
        return sum(
            seen[spec.input_key].mass
            * float(
                output_error(
                    found[spec.name].dequantize() - checkpoint.weight(spec.name).float(),
                    seen[spec.input_key].hessian,
                )
            )
            for spec in up
        )

    assert error(weighted) < error(plain)


@pytest.mark.parametrize(
    "changes", [{"tune": "none"}, {"tune": "block"}, {"tune": "block", "tune_ahead": True}]
)
def test_finished_blocks_are_reused_and_give_the_same_bits(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "qwen3", num_hidden_layers=3))
    plan = uniform(checkpoint, "int4-g16")
    changes = changes | {"tune_steps": 4}
    whole = quantize(checkpoint, plan, tmp_path / "whole", **changes)
    cache = FolderCache(tmp_path / "whole")
    (tmp_path / "whole" / "2").rename(tmp_path / "undisturbed")
    config = QuantizationConfig(group_size=16, **changes)
    resumed = quantize_blocks(
        checkpoint, plan, windows(), config, device=CPU, batch_size=4, blocks=cache
    )
    assert cache.ran == [2]
    assert resumed == whole
    first = (tmp_path / "undisturbed" / "block.safetensors").read_bytes()
    assert first == (resumed[2] / "block.safetensors").read_bytes()


@pytest.mark.parametrize("correction", ["none", "stream"])
def test_a_run_that_is_resumed_gives_the_same_bits(tmp_path: Path, correction: str) -> None:
    """Whoever passes a finished block attends, and whoever has solved it takes shortcuts: in the same batches, whatever CPU libraries
    go by, with kept linears as they are stored.
    """
    source = make_model(
        tmp_path / "m",
        "qwen3",
        num_hidden_layers=3,
        hidden_size=256,
        dtype=torch.float32,
    )
    checkpoint = Checkpoint(source)
    plan = uniform(checkpoint, "int4-g16")
    for spec in plan.specs:
        if spec.role == "k":
            plan.schemes[spec.name] = Scheme.parse("bf16")
    config = QuantizationConfig(group_size=16, correction=correction)  # type: ignore[arg-type]
    tokens = windows(11, 20)

    def run(cache: FolderCache) -> list[Path]:
        return quantize_blocks(
            checkpoint, plan, tokens, config, device=CPU, batch_size=8, blocks=cache
        )

    whole = run(FolderCache(tmp_path / "whole"))
    (tmp_path / "whole" / "2").rename(tmp_path / "undisturbed")
    resumed = run(again := FolderCache(tmp_path / "whole"))
    assert again.ran == [2]
    assert resumed == whole
    for file in ("block.safetensors", "errors.parquet"):
        first = (tmp_path / "undisturbed" / file).read_bytes()
        assert first == (resumed[2] / file).read_bytes()


@pytest.mark.parametrize("model_type", TYPES)
def test_every_architecture_is_tuned_below_the_error_of_gptq(
    tmp_path: Path, model_type: str
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    plan = uniform(checkpoint, "int3-g16")
    before = quantize(checkpoint, plan, tmp_path / "gptq")
    config = QuantizationConfig(group_size=16, tune="block", tune_steps=40, tune_rate=2e-3)
    cache = FolderCache(tmp_path / "tuned")
    after = quantize_blocks(
        checkpoint, plan, windows(48), config, device=CPU, batch_size=8, blocks=cache
    )
    assert all(load_tuning(folder) is None for folder in before)
    found = [load_tuning(folder) for folder in after]
    assert all(t is not None and t["after"] < t["before"] and t["steps"] > 0 for t in found)
    first = load_block(after[0])
    assert {n: str(w.scheme) for n, w in first.items()} == {
        n: str(w.scheme) for n, w in load_block(before[0]).items()
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1},
        {"hidden_size": 40, "intermediate_size": 50},  # no group size divides 40 or 50
        {"tie_word_embeddings": True},
    ],
)
def test_odd_models_work(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "llama", **changes))
    for text in ("int4-g16", "mxfp4"):
        plan = uniform(checkpoint, text)
        folders = quantize(checkpoint, plan, tmp_path / text)
        for index, folder in enumerate(folders):
            for name, weight in block_weights(checkpoint, index, folder).items():
                original = checkpoint.weight(name).float()
                assert weight.shape == original.shape
                assert float((weight - original).square().mean() / original.square().mean()) < 0.05


def test_quantized_routers_are_stored_too(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "mixtral"))
    folders = quantize(checkpoint, uniform(checkpoint, "int8-g16", "int8-g16"), tmp_path / "b")
    assert "model.layers.0.block_sparse_moe.gate" in load_block(folders[0])


def test_a_plan_that_keeps_a_block_leaves_it_untouched(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "llama"))
    plan = uniform(checkpoint, "int4-g16")
    schemes = {
        name: Scheme("bf16") if ".layers.0." in name else scheme
        for name, scheme in plan.schemes.items()
    }
    folders = quantize(checkpoint, QuantPlan(plan.specs, schemes), tmp_path / "b")
    assert not load_block(folders[0])
    for name, weight in block_weights(checkpoint, 0, folders[0]).items():
        assert torch.equal(weight, checkpoint.weight(name))
    assert load_block(folders[1])


def test_nan_weight_is_named(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "llama")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(source)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj(\.weight)? holds 1 NaN"):
        quantize(checkpoint, uniform(checkpoint, "int4-g16"), tmp_path / "b")


@pytest.mark.parametrize("model_type", ["llama", "olmoe", "qwen2_moe", "deepseek_v3"])
def test_sensitivity_orders_formats_and_covers_every_linear(
    tmp_path: Path, model_type: str
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    schemes = [Scheme.parse(t, group_size=16) for t in ("int2", "int3", "int4", "int8", "bf16")]
    table = sensitivity_table(checkpoint, windows(), schemes, device=CPU, batch_size=4)
    wide = table.pivot_table(index="linear", columns="format", values="predicted_loss")
    assert len(wide) == len([spec for spec in checkpoint.specs if spec.role != "lm_head"])
    totals = wide.sum()
    assert totals["int2-g16"] > totals["int3-g16"] > totals["int4-g16"]
    assert totals["int4-g16"] > totals["int8-g16"] > 0
    assert totals["bf16"] == 0


def test_predicted_losses_rank_linears_as_measured_divergences_do(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "llama", num_hidden_layers=3)
    checkpoint = Checkpoint(source)
    scheme = Scheme.parse("int2-g16")
    tokens = windows(16, 32)
    table = sensitivity_table(checkpoint, tokens, [scheme], device=CPU, scale_search="none")
    predicted = table.set_index("linear")["predicted_loss"]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    parameters = dict(model.named_parameters())
    measured = {}
    with torch.no_grad():
        base = torch.log_softmax(model(tokens).logits, -1)
        for name in predicted.index:
            parameter = parameters[f"{name}.weight"]
            original = parameter.clone()
            parameter.copy_(quantize_weight(original, scheme).dequantize())
            changed = torch.log_softmax(model(tokens).logits, -1)
            measured[name] = float((base.exp() * (base - changed)).sum(-1).mean())
            parameter.copy_(original)
    assert predicted.rank().corr(pd.Series(measured).rank()) > 0.6


def test_rounding_to_nearest_needs_no_tokens(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    plan = uniform(checkpoint, "int4-g16")
    config = QuantizationConfig(method="rtn", group_size=16)
    blind = quantize_blocks(
        checkpoint, plan, None, config, device=CPU, batch_size=1, blocks=FolderCache(tmp_path / "a")
    )
    seeing = quantize(checkpoint, plan, tmp_path / "b", method="rtn")
    for one, other in zip(blind, seeing, strict=True):
        ours, theirs = load_block(one), load_block(other)
        assert all(torch.equal(ours[n].dequantize(), theirs[n].dequantize()) for n in theirs)
        assert (load_errors(one)["error"] == load_errors(one)["error_rtn"]).all()


def test_routing_weights_change_predicted_losses_of_experts_only(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    scheme = Scheme.parse("int4-g16")
    plain, weighted = (
        sensitivity_table(checkpoint, windows(), [scheme], device=CPU, routing_weight=weight)
        for weight in ("none", "p2")
    )
    routed = plain["linear"].str.contains(".experts.", regex=False)
    before, after = (table["predicted_loss"] for table in (plain, weighted))
    assert (before[~routed] == after[~routed]).all()
    assert (before[routed] != after[routed]).any()
    # the mean over tokens is weighted, not scaled: losses stay comparable with those of attention
    assert 0.5 < after[routed].sum() / before[routed].sum() < 2


def test_sensitivity_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    schemes = [Scheme.parse("int3-g16")]
    one, other = (
        sensitivity_table(checkpoint, windows(11), schemes, device=CPU, batch_size=size)
        for size in (3, 11)
    )
    ratio = one["predicted_loss"] / other["predicted_loss"]
    assert ratio.between(0.98, 1.02).all()


def test_windows_that_wait_for_the_backward_pass_do_not_hold_the_others() -> None:
    batches = [torch.zeros(8, 3, 2) for _ in range(4)]
    parts = list(sensitivity._cut(batches, [3, 3]))
    assert [len(part) for part in parts] == [3, 3]
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in parts)


def test_the_standard_error_of_a_predicted_loss_is_that_of_a_mean_over_windows(
    tmp_path: Path,
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    schemes = [Scheme.parse("int3-g16")]
    few, many = (
        sensitivity_table(checkpoint, windows(count, 16), schemes, device=CPU) for count in (16, 64)
    )
    relative = [(t["stderr"] / t["predicted_loss"]).median() for t in (few, many)]
    assert 1.4 < relative[0] / relative[1] < 2.8  # four times the windows halve it
    one = sensitivity_table(checkpoint, windows(1), schemes, device=CPU)
    assert one["stderr"].isna().all()
    assert (one["output_change"] > 0).all()


def test_dead_inputs_cost_nothing(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "llama")
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if name.endswith("input_layernorm.weight"):
            tensors[name][::2] = 0  # half of the attention's inputs never fire
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    schemes = [Scheme.parse("int3-g16")]
    before = sensitivity_table(Checkpoint(source), windows(), schemes, device=CPU)
    name = "model.layers.0.self_attn.q_proj"
    tensors[f"{name}.weight"][:, ::2] *= 2
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    after = sensitivity_table(Checkpoint(source), windows(), schemes, device=CPU)
    losses = [t.set_index("linear")["predicted_loss"][name] for t in (before, after)]
    assert losses[1] < 1.5 * losses[0]


def test_an_unreached_expert_leans_on_kept_experts_too(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "olmoe")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.gate.weight"].zero_()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint(source)
    plan = uniform(checkpoint, "int3-g16")
    for spec in plan.specs:
        if spec.expert is None:  # or what experts read would be another thing
            plan.schemes[spec.name] = Scheme("bf16")
    probe = load_errors(quantize(checkpoint, plan, tmp_path / "a")[0])
    starved = probe[(probe["tokens"] == 0) & (probe["role"] == "up")]["linear"].iloc[0]
    schemes = {n: s if n == starved else Scheme("bf16") for n, s in plan.schemes.items()}
    alone = load_errors(quantize(checkpoint, QuantPlan(plan.specs, schemes), tmp_path / "b")[0])
    assert list(alone["linear"]) == [starved]
    assert alone["error"].iloc[0] == pytest.approx(
        float(probe.set_index("linear")["error"][starved]), rel=1e-4
    )


@pytest.mark.parametrize("method", ["awq", "adaround", "nf4", "rtn"])
def test_tuning_goes_on_where_any_method_ends(tmp_path: Path, method: str) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe", uneven_norms=True))
    plan = uniform(checkpoint, "nf4" if method == "nf4" else "int3-g16")
    changes = {"method": method, "tune": "block", "tune_steps": 16}
    folders = quantize(checkpoint, plan, tmp_path / "b", **changes)
    plain = quantize(checkpoint, plan, tmp_path / "p", method=method)
    found = [load_tuning(folder) or {} for folder in folders]
    # blocks are tuned in the basis in which the method left them
    assert all(tuning["before"] < 0.4 for tuning in found)
    assert all(tuning["after"] <= tuning["before"] for tuning in found)
    assert sum(tuning["after"] for tuning in found) < sum(tuning["before"] for tuning in found)
    assert load_moved(folders[0]).keys() == load_moved(plain[0]).keys()
    for name, tensor in load_moved(plain[0]).items():
        assert torch.equal(tensor, load_moved(folders[0])[name])
