"""Let GPTQModel load checkpoints on a CPU, and compare the values it decodes with those of dense checkpoints.

Run with the environment's Python: `python with_gptqmodel.py PACKED=DENSE...`; one JSON line per checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with fewer cores it asks for more than it has
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from gptqmodel import BACKEND, GPTQModel
from safetensors.torch import load_file


@torch.no_grad()
def compare(packed: str, dense: str) -> dict[str, Any]:
    """How many linears were decoded, and the largest difference from the dense checkpoint's."""
    model = GPTQModel.load(packed, backend=BACKEND.TORCH, dtype=torch.bfloat16, device="cpu").model
    wanted = {
        _plain(name): tensor
        for file in Path(dense).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    largest, count = 0.0, 0
    for name, module in model.named_modules():
        if hasattr(module, "dequantize_weight"):
            found = module.dequantize_weight().T.float()
            difference = (found - wanted[_plain(f"{name}.weight")].float()).abs().max()
            largest, count = max(largest, float(difference)), count + 1
    return {"linears": count, "largest": largest}


def _plain(name: str) -> str:
    """Mixtral's experts under one spelling."""
    pairs = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    return ".".join(pairs.get(part, part) for part in name.split("."))


if __name__ == "__main__":
    for pair in sys.argv[1:]:
        one, other = pair.split("=")
        try:
            answer: dict[str, Any] = {"loads": True} | compare(one, other)
        except Exception as error:  # noqa: BLE001  whatever it says is the answer
            said = " ".join(f"{type(error).__name__}: {error}".split())
            answer = {"loads": False, "said": said[-400:]}
        print("\n" + json.dumps({"folder": one} | answer), flush=True)
