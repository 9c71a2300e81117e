"""What each step of quantizing a block takes against its physical floor, on weights with a real model's shapes.

    python -m benchmarks.steps --device cuda                        # two blocks of OLMoE-1B-7B, random weights
    python -m benchmarks.steps --shape llama-3-8b --samples 16 --length 2048
    python -m benchmarks.steps --model DIR --device cpu --settings alpha sensitivity int4
    python -m benchmarks.steps --shape tiny --device cpu            # a rehearsal

Weights and tokens are random: the steps cost what they cost on trained ones, errors mean nothing. Times are wall
seconds of the last block, after one to warm up, or of a whole stage (alpha, sensitivity); the device is waited for at
both ends of every step. A step's seconds are its own, without the steps inside it; behind them stands how many times its
floor that is (see `alphaquant.floor`). The table goes to the terminal and to `--out`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from alphaquant import floor
from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.alpha import alpha_table
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.sensitivity import fisher_windows, sensitivity_table
from alphaquant.clock import Clock, Step, listening
from alphaquant.config import AllocationConfig, AlphaConfig, QuantizationConfig
from alphaquant.formats.scheme import Scheme
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import suit_threads
from alphaquant.models.rates import measured_rates
from alphaquant.work import Spent, since

_OLMOE = {
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
    "max_position_embeddings": 4096,
}
_LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
_QWEN = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
}
_TINY = {
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 512,
}
SHAPES: dict[str, tuple[str, dict[str, Any], int]] = {
    "olmoe-1b-7b": ("olmoe", _OLMOE, 16),
    "llama-3-8b": ("llama", _LLAMA, 32),
    "qwen3-30b-a3b": ("qwen3_moe", _QWEN, 48),
    "tiny": ("olmoe", _TINY, 4),
}
"""Model type, config and number of decoder blocks of real models."""


def main() -> None:
    """Command line."""
    options = _options()
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        place = options.model or random_checkpoint(Path(folder) / "model", options.shape, device)
        checkpoint = Checkpoint(place)
        suit_threads(checkpoint.parameters)  # as stages do
        tokens = torch.randint(
            checkpoint.config.vocab_size, (options.samples, options.length), dtype=torch.int64
        )
        report = {"shape": str(options.model or options.shape)}
        report |= {"windows": options.samples, "length": options.length}
        report["device"] = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        rows: list[dict[str, Any]] = []
        for name in options.settings:
            if name in STAGES:
                rows.append(measure_stage(checkpoint, tokens, name, device, options.batch))
            else:
                rows.append(measure(checkpoint, tokens, name, device, options.batch, Path(folder)))
            print(f"{name}: {rows[-1]['block']:.2f} s", flush=True)
            if options.out:  # after every setting: time on a GPU may end at any moment
                text = json.dumps(report | {"rows": rows}, indent=1)
                options.out.write_text(text, encoding="utf-8")
    print(table(rows))


SETTINGS: dict[str, dict[str, Any]] = {
    "rtn int4": {"format": "int4-g128", "method": "rtn"},
    "int4": {"format": "int4-g128"},
    "int4 absmax": {"format": "int4-g128", "scale_search": "none"},
    "int3": {"format": "int3-g128"},
    "mxfp4": {"format": "mxfp4"},
    "int4 corrected": {"format": "int4-g128", "correction": "stream"},
    "int4 tuned": {"format": "int4-g128", "tune": "block"},
}
"""A format and keys of the config section `quantization`."""
STAGES = ("alpha", "sensitivity")
"""Stages that are measured whole, every block of the model."""
_MENU = ("int3", "int4", "int8")


def measure(
    checkpoint: Checkpoint,
    tokens: torch.Tensor,  # [windows, length]
    name: str,
    device: torch.device,
    batch: int,
    folder: Path,
) -> dict[str, Any]:
    """Seconds and floors of the last block by step, seconds of all, and the peak of the device's memory in GiB."""
    settings = dict(SETTINGS[name])
    everywhere = {"policy": "manual", "default": {"wq": settings.pop("format")}}
    config = QuantizationConfig(**settings)
    plan = allocate(checkpoint.specs, AllocationConfig.model_validate(everywhere), config)
    clock = _exact(device)
    blocks = _Timed(Path(tempfile.mkdtemp(dir=folder)), clock)
    with listening(clock):
        quantize_blocks(
            checkpoint, plan, tokens, config, device=device, batch_size=batch, blocks=blocks
        )
    return _row(name, blocks.took[-1], blocks.spent, device) | {"blocks": blocks.took}


