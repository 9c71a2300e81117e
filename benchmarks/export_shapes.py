"""What quantize, export and load take at a real model's shapes, on random weights, one block in memory.

    python -m benchmarks.export_shapes --shape qwen2-0.5b                # whole
    python -m benchmarks.export_shapes --shape olmoe-1b-7b --blocks 2    # two blocks of the true shapes

A sharded checkpoint is written tensor by tensor, then `alphaquant quantize --method rtn` rounds and packs it in a
process of its own, then other processes decode every tensor of the result, and build the transformers model. Memory
is read from outside, ten times a second: what the process has taken, and with pages of mapped files, which the
system may drop. Weights are random, so errors mean nothing; times and bytes do. A line per step goes to the terminal, and
`--out` gets the table.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alphaquant.export.folder import INDEX, write_json
from alphaquant.export.safetensors_writer import write_safetensors
from alphaquant.models.experts import unfuse
from alphaquant.models.rows import architecture_of
from alphaquant.models.tensors import TensorEntry
from alphaquant.work import bytes_in
from benchmarks.orchestration import describe

_OLMOE = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
_QWEN2 = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
}
_TINY = {
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
_SMALL = _OLMOE | {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_experts": 32,
    "vocab_size": 4096,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmoe-1b-7b": ("olmoe", _OLMOE),
    "qwen2-0.5b": ("qwen2", _QWEN2),
    "small": ("olmoe", _SMALL),
    "tiny": ("olmoe", _TINY),
}
"""Model type and config of real models; small and tiny are for rehearsals."""

_SHARD_BYTES = 2 << 30
_EVERY = 0.1  # seconds between looks at a process
_DECODE = """
import json, sys, time
import torch
from alphaquant.models.packed import PackedCheckpoint
torch.set_num_threads(1)
began = time.perf_counter()
checkpoint = PackedCheckpoint(sys.argv[1])
opened = time.perf_counter() - began
numbers = sum(checkpoint.tensor(name).numel() for name in checkpoint.entries)
print(json.dumps({"open": opened, "tensors": len(checkpoint.entries), "numbers": numbers}))
"""
_LOAD = """
import json, sys, time
from pathlib import Path
import torch
from alphaquant.models.loading import load_model
model = load_model(Path(sys.argv[1]), torch.device("cpu"), dtype=torch.bfloat16)
print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}))
"""


class Look(NamedTuple):
    """A process at one moment."""

    when: float
    taken: int
    """Bytes that it holds for itself."""
    resident: int
    """The same with mapped files."""


class Step(NamedTuple):
    """What one step took."""

    name: str
    seconds: float
    taken: int
    resident: int
    note: str = ""

    def row(self) -> str:
        """A line of the table."""
        sizes = " | ".join(f"{size / 2**30:.2f}" for size in (self.taken, self.resident))
        return f"| {self.name} | {self.seconds:.1f} | {sizes} | {self.note} |"


def main() -> None:
    """Command line."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="alphaquant-shapes-") as name:
        folder = Path(name)
        began = time.perf_counter()
        source = random_checkpoint(folder / "model", options.shape, options.blocks)
        written = bytes_in(source)
        print(
            f"{written / 2**30:.2f} GiB written in {time.perf_counter() - began:.0f} s", flush=True
        )
        steps = list(measure(source, folder, options))
        packed = bytes_in(folder / "packed")
    head = (
        f"{options.shape}, {blocks_of(options)} blocks, {options.bits} bits in groups of {options.group}: "
        f"{written / 2**30:.2f} GiB of bf16 to {packed / 2**30:.2f} GiB of {options.format}. {describe()} "
        f"{options.threads} threads."
    )
    table = "\n".join(
        (
            "| step | seconds | memory, GiB | with mapped files, GiB | |",
            "|---|---:|---:|---:|---|",
            *(step.row() for step in steps),
        )
    )
    text = f"{head}\n\n{table}\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def random_checkpoint(folder: Path, shape: str, blocks: int | None = None) -> Path:
    """A bf16 checkpoint of random weights in shards, one tensor in memory; no tokenizer. Returns the folder."""
    model_type, settings = SHAPES[shape]
    if blocks is not None:
        settings = settings | {"num_hidden_layers": blocks}
    config = AutoConfig.for_model(model_type, **settings, dtype="bfloat16")
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    unfuse(skeleton, share=False)
    architecture = architecture_of(config.to_dict())
    shapes = {
        architecture.disk_name(name): tuple(parameter.shape)
        for name, parameter in skeleton.named_parameters()
    }
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def value(name: str) -> torch.Tensor:
        size = shapes[name]
        if len(size) == 1:
            return torch.ones(size)
        return torch.randn(size, generator=generator) * size[-1] ** -0.5

    files = _shards(folder, shapes)
    for file, names in files.items():
        entries = {name: TensorEntry(file, "BF16", shapes[name]) for name in names}
        write_safetensors(file, entries, value)
    places = {name: file.name for file, names in files.items() for name in names}
    write_json(folder / INDEX, {"metadata": {}, "weight_map": places})
    return folder


