"""How the stages' cost grows with tokens, blocks, experts and width: CPU seconds of one thread, and the slope in log-log.

Every stage is called once on a first model, so that imports and first allocations count for nobody. Of several
repeats the least counts: a shape's null value of alpha, up to half a second once per process, is in none but the first.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from alphaquant.algorithms.alpha import alpha_table
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.config import AlphaConfig, EvaluationConfig, QuantizationConfig
from alphaquant.evaluation.evaluate import evaluate_checkpoint
from alphaquant.export.dense import export_dense
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.plan import QuantPlan
from benchmarks.speed.models import Design, random_checkpoint

STAGES = ("alpha", "quantize", "export", "evaluate")
_LENGTH = 128
_BASE = Design(hidden=256, intermediate=512, blocks=2, heads=4)
_WINDOWS = 32
_CPU = torch.device("cpu")
_FAST = 1.1  # slope beyond which a cost is said to grow faster than what it depends on


class Axis:
    """One quantity that grows while all others stay."""

    def __init__(
        self, values: tuple[int, ...], design: Callable[[int], Design], linear: bool = True
    ) -> None:
        self.values = values
        self.design = design
        self.linear = linear
        """Whether cost should grow no faster than the quantity; that of width grows with its third power."""


AXES: Mapping[str, Axis] = {
    "tokens": Axis((2048, 4096, 8192, 16384), lambda _tokens: _BASE),
    "blocks": Axis((1, 2, 4, 8), lambda blocks: replace(_BASE, blocks=blocks)),
    "experts": Axis(
        (8, 16, 32, 64), lambda count: replace(_BASE, intermediate=128, blocks=1, experts=count)
    ),
    "width": Axis(
        (128, 256, 512, 1024),
        lambda width: replace(_BASE, hidden=width, intermediate=2 * width, blocks=1),
        linear=False,
    ),
}


def measure(repeats: int) -> pd.DataFrame:
    """A row per axis, value and stage: the least CPU seconds of `repeats`."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text = folder / "text.txt"
        text.write_text("the model reads a few plain words again and again . " * 4000, "utf-8")
        _stages(random_checkpoint(folder / "first", _BASE), _LENGTH, text, folder / "first-out")
        for axis, along in AXES.items():
            for value in along.values:
                model = random_checkpoint(folder / f"{axis}-{value}", along.design(value))
                tokens = value if axis == "tokens" else _LENGTH * _WINDOWS
                found = [
                    _stages(model, tokens, text, folder / f"{axis}-{value}-{repeat}")
                    for repeat in range(repeats)
                ]
                for stage in STAGES:
                    seconds = min(one[stage] for one in found)
                    rows.append({"axis": axis, "value": value, "stage": stage, "seconds": seconds})
                print(f"{axis} {value}: {rows[-len(STAGES) :]}", file=sys.stderr, flush=True)
    return pd.DataFrame(rows)


def _stages(model: Path, tokens: int, text: Path, out: Path) -> dict[str, float]:
    """CPU seconds of every stage on `tokens` tokens, in windows."""
    checkpoint = Checkpoint(model)
    out.mkdir()
    windows = tokens // _LENGTH
    drawn = torch.randint(1, 1000, (windows, _LENGTH), generator=torch.Generator().manual_seed(0))
    kept, rounded = Scheme.parse("bf16"), Scheme.parse("int4-g64")
    free = {spec.name for spec in checkpoint.specs if spec.role in ("router", "lm_head")}
    schemes = {s.name: kept if s.name in free else rounded for s in checkpoint.specs}
    plan = QuantPlan(tuple(checkpoint.specs), schemes)
    folders: list[Path] = []

    def quantize() -> None:
        folders.extend(
            quantize_blocks(
                checkpoint,
                plan,
                drawn,
                QuantizationConfig(),
                device=_CPU,
                batch_size=8,
                blocks=FreshBlocks(out),
            )
        )

    def export() -> None:
        (out / "checkpoint").mkdir()
        export_dense(checkpoint, folders, {}, out / "checkpoint")

    def evaluate() -> None:
        config = EvaluationConfig(
            dataset=str(text), tasks=(), limit=windows, sequence_length=_LENGTH
        )
        evaluate_checkpoint(checkpoint, out / "checkpoint", config, device=_CPU, batch_size=8)

    work = {
        "alpha": lambda: alpha_table(checkpoint, AlphaConfig(), 1),
        "quantize": quantize,
        "export": export,
        "evaluate": evaluate,
    }
    taken = {}
    for stage, call in work.items():
        began = time.process_time()
        call()
        taken[stage] = time.process_time() - began
    return taken


def slopes(table: pd.DataFrame) -> pd.DataFrame:
    """A row per axis and stage: the exponent over all values and between the last two, and whether that is too much.

    What does not depend on the quantity, such as opening files, flattens the former; the latter tells what comes.
    """
    rows = []
    for (axis, stage), part in table.groupby(["axis", "stage"], sort=False):
        x, y = np.log(part["value"].to_numpy(float)), np.log(part["seconds"].to_numpy(float))
        fitted, last = float(np.polyfit(x, y, 1)[0]), float((y[-1] - y[-2]) / (x[-1] - x[-2]))
        rows.append(
            {
                "axis": axis,
                "stage": stage,
                "slope": fitted,
                "last_slope": last,
                "faster": AXES[str(axis)].linear and max(fitted, last) > _FAST,
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    print(json.dumps(measure(repeats=int(sys.argv[1])).to_dict("records")))
