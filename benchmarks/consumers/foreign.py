"""Tiny checkpoints by other quantizers, and whether ours reads the values that they stand for.

Each is written by the quantizer's own driver of the comparison (`benchmarks.rivals`): its checkpoint is
below `saved/`, `weights.safetensors` what it says that its linears are.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from alphaquant.models.packed import PackedCheckpoint
from benchmarks.rivals.catalogue import RIVALS
from benchmarks.rivals.environments import python_of
from benchmarks.rivals.process import environment
from tests.tiny import make_model

RECIPES = (
    ("llmcompressor", "llama", "int", 4, 32),
    ("llmcompressor", "llama", "mxfp4", 4, 32),
    ("llmcompressor", "olmoe", "int", 4, 32),
    ("autoround", "llama", "int", 4, 32),
    ("autoround", "llama", "mxfp4", 4, 32),
)
"""Quantizer, model, kind of format, bits, group size."""

_SIZES = {"hidden_size": 64, "intermediate_size": 96}


@dataclass(frozen=True, slots=True)
class Read:
    """What came of one foreign checkpoint."""

    name: str
    linears: int
    largest: float | None
    """Largest difference from what its quantizer says; None when it could not be made or read."""
    said: str = ""


def read_all(cache: Path) -> list[Read]:
    """Make every checkpoint below `cache` if need be, and read it."""
    return [_read(cache, *recipe) for recipe in RECIPES]


def _read(cache: Path, rival: str, model: str, kind: str, bits: int, group: int) -> Read:
    name = f"{rival}-{model}-" + (f"int{bits}" if kind == "int" else kind)
    out = cache / "foreign" / name
    try:
        if not (out / "weights.safetensors").is_file():
            _make(cache, out, rival, model, kind, bits, group)
        ours = PackedCheckpoint(next((out / "saved").rglob("config.json")).parent)
        theirs = load_file(out / "weights.safetensors")
        specs = [s for s in ours.specs if f"{s.name}.weight" in theirs]
        gaps = [
            (ours.weight(s.name).float() - theirs[f"{s.name}.weight"].to(torch.bfloat16).float())
            for s in specs
        ]
        return Read(name, len(specs), max(float(gap.abs().max()) for gap in gaps))
    except Exception as error:  # noqa: BLE001  the others are still asked
        return Read(name, 0, None, " ".join(f"{type(error).__name__}: {error}".split())[-400:])


def _make(cache: Path, out: Path, rival: str, model: str, kind: str, bits: int, group: int) -> None:
    python = python_of(RIVALS[rival], cache)
    out.mkdir(parents=True, exist_ok=True)
    folder = out / "original"
    if not folder.is_dir():
        make_model(folder, model, **_SIZES)
    generator = torch.Generator().manual_seed(0)
    save_file(
        {"tokens": torch.randint(0, 256, (16, 64), generator=generator)},
        str(out / "tokens.safetensors"),
    )
    job = {
        "model": str(folder),
        "tokens_file": str(out / "tokens.safetensors"),
        "bits": bits,
        "group": group,
        "kind": kind,
        "settings": {"iters": 5} if rival == "autoround" else {},
        "out": str(out),
    }
    (out / "job.json").write_text(json.dumps(job), encoding="utf-8")
    with (out / "log.txt").open("wb") as log:
        subprocess.run(
            [str(python), str(RIVALS[rival].driver), str(out / "job.json")],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(1),
            cwd=out,
            check=True,
        )
