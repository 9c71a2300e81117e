"""Quantize with GPTQModel, reload what it saved, and let it dequantize its own weights."""

from __future__ import annotations

import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with fewer cores it asks for more than it has

import torch
from gptqmodel import BACKEND, GPTQModel, NormConfig, QuantizeConfig
from job import Job, read_job

_TUNED = ("input_layernorm", "post_attention_layernorm", "norm", "q_norm", "k_norm")


def quantize(job: Job) -> None:
    """Save the quantized checkpoint."""
    if job.kind != "int":
        raise SystemExit(f"GPTQModel has no {job.kind} that it can calibrate on a CPU")
    settings = {name: value for name, value in job.settings.items() if name != "tune_norms"}
    config = QuantizeConfig(bits=job.bits, group_size=job.group, device=job.device, **settings)
    model = GPTQModel.load(job.model, config)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in job.tokens.tolist()]
    with job.timed():
        model.quantize(rows, batch_size=1)
    model.save(str(job.saved))
    if job.settings.get("tune_norms"):
        loaded = GPTQModel.load(str(job.saved), backend=BACKEND.TORCH)
        with job.timed("norm_seconds"):
            loaded.requantize(calibration=rows, norm=NormConfig(teacher=job.model))
        loaded.save(str(job.saved))
        job.report["seconds"] += job.report["norm_seconds"]
        job.report["cpu_seconds"] += job.report["cpu_norm_seconds"]


@torch.no_grad()
def dequantized(job: Job) -> dict[str, torch.Tensor]:
    """Every quantized linear `[out, in]` and every norm, as GPTQModel reads its own checkpoint."""
    model = GPTQModel.load(str(job.saved), backend=BACKEND.TORCH).model
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "dequantize_weight"):
            found[f"{name}.weight"] = module.dequantize_weight().T
        elif name.rpartition(".")[2] in _TUNED:
            found[f"{name}.weight"] = module.weight
    return found


if __name__ == "__main__":
    told = read_job()
    quantize(told)
    told.finish(dequantized(told), "gptqmodel")
