"""The output projection: quantized behind the last block, tied or not, and seen by whatever uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_seed import allocation_from_seed
from alphaquant.algorithms.quantize_model import quantize_blocks
from alphaquant.algorithms.quantized_block import head_of, load_block, load_errors, quantized_head
from alphaquant.algorithms.router_models import Student, Teacher
from alphaquant.algorithms.router_windows import Windows
from alphaquant.algorithms.rtn import rtn
from alphaquant.algorithms.solve_head import solve_head
from alphaquant.algorithms.tunable_model import TunableModel
from alphaquant.algorithms.tuning_memory import needs_behind
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.errors import ModelError
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import Ruler
from alphaquant.export.dense import export_dense
from alphaquant.formats.scheme import Scheme
from alphaquant.linalg.hessian import HessianAccumulator
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.streamed import last_hidden
from alphaquant.plan import QuantPlan
from tests.algorithms.test_quantize_model import CPU, FolderCache, windows
from tests.tiny import make_model

CONFIG = QuantizationConfig(group_size=16)
TIED = pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])


def planned(checkpoint: Checkpoint, head: str | None, body: str = "int8") -> QuantPlan:
    config = AllocationConfig(policy="uniform", default={"wq": body}, lm_head=head)  # type: ignore[arg-type]
    return allocate(checkpoint.plannable, config, CONFIG)


def quantize(
    checkpoint: Checkpoint, plan: QuantPlan, cache: FolderCache, config: QuantizationConfig = CONFIG
) -> list[Path]:
    return quantize_blocks(
        checkpoint, plan, windows(), config, device=CPU, batch_size=4, blocks=cache
    )


def exported(checkpoint: Checkpoint, folders: list[Path], out: Path) -> Any:
    out.mkdir()
    export_dense(checkpoint, folders, {}, out)
    model, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def kl(first: Any, second: Any, tokens: Tensor) -> float:
    with torch.no_grad():
        a, b = (torch.log_softmax(m(tokens).logits, -1) for m in (first, second))
    return float((a.exp() * (a - b)).sum(-1).mean())


@TIED
def test_the_head_is_what_gptq_makes_of_it_behind_the_quantized_blocks(
    tmp_path: Path, tied: bool
) -> None:
    source = make_model(tmp_path / "m", tie_word_embeddings=tied, uneven_norms=True)
    checkpoint = Checkpoint(source)
    folders = quantize(checkpoint, planned(checkpoint, "int4"), FolderCache(tmp_path / "b"))
    assert len(folders) == checkpoint.blocks + 1
    found = load_block(folders[-1])["lm_head"]
    # the same by hand: blocks quantized, head not, hidden states as transformers has them
    model = exported(checkpoint, folders[:-1], tmp_path / "body")
    reached = HessianAccumulator(32, CPU)
    with torch.no_grad():
        for batch in windows().split(4):
            reached.update(model.model(batch).last_hidden_state)
    spec, scheme = checkpoint.plannable[-1], Scheme.parse("int4-g16")
    expected = solve_head(checkpoint, spec, scheme, reached, CPU, CONFIG).weights["lm_head"]
    same = (found.dequantize() - expected.dequantize()).abs() < 1e-6
    assert float(same.float().mean()) > 0.995  # hidden states differ in the last bits
    [row] = load_errors(folders[-1]).to_dict("records")
    assert row["role"] == "lm_head"
    assert row["tokens"] == windows().numel()
    assert 0 < row["error"] < row["error_rtn"] < 0.1


@pytest.mark.parametrize("format_", ["int4-g16", "int4-g16-asym", "mxfp4", "nvfp4", "nf4"])
def test_parts_of_the_head_are_what_the_whole_would_be(tmp_path: Path, format_: str) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m"))
    spec, scheme = checkpoint.specs[-1], Scheme.parse(format_)
    reached = HessianAccumulator(32, CPU)
    reached.update(torch.randn(200, 32, generator=torch.Generator().manual_seed(0)))
    whole, parts = (
        solve_head(checkpoint, spec, scheme, reached, CPU, CONFIG, part=size)
        for size in (1 << 26, 32 * 100)
    )
    first, second = whole.weights["lm_head"], parts.weights["lm_head"]
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.dequantize(), second.dequantize())
    for name in ("error", "error_rtn", "weight_error"):
        assert whole.errors[name][0] == pytest.approx(parts.errors[name][0], rel=1e-4)


@TIED
@pytest.mark.parametrize("shard", ["20kB", "1GB"])
def test_the_checkpoint_holds_a_head_of_its_own(tmp_path: Path, tied: bool, shard: str) -> None:
    source = make_model(tmp_path / "m", tie_word_embeddings=tied, shard=shard)
    checkpoint = Checkpoint(source)
    folders = quantize(checkpoint, planned(checkpoint, "int8"), FolderCache(tmp_path / "b"))
    model = exported(checkpoint, folders, tmp_path / "out")
    expected = load_block(folders[-1])["lm_head"].dequantize().bfloat16()
    assert torch.equal(model.lm_head.weight.bfloat16(), expected)
    assert not torch.equal(expected, checkpoint.head_weight())
    embedding = checkpoint.tensor("model.embed_tokens.weight")
    assert torch.equal(model.model.embed_tokens.weight.bfloat16(), embedding)
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    again = Checkpoint(tmp_path / "out")
    assert set(again.entries) == {*checkpoint.entries, "lm_head.weight"}
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    assert 0 < kl(original, model, windows()) < 0.01


def test_a_kept_head_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", tie_word_embeddings=True)
    checkpoint = Checkpoint(source)
    folders = quantize(checkpoint, planned(checkpoint, None), FolderCache(tmp_path / "b"))
    assert head_of(checkpoint, folders) is None
    assert quantized_head(checkpoint, folders) is None
    exported(checkpoint, folders, tmp_path / "out")
    for name in ("config.json",):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert set(Checkpoint(tmp_path / "out").entries) == set(checkpoint.entries)


@TIED
def test_rounding_to_nearest_needs_no_tokens(tmp_path: Path, tied: bool) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", tie_word_embeddings=tied))
    config = CONFIG.model_copy(update={"method": "rtn"})
    folders = quantize_blocks(
        checkpoint,
        planned(checkpoint, "int4"),
        None,
        config,
        device=CPU,
        batch_size=4,
        blocks=FolderCache(tmp_path / "b"),
    )
    expected = rtn(checkpoint.head_weight().float(), Scheme.parse("int4-g16"), "mse")
    assert torch.equal(load_block(folders[-1])["lm_head"].codes, expected.codes)


@pytest.mark.parametrize("head", ["int8-g16", "nf4"])
def test_a_head_beside_nf4_has_the_format_that_its_plan_says(tmp_path: Path, head: str) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m"))
    folders = quantize_blocks(
        checkpoint,
        planned(checkpoint, head, "nf4"),
        None,
        CONFIG.model_copy(update={"method": "nf4"}),
        device=CPU,
        batch_size=4,
        blocks=FolderCache(tmp_path / "b"),
    )
    found = load_block(folders[-1])["lm_head"]
    assert str(found.scheme) == head
    expected = rtn(checkpoint.head_weight().float(), Scheme.parse(head))
    assert torch.equal(found.dequantize(), expected.dequantize())
    [row] = load_errors(folders[-1]).to_dict("records")
    assert row["format"] == found.scheme.format


def test_an_interrupted_head_is_all_that_is_made_again(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", tie_word_embeddings=True))
    plan, cache = planned(checkpoint, "int4"), FolderCache(tmp_path / "b")
    first = load_block(quantize(checkpoint, plan, cache)[-1])["lm_head"]
    assert cache.ran == [0, 1, 2]
    for file in (tmp_path / "b/2").iterdir():
        file.unlink()
    (tmp_path / "b/2").rmdir()
    again = FolderCache(tmp_path / "b")
    second = load_block(quantize(checkpoint, plan, again)[-1])["lm_head"]
    assert again.ran == [2]
    assert torch.equal(first.codes, second.codes)
    done = FolderCache(tmp_path / "b")
    quantize(checkpoint, plan, done)
    assert done.ran == []


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    class Broken(Checkpoint):
        def tensor(self, name: str) -> Tensor:
            tensor = super().tensor(name)
            return tensor / 0 if name == "lm_head.weight" else tensor

    checkpoint = Broken(make_model(tmp_path / "m"))
    with pytest.raises(ModelError, match=r"lm_head\.weight holds .* NaN or infinite"):
        quantize(checkpoint, planned(checkpoint, "int4"), FolderCache(tmp_path / "b"))


@TIED
def test_budgets_count_the_decoder_and_the_plan_counts_both(tmp_path: Path, tied: bool) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", tie_word_embeddings=tied))
    without, plan = (planned(checkpoint, head, "int4") for head in (None, "int8"))
    assert plan.decoder_bits == without.bits_per_weight == without.decoder_bits == 5.0
    head = plan.table().set_index("linear").loc["lm_head"]
    assert (head["format"], head["rows"], head["cols"]) == ("int8", 260, 32)
    assert head["bits_per_weight"] == 9.0
    sizes = sum(spec.size for spec in without.specs)
    assert plan.bits_per_weight == pytest.approx((5 * sizes + 9 * 260 * 32) / (sizes + 260 * 32))


@TIED
@pytest.mark.parametrize("body", ["int8", "int4"])
def test_a_plan_comes_back_from_both_of_its_files(tmp_path: Path, tied: bool, body: str) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", tie_word_embeddings=tied))
    plan = planned(checkpoint, "int8", body)
    plan.save(tmp_path)
    assert QuantPlan.load(tmp_path, checkpoint.plannable) == QuantPlan(
        list(plan.specs), plan.schemes, plan.activations
    )
    config = allocation_from_seed(json.loads((tmp_path / "plan.json").read_text()))
    again = allocate(checkpoint.plannable, config, QuantizationConfig(group_size=128))
    assert dict(again.schemes) == dict(plan.schemes)


def test_no_default_activation_reaches_the_head(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m"))
    config = AllocationConfig(
        policy="uniform",
        default={"wq": "int4", "aq": "int8"},  # type: ignore[arg-type]
        lm_head="int8",
    )
    plan = allocate(checkpoint.plannable, config, CONFIG)
    assert set(plan.activations) == {spec.name for spec in plan.specs} - {"lm_head"}
    again = allocation_from_seed(plan.as_seed_config())
    assert allocate(checkpoint.plannable, again, CONFIG).activations == plan.activations


@TIED
def test_tuning_and_rulers_see_the_quantized_head(tmp_path: Path, tied: bool) -> None:
    source = make_model(tmp_path / "m", tie_word_embeddings=tied, uneven_norms=True)
    checkpoint = Checkpoint(source)
    folders = quantize(checkpoint, planned(checkpoint, "int2", "int4"), FolderCache(tmp_path / "b"))
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    seen = kl(original, exported(checkpoint, folders, tmp_path / "out"), windows())
    body = kl(original, exported(checkpoint, folders[:-1], tmp_path / "body"), windows())
    assert seen > 1.5 * body
    [teacher] = last_hidden(BlockModel(checkpoint, CPU, torch.float32), [windows()])
    with torch.no_grad():
        for units, expected in ((folders, seen), (folders[:-1], body)):
            loss = TunableModel(checkpoint, units, CPU).loss(windows(), teacher)
            assert float(loss) == pytest.approx(expected, rel=1e-3)
    with_head, without = (
        needs_behind(checkpoint, f, (4, 16), CPU) for f in (folders, folders[:-1])
    )
    assert with_head.weights > without.weights
    ruler = Ruler(checkpoint, windows(), Room(CPU, 4))
    measured = []
    for units in (folders[:-1], folders, folders[:-1]):
        ruler.put_blocks(units)
        measured.append(float(ruler.measure().kl.mean()))
    assert measured[0] == pytest.approx(measured[2], rel=1e-6)
    assert measured[1] > 1.5 * measured[0]


def test_routers_are_trained_under_the_quantized_head(tmp_path: Path) -> None:
    source = make_model(tmp_path / "m", "olmoe")
    checkpoint = Checkpoint(source)
    folders = quantize(checkpoint, planned(checkpoint, "int2", "int4"), FolderCache(tmp_path / "b"))
    routers = [spec for spec in checkpoint.specs if spec.role == "router"]
    teacher = Teacher(checkpoint, Windows([windows()[:3]], [windows()[3:]]), CPU, routers)
    student = Student(checkpoint, folders, CPU, routers)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    seen = kl(original, exported(checkpoint, folders, tmp_path / "out"), windows()[3:])
    assert student.held_out(teacher)[0] == pytest.approx(seen, rel=1e-3)
