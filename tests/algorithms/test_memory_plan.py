"""A memory limit changes what is held at once, and not one code."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from alphaquant.algorithms import memory_plan, quantize_model, sensitivity, solve_head
from alphaquant.algorithms.memory_needs import Needs, needs_of, solving_bytes
from alphaquant.algorithms.memory_plan import MemoryPlan, busy, plan_memory
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.config import QuantizationConfig
from alphaquant.errors import ConfigError
from alphaquant.formats.scheme import Scheme
from alphaquant.models import device
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from alphaquant.progress import reporting_to
from tests.notes import Notes
from tests.tiny import VOCABULARY, make_model

CPU = torch.device("cpu")
NEEDS = Needs(
    weights=100, window=10, hidden=40, hessians=200, hessian=20, codes=20, solved=20, solving=30
)


def windows(count: int = 6, length: int = 24) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(0))


def quantize(
    checkpoint: Checkpoint,
    root: Path,
    limit: int | None,
    batch_size: int = 2,
    head: bool = False,
    **changes: Any,
) -> list[Path]:
    specs = [spec for spec in checkpoint.specs if head or spec.role != "lm_head"]
    schemes = {s.name: Scheme.parse("bf16" if s.role == "router" else "int4-g16") for s in specs}
    root.mkdir()
    return quantize_blocks(
        checkpoint,
        QuantPlan(specs, schemes),
        windows(),
        QuantizationConfig(**({"group_size": 16} | changes)),
        device=CPU,
        batch_size=batch_size,
        blocks=FreshBlocks(root),
        memory_limit=limit,
        scratch=root,
    )


@pytest.fixture
def empty_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits below what any process takes become possible."""
    monkeypatch.setattr(device, "resident", lambda: 0)
    monkeypatch.setattr(device, "_LIBRARIES", 0)


def same(one: Path, other: Path) -> bool:
    ours, theirs = (load_file(folder / "block.safetensors") for folder in (one, other))
    return (
        ours.keys() == theirs.keys()
        and all(torch.equal(ours[name], theirs[name]) for name in ours)
        and (one / "errors.parquet").read_bytes() == (other / "errors.parquet").read_bytes()
    )


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {}),
        ("olmoe", {}),
        ("qwen2_moe", {"method": "awq"}),
        ("mixtral", {"correction": "stream"}),
        ("deepseek_v3", {}),
        ("deepseek_v3", {"correction": "stream"}),
    ],
)
def test_codes_are_the_same_under_the_smallest_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str, changes: dict[str, Any]
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    free = quantize(checkpoint, tmp_path / "free", None, **changes)
    split = MemoryPlan(
        2, hidden_on_disk=True, hessians_on_disk=True, hessians=0, solving=0, limited=True
    )
    specs = [spec for spec in checkpoint.block_specs(1) if spec.role != "router"]
    assert len(list(split.passes(specs))) == len({spec.input_key for spec in specs})
    assert {split.at_once([spec]) for spec in specs} == {1}
    monkeypatch.setattr(quantize_model, "memory_within", lambda *_: split)
    tight = quantize(checkpoint, tmp_path / "tight", 1, **changes)
    assert all(same(one, other) for one, other in zip(free, tight, strict=True))
    left = {path.name for path in (tmp_path / "tight").iterdir()}
    assert left == {path.name for path in (tmp_path / "free").iterdir()}


