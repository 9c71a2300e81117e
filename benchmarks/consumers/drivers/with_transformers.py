"""Let plain transformers load packed checkpoints, and compare their logits with those of dense checkpoints.

Run with the environment's Python: `python with_transformers.py PACKED=DENSE...`; one JSON line per checkpoint.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM

_TOKENS = torch.arange(48)[None] * 5 % 250


@torch.no_grad()
def logits(folder: str) -> torch.Tensor:
    """Of a model as it is loaded unasked."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    found: torch.Tensor = model(_TOKENS).logits.float()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for pair in sys.argv[1:]:
        one, other = pair.split("=")
        try:
            largest = (logits(one) - logits(other)).abs().max()
            answer: dict[str, Any] = {"loads": True, "largest": float(largest)}
        except Exception as error:  # noqa: BLE001  whatever it says is the answer
            said = " ".join(f"{type(error).__name__}: {error}".split())
            answer = {"loads": False, "said": said[-400:]}
        print("\n" + json.dumps({"folder": one} | answer), flush=True)