def _shards(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[Path, list[str]]:
    """Names by file, in the model's order, as many as fit."""
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if held + size > _SHARD_BYTES and shards[-1]:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    count = len(shards)
    return {
        folder / f"model-{at + 1:05}-of-{count:05}.safetensors": names
        for at, names in enumerate(shards)
    }


def measure(source: Path, folder: Path, options: argparse.Namespace) -> list[Step]:
    """Quantize and pack, decode, load; one process each."""
    packed = folder / "packed"
    quantize = [
        *("quantize", "--src", str(source), "--dst", str(packed), "--method", "rtn"),
        *("--bits", str(options.bits), "--group-size", str(options.group)),
        *("--store", str(folder / "store"), "--json"),
        *("--set", f"export.format={options.format}"),
        *("--set", f"quantization.scale_search={options.scale_search}"),
    ]
    command, answer, looks = watched(["-m", "flows.cli", *quantize], options.threads)
    steps = [
        Step(f"stage {stage['name']}", stage["seconds"], *_peak(looks, stage))
        for stage in answer["stages"]
        if stage["state"] == "ran"
    ]
    steps.append(command._replace(name="the whole command"))
    decode, found, _ = watched(["-c", _DECODE, str(packed)], options.threads)
    note = f"{found['tensors']} tensors, {found['numbers'] / 1e9:.2f} billion numbers; opened in {found['open']:.1f} s"
    steps.append(decode._replace(name="decode every tensor", note=note))
    if options.load:
        load, found, _ = watched(["-c", _LOAD, str(packed)], options.threads)
        note = f"{found['parameters'] / 1e9:.2f} billion parameters in bf16"
        steps.append(load._replace(name="load as a transformers model", note=note))
    return steps


def watched(arguments: Sequence[str], threads: int) -> tuple[Step, dict[str, Any], list[Look]]:
    """Run Python with `arguments`; what it took, the JSON object it printed, and looks at it as it ran."""
    looks: list[Look] = []

    def look(pid: int) -> None:
        if found := _look(pid):
            looks.append(found)

    seconds, answer = looked_at(arguments, threads, look)
    if answer is None:
        raise SystemExit(f"{' '.join(arguments[:3])} was killed")
    taken, resident = max(look.taken for look in looks), max(look.resident for look in looks)
    step = Step("", seconds, taken, resident)
    print(f"{seconds:.1f} s, {taken / 2**30:.2f} GiB: {' '.join(arguments[:3])[:60]!r}", flush=True)
    return step, answer, looks


def looked_at(
    arguments: Sequence[str], threads: int, look: Callable[[int], None]
) -> tuple[float, dict[str, Any] | None]:
    """Run Python with `arguments` and `look` at its process id again and again; its seconds, and the JSON object that it
    printed, None where it got SIGKILL. Raises SystemExit when it fails otherwise.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path.cwd()),
    }
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen([sys.executable, *arguments], stdout=output, env=environment)
        while child.poll() is None:
            look(child.pid)
            time.sleep(_EVERY)
        seconds = time.perf_counter() - began
        if child.returncode == -signal.SIGKILL:
            return seconds, None
        if child.returncode:
            raise SystemExit(f"{' '.join(arguments[:3])} ended with status {child.returncode}")
        output.seek(0)
        answer: dict[str, Any] = json.loads(output.read())
        return seconds, answer


def _look(pid: int) -> Look | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return None
    sizes = {
        key: 1024 * int(value.split()[0])
        for key, _, value in (line.partition(":") for line in text.splitlines())
        if key in ("VmRSS", "RssAnon")
    }
    return Look(time.time(), sizes["RssAnon"], sizes["VmRSS"]) if len(sizes) == 2 else None


def _peak(looks: Sequence[Look], stage: dict[str, Any]) -> tuple[int, int]:
    """The most that a stage had while it ran; 0 for one shorter than a look."""
    start, end = (datetime.fromisoformat(stage[key]).timestamp() for key in ("started", "ended"))
    during = [look for look in looks if start - _EVERY <= look.when <= end + _EVERY]
    return (
        max((look.taken for look in during), default=0),
        max((look.resident for look in during), default=0),
    )


def blocks_of(options: argparse.Namespace) -> str:
    """How many blocks are measured, and of how many."""
    all_ = SHAPES[options.shape][1]["num_hidden_layers"]
    return f"{options.blocks} of {all_}" if options.blocks not in (None, all_) else f"all {all_}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="qwen2-0.5b")
    add("--blocks", type=int, metavar="N", help="so many blocks instead of all")
    add("--bits", type=int, default=4)
    add("--group", type=int, default=128, help="weights per scale (128)")
    add("--format", default="compressed-tensors", help="of the export (compressed-tensors)")
    add("--scale-search", choices=("none", "mse"), default="mse")
    add("--threads", type=int, default=2)
    add("--no-load", dest="load", action="store_false", help="do not build the transformers model")
    add("--scratch", type=Path, metavar="DIR", help="where models are put for a while")
    add("--out", type=Path, metavar="FILE.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
