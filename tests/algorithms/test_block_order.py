"""A block solved in the order of its data flow: linears see what the quantized ones before them make, and little is computed twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alphaquant.algorithms import walk_model
from alphaquant.algorithms.quantized_block import block_weights, load_errors
from alphaquant.config import QuantizationConfig
from alphaquant.linalg.hessian import output_error
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.linear import ATTENDING_ROLES, LinearSpec, Role
from alphaquant.models.shortcuts import Shortcut
from tests.algorithms.test_quantize_model import CPU, quantize, uniform, windows
from tests.observed import run_and_collect
from tests.tiny import MIXTURES, TYPES, make_model

LATENTS: frozenset[Role] = frozenset({"q_b", "kv_b"})
FIRST = ATTENDING_ROLES - LATENTS


def before(spec: LinearSpec, *, routed: bool) -> frozenset[Role]:
    """Roles of what is quantized when a linear is looked at."""
    if spec.role in FIRST:
        return frozenset()
    if spec.role in LATENTS:
        return FIRST
    inner: frozenset[Role] = frozenset({"o", "gate", "up", "gate_up"})
    return ATTENDING_ROLES | inner if spec.role == "down" and not routed else ATTENDING_ROLES


@pytest.mark.parametrize("model_type", TYPES)
def test_linears_are_solved_behind_the_quantized_ones_before_them(
    tmp_path: Path, model_type: str
) -> None:
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type))
    folder = quantize(
        checkpoint, uniform(checkpoint, "int2-g16"), tmp_path / "b", expert_shrinkage=0.0
    )[0]
    stored, specs = block_weights(checkpoint, 0, folder), checkpoint.block_specs(0)
    routed = any(spec.expert is not None for spec in specs)
    errors = load_errors(folder).set_index("linear")
    model = BlockModel(checkpoint, CPU, torch.float32)
    hidden, counted = model.embed(windows(), 4), QuantizationConfig().routing_weight
    looked = [spec for spec in specs if spec.name in errors.index]
    assert {spec.role for spec in looked} >= {"o", "down"}
    for roles in {before(spec, routed=routed) for spec in looked}:
        members = [spec for spec in looked if before(spec, routed=routed) == roles]
        others = {spec.name: stored[spec.name] for spec in specs if spec.role in roles}
        block = model.block(0, others)
        seen, _ = run_and_collect(model, block, 0, members, hidden, counted)
        for spec in members:
            hessian, weight = seen[spec.input_key].hessian, checkpoint.weight(spec.name).float()
            if not seen[spec.input_key].tokens:
                continue
            lost = output_error(weight - stored[spec.name].float(), hessian)
            expected = float(lost / output_error(weight, hessian))
            assert errors["error"][spec.name] == pytest.approx(expected, rel=1e-2), spec.name


@pytest.mark.parametrize("roles", [("o",), ("o", "down")])
@pytest.mark.parametrize(
    ("model_type", "correction", "passes"),
    [
        ("llama", "none", 5),  # down of three blocks, and two are passed on
        ("olmoe", "none", 2),  # experts are looked at as a whole
        ("gpt_oss", "none", 2),
        ("deepseek_v3", "none", 3),  # the first block is dense
        ("llama", "stream", 5),
        ("olmoe", "stream", 5),
        ("gpt_oss", "stream", 5),
        ("deepseek_v3", "stream", 7),  # of two blocks, a shared expert's down before the others'
    ],
)
def test_attention_runs_once_behind_quantized_inputs(
    tmp_path: Path,
    model_type: str,
    correction: str,
    passes: int,
    roles: tuple[Role, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it hands on is kept from there, also where the block is passed, and nothing comes out different."""
    source = make_model(tmp_path / "m", model_type, num_hidden_layers=3)
    checkpoint = Checkpoint(source)
    plan = uniform(checkpoint, "int4-g16")
    taken: list[str] = []
    whole = Shortcut.taken

    def note(self: Shortcut, block: nn.Module, part: slice) -> Any:
        if self.role == "o":
            taken.append(self.module)
        return whole(self, block, part)

    monkeypatch.setattr(Shortcut, "taken", note)
    monkeypatch.setattr(walk_model, "worth_keeping", lambda _, **__: roles)
    once = quantize(checkpoint, plan, tmp_path / "once", correction=correction)
    assert len(taken) == 3 + 2 * passes  # every block is tried first; two batches
    monkeypatch.setattr(walk_model, "shortcuts", lambda *_: [])
    always = quantize(checkpoint, plan, tmp_path / "always", correction=correction)
    for ours, theirs in zip(once, always, strict=True):
        for file in ("block.safetensors", "errors.parquet"):
            assert (ours / file).read_bytes() == (theirs / file).read_bytes()


@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in MIXTURES])
def test_an_mlp_runs_once_behind_its_quantized_linears(
    tmp_path: Path, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gate and up are multiplied by the windows in the pass that looks at down, and in no other."""
    monkeypatch.setattr(walk_model, "worth_keeping", lambda _, **__: ("o", "down"))
    checkpoint = Checkpoint(make_model(tmp_path / "m", model_type, num_hidden_layers=3))
    rows = {s.rows for s in checkpoint.block_specs(0) if s.role in ("gate", "up", "gate_up")}
    tokens = 0
    multiply = nn.functional.linear

    def count(x: torch.Tensor, weight: torch.Tensor, *bias: Any) -> torch.Tensor:
        nonlocal tokens
        if weight.shape[0] in rows and x.dim() == 3 and x.shape[0] > 1:  # no trial
            tokens += x.shape[:2].numel()
        return multiply(x, weight, *bias)

    monkeypatch.setattr(nn.functional, "linear", count)
    quantize(checkpoint, uniform(checkpoint, "int4-g16"), tmp_path / "b")
    linears = sum(spec.role in ("gate", "up", "gate_up") for spec in checkpoint.block_specs(0))
    assert tokens == 3 * linears * windows().numel()
