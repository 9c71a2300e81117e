"""A checkpoint of 13.8 GB quantized inside a few gigabytes of memory, killed on the way and resumed, seen from outside.

    python -m benchmarks.large                                     # OLMoE-1B-7B's shapes, all 16 blocks, 4 GB
    python -m benchmarks.large --blocks 2                          # two blocks of the true shapes
    python -m benchmarks.large --every 4                           # a fourth of the blocks, the others stay bf16
    python -m benchmarks.large --shape tiny --limit 2GB            # a rehearsal

Random weights in shards, and a tokenizer of bytes. `alphaquant quantize` runs with execution.memory_limit on calibration
windows and gets SIGKILL once so many of its blocks are there; the same command again goes on behind them and
packs the checkpoint. Then every tensor of one block is read back and held against the quantized block, and the whole is loaded as
a transformers model, which is held against the same block. Memory is that of the process and its children, ten times a second: with pages of mapped files, as a limit of the system would count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from alphaquant.algorithms.quantized_block import load_block
from alphaquant.config.section import bytes_of
from alphaquant.models.packed import PackedCheckpoint
from alphaquant.work import bytes_in
from benchmarks.export_shapes import SHAPES, blocks_of, looked_at, random_checkpoint
from benchmarks.orchestration import describe
from tests.tiny import byte_tokenizer

_RESULT = Path("benchmarks/results/large.md")
_LOAD = """
import json, sys
import torch
from pathlib import Path
import alphaquant
from alphaquant.algorithms.quantized_block import load_block
from alphaquant.models.experts import unfuse
model = alphaquant.load(sys.argv[1], device="cpu")
loaded = sum(parameter.numel() for parameter in model.parameters())
with torch.no_grad():
    finite = bool(model(torch.arange(64)[None]).logits.isfinite().all())
    unfuse(model, share=True)
    same = 0
    for name, weight in load_block(Path(sys.argv[2])).items():
        if not torch.equal(model.get_submodule(name).weight, weight.dequantize().to(model.dtype)):
            sys.exit(f"{name} of the loaded model is not what was quantized")
        same += 1
print(json.dumps({"parameters": loaded, "linears": same, "finite": finite}))
"""


class Watched(NamedTuple):
    """What a command took."""

    seconds: float
    own: int
    """Bytes that its process had in memory at most."""
    together: int
    """The same with its children."""
    answer: dict[str, Any] | None
    """The JSON object that it printed; None when it was killed."""


def main() -> None:
    """Command line."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="alphaquant-large-") as name:
        folder = Path(name)
        source = random_checkpoint(folder / "model", options.shape, options.blocks)
        byte_tokenizer().save_pretrained(source)
        written = bytes_in(source)
        print(f"{written / 1e9:.1f} GB written to {source}", flush=True)
        rows = list(measure(source, folder, options))
        packed = bytes_in(folder / "packed")
    every = f", one in {options.every} quantized" if options.every > 1 else ""
    head = (
        f"{options.shape}, {blocks_of(options)} blocks of random weights{every}, {written / 1e9:.1f} GB of bf16 to "
        f"{packed / 1e9:.1f} GB of int4-g128 by {options.method} with {options.samples} windows of "
        f"{options.length} tokens{''.join(f', {pair}' for pair in options.set)}, under execution.memory_limit={options.limit}. {describe()}"
    )
    table = [
        "| step | seconds | memory, GB | with children, GB | |",
        "|---|---:|---:|---:|---|",
        *rows,
    ]
    text = "\n".join([head, "", *table]) + "\n"
    print(text)
    if options.out:
        options.out.write_text(f"# A model larger than the memory\n\n{text}", encoding="utf-8")


