"""Quantize with AutoRound, and take the values of its own simulated checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from auto_round import AutoRound
from job import Job, read_job
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

_BATCH = 8


def quantize(job: Job) -> dict[str, torch.Tensor]:
    """Quantize, save in its packed format and as plain values; the values of the decoder's tensors by name on disk."""
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")
    tokens = job.tokens
    scheme = {"scheme": "MXFP4", "act_bits": 16} if job.kind == "mxfp4" else _integer_scheme(job)
    tuner = AutoRound(
        model,
        AutoTokenizer.from_pretrained(job.model),
        **scheme,
        dataset=list(tokens.split(_BATCH)),
        nsamples=len(tokens),
        seqlen=tokens.shape[1],
        batch_size=_BATCH,
        device_map=job.device,
        **job.settings,
    )
    packed = "llm_compressor" if job.kind == "mxfp4" else "auto_round"
    with job.timed():
        _, folders = tuner.quantize_and_save(str(job.saved), format=f"{packed},fake")
    plain = Path(folders[-1])
    values = load_file(plain / "model.safetensors")
    shutil.rmtree(plain)  # its bytes are not those of the packed checkpoint
    return {name: value for name, value in values.items() if ".layers." in name}


def _integer_scheme(job: Job) -> dict[str, object]:
    return {"scheme": f"W{job.bits}A16", "group_size": job.group, "sym": True}


if __name__ == "__main__":
    told = read_job()
    told.finish(quantize(told), "auto-round")
