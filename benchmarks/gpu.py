"""Everything about a GPU in one call: quantizing at real models' shapes, step by step, against what the device can do.

    python -m benchmarks.gpu --out gpu.json                          # needs torch, transformers and a GPU; no Prefect
    python -m benchmarks.gpu --shapes llama-3-8b --blocks 4
    python -m benchmarks.gpu --shapes tiny --device cpu --samples 4 --length 64 --out tiny.json    # a rehearsal

Weights and tokens are random: errors mean nothing. Of a model `--blocks` blocks are quantized, or every one
where it is among the `--whole`. Floors are those of
`alphaquant.floor` at the rates measured here. What was measured is written after every row, as JSON and as the page
and picture of `benchmarks.gpu_page` beside it, since time on a GPU may end at any moment.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from alphaquant.algorithms.alpha import alpha_table
from alphaquant.config import AlphaConfig
from alphaquant.demo import demo_model_path
from alphaquant.evaluation.generated import with_written
from alphaquant.evaluation.room import Room
from alphaquant.formats.kernels import fused
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import available_cores
from alphaquant.models.rates import measured_rates
from alphaquant.progress import reporting_to
from benchmarks.gpu_page import page, publish
from benchmarks.kernels import FORMATS, compare_kernel, tile_seconds
from benchmarks.rivals.provenance import commit
from benchmarks.steps import SETTINGS, SHAPES, measure, random_checkpoint

_SETTINGS = ("int4", "int4 corrected", "int4 tuned")


def main() -> None:
    """Command line."""
    options = _options()
    device = torch.device(options.device)
    report: dict[str, Any] = {
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "cores": available_cores(),
        "windows": options.samples,
        "length": options.length,
        "rates": dataclasses.asdict(measured_rates(device)),
        "kernels": [],
        "tiles": [],
        "models": [],
    }

    def keep() -> None:
        if options.out:
            options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
            publish(options.out.with_suffix(".md"), [report])

    with reporting_to(_Terminal()):
        if options.kernels and fused(torch.empty(0, device=device)):
            for text in FORMATS:
                report["kernels"].append(compare_kernel(text, device))
                keep()
            report["tiles"] = tile_seconds(device)
        for shape in options.shapes:
            for row in measure_model(shape, device, options):
                report["models"].append(row)
                print(f"{shape}, {row['setting']}: {row['blocks']} s by block", flush=True)
                keep()
    keep()
    print(page([report]))


class _Terminal:
    """Shows notes: that kernels do not run, for one."""

    def update(self, what: str, done: int, total: int) -> None:
        """Ignored."""

    def note(self, message: str) -> None:
        """Show the line."""
        print(message, flush=True)


def measure_model(
    shape: str, device: torch.device, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row per setting."""
    memory = Path("/dev/shm")  # a file system in memory: the device is what is measured
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        whole = SHAPES[shape][2]
        blocks = whole if shape in options.whole else options.blocks
        source = random_checkpoint(folder / "model", shape, device, blocks)
        checkpoint = Checkpoint(source)
        tokens = torch.randint(
            checkpoint.config.vocab_size, (options.samples, options.length), dtype=torch.int64
        )
        alpha = alpha_seconds(checkpoint, device) * whole / blocks
        writing = writing_seconds(checkpoint, tokens, device, options.batch) * whole / blocks
        for setting in options.settings:
            row = measure(checkpoint, tokens, setting, device, options.batch, folder)
            first, *rest = row["blocks"]
            yield row | {
                "shape": shape,
                "model_blocks": whole,
                "measured_blocks": blocks,
                "model": first + sum(rest) / len(rest) * (whole - 1),
                "alpha": alpha,
                "writing": writing,
            }


def alpha_seconds(checkpoint: Checkpoint, device: torch.device) -> float:
    """Seconds that alpha takes for the blocks there are; what is found once for every shape is known before."""
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        alpha_table(checkpoint, AlphaConfig(), device=device)
        seconds = time.perf_counter() - began
    return seconds


def writing_seconds(
    checkpoint: Checkpoint,
    tokens: torch.Tensor,  # [windows, length]
    device: torch.device,
    batch: int,
) -> float:
    """Seconds in which a model of the blocks there are writes half of the windows, loading it included."""
    for name in ("tokenizer.json", "tokenizer_config.json"):  # what it may begin with
        shutil.copy(demo_model_path() / name, checkpoint.path / name)
    room, began = Room(device, batch), time.perf_counter()
    with_written(checkpoint, tokens, 0.5, 0, room)
    return time.perf_counter() - began


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    real = [shape for shape in SHAPES if shape != "tiny"]
    add("--shapes", nargs="+", choices=tuple(SHAPES), default=real, metavar="SHAPE")
    add("--settings", nargs="+", choices=tuple(SETTINGS), default=list(_SETTINGS), metavar="NAME")
    add(
        "--blocks",
        type=_two_or_more,
        default=3,
        help="blocks that are quantized (3); the rest is extrapolated",
    )
    add(
        "--whole",
        nargs="*",
        choices=tuple(SHAPES),
        default=[],
        metavar="SHAPE",
        help="of which every block is quantized",
    )
    add("--samples", type=int, default=128, help="calibration windows (128)")
    add("--length", type=int, default=2048, help="tokens per window (2048)")
    add("--batch", type=int, default=8, help="windows per forward pass (8)")
    add(
        "--kernels",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="tables of our kernels alone, before all else",
    )
    add("--device", default="cuda")
    add("--out", type=Path, metavar="FILE.json")
    return parser.parse_args()


def _two_or_more(text: str) -> int:
    if (blocks := int(text)) < 2:
        raise argparse.ArgumentTypeError(
            f"{blocks} is too few: the first block warms up, so 2 or more"
        )
    return blocks


if __name__ == "__main__":
    main()