def measure(source: Path, folder: Path, options: argparse.Namespace) -> Iterator[str]:
    """Rows of the table: killed, resumed, read back. Raises SystemExit where something is not as it must be."""
    store, packed = folder / "store", folder / "packed"
    total = options.blocks or SHAPES[options.shape][1]["num_hidden_layers"]
    kept = [
        f"{{pattern: 'model.layers.{at}.*', skip: true}}"
        for at in range(total)
        if at % options.every
    ]
    settings = {
        "allocation.overrides": f"[{', '.join(kept)}]",
        "execution.memory_limit": options.limit,
        "export.format": "compressed-tensors",
        "calibration.samples": options.samples,
        "calibration.sequence_length": options.length,
        **dict(pair.split("=", 1) for pair in options.set),
    }
    command = [
        *("-m", "flows.cli", "quantize", "--src", str(source), "--dst", str(packed), "--json"),
        *("--method", options.method, "--store", str(store)),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
    ]
    there = store / "objects" / "quantize-block"
    kill_at = max(1, total // 2)

    def half_done() -> bool:
        return len(list(there.glob("*/*"))) >= kill_at if there.is_dir() else False

    first = watched(command, options.threads, kill_when=half_done)
    done = len(list(there.glob("*/*"))) if there.is_dir() else 0
    if first.answer is not None:
        raise SystemExit("the command ended before it could be killed; take more blocks")
    yield _row("quantize, until it got SIGKILL", first, f"{done} of {total} blocks done")
    second = watched(command, options.threads)
    assert second.answer is not None
    counts = second.answer["blocks"]
    if counts["cached"] < done:
        raise SystemExit(f"{done} blocks were done before the kill, {counts['cached']} were found")
    note = f"{counts['cached']} blocks found, {counts['ran']} computed"
    yield _row("the same command again, with export", second, note)
    for stage in second.answer["stages"]:
        if stage["state"] == "ran" and "memory" in stage:
            seconds, memory = stage["seconds"], stage["memory"] / 1e9
            yield f"| its stage {stage['name']}, as it counts itself | {seconds:.0f} | {memory:.2f} | | |"
    began = time.perf_counter()
    last = (total - 1) // options.every * options.every
    made = _block(store, second.answer, last)
    numbers = _check(packed, made)
    took = time.perf_counter() - began
    yield f"| read block {last} back | {took:.0f} | | | {numbers / 1e6:.0f} million weights as they were quantized |"
    loaded = watched(["-c", _LOAD, str(packed), str(made)], options.threads)
    if loaded.answer is None or not loaded.answer["finite"]:
        raise SystemExit("the loaded model's logits are not finite")
    note = f"{loaded.answer['parameters'] / 1e9:.2f} billion parameters, {loaded.answer['linears']} linears as quantized"
    yield _row("load as a transformers model, with a forward pass", loaded, note)
    most, limit = max(first.own, second.own), bytes_of(options.limit)
    verdict = "kept" if most <= limit else "NOT kept"
    yield f"| limit of {limit / 1e9:.2f} GB | | {most / 1e9:.2f} | | {verdict} |"


def watched(
    arguments: list[str], threads: int, kill_when: Callable[[], bool] = lambda: False
) -> Watched:
    """Run Python with `arguments` and look at it as it runs; it is killed as soon as `kill_when` says so."""
    own = together = 0

    def look(pid: int) -> None:
        nonlocal own, together
        process = psutil.Process(pid)
        mine, all_ = _resident(process)
        own, together = max(own, mine), max(together, all_)
        if kill_when():
            _kill(process)

    seconds, answer = looked_at(arguments, threads, look)
    return Watched(seconds, own, together, answer)


def _resident(process: psutil.Process) -> tuple[int, int]:
    """Bytes in memory of a process, and with its children."""
    try:
        own = process.memory_info().rss
    except psutil.Error:
        return 0, 0
    together = own
    for child in process.children(recursive=True):
        try:
            together += child.memory_info().rss
        except psutil.Error:
            continue
    return own, together


def _kill(process: psutil.Process) -> None:
    """The process at once, as a machine that goes down would; then what it left behind."""
    children = process.children(recursive=True)
    process.kill()
    for child in children:
        child.kill()


def _block(store: Path, answer: dict[str, Any], block: int) -> Path:
    """The artifact of a quantized block."""
    made = next(Path(s["artifact"]) for s in answer["stages"] if s["name"] == "quantize")
    refs = json.loads((made / "refs.json").read_text(encoding="utf-8"))
    return next(store.glob(f"objects/*/*/{refs[f'block-{block:04d}']['digest']}"))


def _check(packed: Path, folder: Path) -> int:
    """Hold a block of the packed checkpoint against its artifact; returns how many weights are the same."""
    checkpoint, count = PackedCheckpoint(packed), 0
    for name, weight in load_block(folder).items():
        expected = weight.dequantize().to(torch.bfloat16)
        if not torch.equal(checkpoint.weight(name), expected):
            raise SystemExit(f"{name} of the packed checkpoint is not what was quantized")
        count += expected.numel()
    return count


def _row(step: str, found: Watched, note: str) -> str:
    own, together = found.own / 1e9, found.together / 1e9
    return f"| {step} | {found.seconds:.0f} | {own:.2f} | {together:.2f} | {note} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="olmoe-1b-7b")
    add("--blocks", type=int, metavar="N", help="so many blocks instead of all; at least 2")
    add("--every", type=int, default=1, metavar="N", help="quantize every Nth block only")
    add("--limit", default="4GB", help="memory (4GB)")
    add("--method", default="gptq")
    add("--samples", type=int, default=16, help="calibration windows (16)")
    add("--length", type=int, default=512, help="tokens of a window (512)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="further settings")
    add("--threads", type=int, default=2)
    add("--scratch", type=Path, metavar="DIR", help="where models are put for a while")
    add("--out", type=Path, metavar="FILE.md", default=_RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