@pytest.mark.usefixtures("empty_process")
def test_the_smallest_limit_changes_the_batch_at_most(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    needs = needs_of(checkpoint, *windows().shape, QuantizationConfig(), 4)
    notes = Notes()
    with reporting_to(notes):
        tight = quantize(checkpoint, tmp_path / "tight", needs.least() * 16 // 15 + 16)
    [said] = [note for note in notes.said if note.startswith("memory limit")]
    assert "hidden states in a file" in said
    assert "and in a file" in said
    batch = int(re.findall(r"batches of (\d+) windows", said)[0])
    free = quantize(checkpoint, tmp_path / "free", None, batch_size=batch)
    assert all(same(one, other) for one, other in zip(free, tight, strict=True))


@pytest.mark.usefixtures("empty_process")
def test_a_limit_that_nothing_fits_is_refused_before_work(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m"))
    with pytest.raises(ConfigError, match=r"memory_limit is .* blocks need .* Raise the limit"):
        quantize(checkpoint, tmp_path / "blocks", 1000)
    assert not list((tmp_path / "blocks").iterdir())


def test_a_process_that_holds_more_than_the_limit_says_so(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m"))
    with pytest.raises(ConfigError, match="for what is there already"):
        quantize(checkpoint, tmp_path / "blocks", 10_000_000)


@pytest.mark.parametrize(
    ("room", "hidden_on_disk", "hessians_on_disk", "batch", "passes"),
    [
        (10_000, False, False, 8, 1),
        # 40 + 200 + 20 + 4 * 30 to solve, 40 + 100 + 80 + 20 + 200 to watch
        (460, False, False, 8, 1),
        (330, False, True, 8, 3),  # 90 for Hessians, which is 4 of 20
        (250, True, True, 8, 5),  # 50 for Hessians
        (200, True, True, 4, 5),
        (160, True, True, 2, 10),
        (151, True, True, 1, 10),
    ],
)
def test_files_come_first_and_smaller_batches_last(
    room: int, hidden_on_disk: bool, hessians_on_disk: bool, batch: int, passes: int
) -> None:
    chosen = plan_memory(NEEDS, room, MemoryPlan(8))
    assert chosen.hidden_on_disk == hidden_on_disk
    assert chosen.hessians_on_disk == hessians_on_disk
    assert chosen.batch_size == batch
    held = 0 if hidden_on_disk else NEEDS.hidden
    gathered = min(NEEDS.hessians, max(chosen.hessians, NEEDS.hessian))
    assert held + NEEDS.weights + batch * NEEDS.window + NEEDS.codes + gathered <= room
    assert -(-NEEDS.hessians // (gathered // NEEDS.hessian * NEEDS.hessian)) == passes
    waiting = 0 if hessians_on_disk else NEEDS.hessians
    assert held + waiting + NEEDS.codes + max(chosen.solving, NEEDS.solving) <= room


@pytest.mark.parametrize("model_type", ["llama", "olmoe"])
def test_predicted_losses_are_the_same_under_the_smallest_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    split = MemoryPlan(
        2, hidden_on_disk=True, hessians_on_disk=True, hessians=0, solving=0, method="rtn"
    )
    backward = []

    def smallest(_limit: int, _checkpoint: Checkpoint, *others: Any) -> MemoryPlan:
        backward.append(others[-1])
        return split

    monkeypatch.setattr(sensitivity, "memory_within", smallest)
    free, tight = (
        sensitivity.sensitivity_table(
            checkpoint,
            windows(),
            [Scheme.parse("int4-g16")],
            device=CPU,
            batch_size=2,
            memory_limit=limit,
            scratch=tmp_path,
        )
        for limit in (None, 1)
    )
    pd.testing.assert_frame_equal(tight, free, check_exact=True)
    assert backward == [6]  # windows that the backward pass sees


def test_a_cpu_solves_as_many_experts_at_once_as_its_cache_serves(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    readers = [s for s in checkpoint.block_specs(1) if s.expert == 0 and s.role in ("gate", "up")]
    plan = MemoryPlan.on(CPU, 8, "gptq")
    assert plan.at_once(readers) == plan.weights // sum(spec.size for spec in readers) > 100
    assert replace(plan, weights=1).at_once(readers) == 1
    assert MemoryPlan.on(torch.device("cuda"), 8, "gptq").at_once(readers) > plan.at_once(readers)


def test_a_backward_pass_makes_batches_smaller_and_can_be_too_large() -> None:
    more = replace(NEEDS, backward=100, gradients=50, head=300)
    assert plan_memory(NEEDS, 600, MemoryPlan(4)).batch_size == 4
    assert plan_memory(more, 600, MemoryPlan(4)).batch_size == 4  # 100 + 50 + 40 + 4 * 100
    assert plan_memory(more, 589, MemoryPlan(4)).batch_size == 2
    assert more.least() == 300
    assert replace(more, head=0).least() == 250
    assert replace(NEEDS, embedding=400).least() == 410


def test_a_head_is_solved_in_parts_that_fit_and_comes_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m"))
    [head] = [spec for spec in checkpoint.specs if spec.role == "lm_head"]
    rows = 7
    beside = int(3.25 * head.size) + 4 * 4 * head.cols**2
    split = MemoryPlan(2, solving=beside + 4 * 17 * rows * head.cols)
    assert split.weights_at_once(head) == rows * head.cols
    assert MemoryPlan(2).weights_at_once(head) == math.inf
    assert MemoryPlan(2, solving=1).weights_at_once(head) == 0
    free = quantize(checkpoint, tmp_path / "free", None, head=True)
    monkeypatch.setattr(quantize_model, "memory_within", lambda *_: split)
    parts = []
    solve_weight = solve_head.solve_weight

    def watched(weight: torch.Tensor, *others: Any) -> Any:
        parts.append(weight.shape[-2])
        return solve_weight(weight, *others)

    monkeypatch.setattr(solve_head, "solve_weight", watched)
    tight = quantize(checkpoint, tmp_path / "tight", 1, head=True)
    assert max(parts) == rows
    assert sum(parts) == head.rows
    assert all(same(one, other) for one, other in zip(free[:-1], tight[:-1], strict=True))
    codes, errors = (
        [read(folder[-1]) for folder in (free, tight)]
        for read in (
            lambda folder: load_file(folder / "block.safetensors"),
            lambda folder: pd.read_parquet(folder / "errors.parquet"),
        )
    )
    assert codes[0].keys() == codes[1].keys()
    assert all(torch.equal(codes[0][name], codes[1][name]) for name in codes[0])
    pd.testing.assert_frame_equal(*errors, rtol=1e-5)  # parts are summed one after the other


@pytest.mark.parametrize(("windows_that_fit", "expected"), [(1000, 64), (40, 32), (17, 16), (1, 8)])
def test_a_gpu_sees_as_many_windows_as_half_of_its_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows_that_fit: int, expected: int
) -> None:
    mixture = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    window = memory_plan.window_bytes(mixture, 24, 2)
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: 2 * windows_that_fit * window)
    plan = MemoryPlan.on(torch.device("cuda"), 8, "gptq")
    assert busy(plan, mixture, 24, torch.device("cuda"), torch.bfloat16).batch_size == expected
    assert busy(plan, mixture, 24, CPU, torch.float32) is plan


def test_shortcuts_leave_what_solving_and_looking_take(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", "olmoe"))
    block = checkpoint.block_specs(1)
    down = [s for s in block if s.role == "down"]
    plan = MemoryPlan.on(torch.device("cuda"), 8, "gptq")
    each = [solving_bytes([spec], "gptq") for spec in down]
    gate = [s for s in block if s.expert == 0 and s.role in ("gate", "up")]
    together = max(sum(each), len(down) * solving_bytes(gate, "gptq"))
    needs = replace(NEEDS, weights=0, window=0)
    assert plan.beside_shortcuts(needs, block) == together + needs.hessians + needs.codes
    large = replace(NEEDS, weights=10 * together, lesson=7)
    expected = 10 * together + 8 * NEEDS.window + NEEDS.hessians + NEEDS.codes + 7
    assert plan.beside_shortcuts(large, block) == expected