def measure_stage(
    checkpoint: Checkpoint, tokens: torch.Tensor, name: str, device: torch.device, batch: int
) -> dict[str, Any]:
    """The same of a whole stage, one of STAGES."""
    clock, began = _exact(device), time.perf_counter()
    with listening(clock):
        if name == "alpha":
            alpha_table(checkpoint, AlphaConfig())
            clock.add_work(floor.spectra(checkpoint, AlphaConfig()))
        else:
            menu = [Scheme.parse(format_name) for format_name in _MENU]
            sensitivity_table(checkpoint, tokens, menu, device=device, batch_size=batch)
            half = device.type == "cuda"
            seen, back = (
                floor.Tokens.of(checkpoint, part.numel(), half=half)
                for part in (tokens, tokens[: fisher_windows(tokens)])
            )
            clock.add_work(floor.sensitivity(checkpoint, seen, back, menu, "hessian"))
    return _row(name, time.perf_counter() - began, clock.spent(), device)


def _exact(device: torch.device) -> Clock:
    """A clock that waits for the device, whose peak of memory begins anew."""
    if device.type != "cuda":
        return Clock()
    torch.cuda.reset_peak_memory_stats()
    return Clock(partial(torch.cuda.synchronize, device))


def _row(
    name: str, took: float, spent: Mapping[Step, Spent], device: torch.device
) -> dict[str, Any]:
    rates = measured_rates(device)
    return {
        "setting": name,
        "block": took,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        "seconds": {step: s.seconds for step, s in spent.items()},
        "floor": {step: found for step, s in spent.items() if (found := rates.floor(s.work))},
        "rates": asdict(rates),
    }


class _Timed(FreshBlocks):
    """Tells the last block's seconds from those of the first, which loads kernels."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(root)
        self._clock, self._before = clock, clock.spent()
        self._began = time.perf_counter()
        self.took: list[float] = []
        self.spent: dict[Step, Spent] = {}

    def put(self, index: int, ingredients: Any, write: Callable[[Path], None]) -> Path:
        """Keep the block, and note what it took."""
        folder = super().put(index, ingredients, write)
        found = self._clock.spent()
        now = time.perf_counter()
        self.took.append(now - self._began)
        self._began = now
        self.spent, self._before = since(found, self._before), found
        return folder


def random_checkpoint(folder: Path, shape: str, device: torch.device, blocks: int = 2) -> Path:
    """Some blocks with a real model's shapes, bf16, one file; no tokenizer. Returns the folder."""
    model_type, settings, _ = SHAPES[shape]
    config = AutoConfig.for_model(
        model_type, **settings, num_hidden_layers=blocks, dtype="bfloat16"
    )
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, parameter in skeleton.named_parameters():
        if parameter.dim() == 1:
            tensors[name] = torch.ones(parameter.shape, dtype=torch.bfloat16)
            continue
        values = torch.randn(parameter.shape, generator=generator, device=device)
        tensors |= _on_disk(name, (values * parameter.shape[-1] ** -0.5).bfloat16().cpu())
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    return folder


def _on_disk(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Fused experts as one tensor per expert, as checkpoints store them."""
    prefix, _, last = name.rpartition(".experts.")
    if not prefix:
        return {name: values}
    parts = {"gate_up_proj": ("gate_proj", "up_proj")}.get(last, (last,))
    return {
        f"{prefix}.experts.{expert}.{part}.weight": piece.contiguous()
        for expert, value in enumerate(values)
        for part, piece in zip(parts, value.chunk(len(parts)), strict=True)
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a step, a column a setting."""
    names = [row["setting"] for row in rows]
    lines = [f"| seconds (times the floor) | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for step in get_args(Step):
        cells = [_cell(row["seconds"].get(step), row["floor"].get(step)) for row in rows]
        if any(cells):
            lines.append(f"| {step} | {' | '.join(cells)} |")
    blocks = [_cell(row["block"], sum(row["floor"].values())) for row in rows]
    lines.append(f"| **whole block or stage** | {' | '.join(blocks)} |")
    peaks = ["" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}" for row in rows]
    lines.append(f"| peak memory of the device, GiB | {' | '.join(peaks)} |")
    return "\n".join(lines)


def _cell(took: float | None, floor_seconds: float | None) -> str:
    if not took:
        return ""
    return f"{took:.2f}" + (f" ({took / floor_seconds:.1f}×)" if floor_seconds else "")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--shape", choices=tuple(SHAPES), default="olmoe-1b-7b")
    add(
        "--model",
        type=Path,
        metavar="DIR",
        help="a checkpoint with two blocks or more, in place of a shape",
    )
    known = (*STAGES, *SETTINGS)
    add("--settings", nargs="+", choices=known, default=list(SETTINGS), metavar="NAME")
    add("--samples", type=int, default=128, help="calibration windows (128)")
    add("--length", type=int, default=2048, help="tokens per window (2048)")
    add("--batch", type=int, default=8, help="windows per forward pass (8)")
    add("--device", default="cuda")
    add("--out", type=Path, metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
