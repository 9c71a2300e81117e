"""Every format and mixture of every model row, exported here and loaded by transformers in a process that knows nothing else.

What `transformers_needs` says of a checkpoint is held against what happens: plain transformers gives the logits of the
evaluated model where nothing is needed and only there, and `import alphaquant.hf` makes it do so for all. The check of
plans accepts them all for transformers, and foretells the same needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from alphaquant.config import ExportConfig
from alphaquant.export.consumers import plan_needs, violations
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.rows import ARCHITECTURES
from alphaquant.models.stock import transformers_needs
from benchmarks.consumers.catalogue import READERS
from tests.export.packed_models import (
    PACKABLE,
    Mixture,
    always,
    attention_wider,
    by_block,
    by_expert,
    by_role,
    experts_kept,
    exported,
    logits,
    make_wide,
    partly_kept,
    plan_of,
    some_zero_points,
    three_leaves,
    with_head,
)

ROOT = Path(__file__).parents[2]
QUICK = ("llama", "olmoe")
REST = [name for name in PACKABLE if name not in QUICK]
GROUPS = {
    "quick": QUICK,
    "dense": [name for name in REST if not ARCHITECTURES[name].experts_keys],
    "experts": [name for name in REST if ARCHITECTURES[name].experts_keys],
}
"""The start of a process costs more than a dozen checkpoints: it is paid once for several rows."""


ASKED = ExportConfig(format="compressed-tensors", consumers=("transformers",))
FORMATS = (
    *(f"int{bits}-g32" for bits in (2, 3, 4, 6, 8)),
    *("int3-perchannel", "int4-g32-asym", "int8-g32-asym", "fp8-perchannel", "fp8-g32"),
    *("mxfp4", "mxfp6", "mxfp8", "nvfp4"),
)
MIXTURES: dict[str, Mixture] = {text: always(text) for text in FORMATS} | {
    "by block": by_block,
    "by role": by_role,
    "by expert": by_expert,
    "partly kept": partly_kept,
    "three leaves": three_leaves,
    "zero points": some_zero_points,
    "experts kept": experts_kept,
    "attention wider": attention_wider,
    "head": with_head("int8-g32"),
    "head with zero points": with_head("int4-g32-asym"),
}


@pytest.mark.parametrize(
    "models",
    [
        pytest.param(models, id=name, marks=[] if name == "quick" else [pytest.mark.slow])
        for name, models in GROUPS.items()
    ],
)
def test_a_fresh_process_computes_what_was_evaluated(models: list[str], tmp_path: Path) -> None:
    made: dict[str, tuple[str, Path, Path]] = {}
    for model in models:
        checkpoint = make_wide(tmp_path / model, model)
        for name, mixture in MIXTURES.items():
            case = f"{model}: {name}"
            folder = tmp_path / f"{model}-{name.replace(' ', '-')}"
            made[case] = written(checkpoint, mixture, folder, head="head" in name)
    plain, patched = answers_of_a_child(made, tmp_path)
    needs_nothing = {case for case, (need, _, _) in made.items() if need == "nothing"}
    assert {case for case in made if exact(plain[case])} == needs_nothing
    assert [f"{case}: {told}" for case, told in patched.items() if not exact(told)] == []
    assert patched.keys() == made.keys() - needs_nothing


def written(
    checkpoint: Checkpoint, mixture: Mixture, folder: Path, *, head: bool
) -> tuple[str, Path, Path]:
    """What transformers is said to need, the packed checkpoint, and the logits of the evaluated model, dense or packed."""
    dense, packed = exported(checkpoint, mixture, "compressed-tensors", folder, head=head)
    evaluated = logits(packed)
    assert torch.equal(evaluated, logits(dense))
    save_file({"logits": evaluated}, folder / "evaluated.safetensors")
    plan, needs = plan_of(checkpoint, mixture, head=head), transformers_needs(packed)
    assert violations(plan, checkpoint.architecture, ASKED) == []
    assert plan_needs(plan, checkpoint.architecture, ASKED) == needs
    return needs, packed, folder / "evaluated.safetensors"


def answers_of_a_child(
    made: Mapping[str, tuple[str, Path, Path]], place: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What transformers alone says of every checkpoint, and of those that need more, with that, by case."""
    pairs = {case: f"{packed}={reference}" for case, (_, packed, reference) in made.items()}
    more = {case: pairs[case] for case, (need, _, _) in made.items() if need == "alphaquant.hf"}
    command = [sys.executable, str(READERS["transformers"].driver), *pairs.values()]
    child = subprocess.run(
        [*command, "--patched", *more.values()] if more else command,
        capture_output=True,
        text=True,
        cwd=place,
        env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    lines = [json.loads(line) for line in child.stdout.splitlines() if line.startswith('{"folder"')]
    alone, with_patch = lines[: len(pairs)], lines[len(pairs) :]
    return dict(zip(pairs, alone, strict=True)), dict(zip(more, with_patch, strict=True))


def exact(answer: Mapping[str, Any]) -> bool:
    """Loaded, every tensor in its place, and the same logits."""
    return bool(answer["loads"]) and not answer["missing"] and answer["largest"] == 0
