"""Let plain transformers load packed checkpoints, and compare their logits with what they should be.

Run with the environment's Python: `python with_transformers.py PACKED=REFERENCE... [--patched PACKED=REFERENCE...]`; one
JSON line per checkpoint. A reference is the dense checkpoint of the same values, or a safetensors file of `logits` for the
tokens here. The pairs behind `--patched` are loaded after `import alphaquant.hf`; without it nothing of ours is imported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

_TOKENS = torch.arange(48)[None] * 5 % 250
_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


@torch.no_grad()
def loaded(folder: str) -> tuple[torch.Tensor, list[str]]:
    """Logits of a model as it is loaded unasked, and the tensors that did not go where they belong."""
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True
    )
    found: torch.Tensor = model(_TOKENS).logits.float()
    return found, [str(name) for kind in _KEYS for name in sorted(told[kind], key=str)]


def wanted(reference: str) -> torch.Tensor:
    """The logits of a reference."""
    if Path(reference).is_file():
        return load_file(reference)["logits"].float()
    return loaded(reference)[0]


def answer(packed: str, reference: str) -> dict[str, Any]:
    """Whether a checkpoint loads, and how far its logits are from the reference's at most."""
    expected = wanted(reference)
    try:
        found, lost = loaded(packed)
        difference = float((found - expected).abs().max())
        return {"loads": True, "largest": difference, "missing": lost}
    except Exception as error:  # noqa: BLE001  whatever it says is the answer
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return {"loads": False, "said": said[-400:]}


def main() -> None:
    """Answer for every pair of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plain", nargs="*", metavar="PACKED=REFERENCE")
    parser.add_argument("--patched", nargs="+", default=[], metavar="PACKED=REFERENCE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for pairs, patch in ((options.plain, None), (options.patched, "alphaquant.hf")):
        if pairs and patch:
            importlib.import_module(patch)
        for pair in pairs:
            packed, _, reference = pair.partition("=")
            print("\n" + json.dumps({"folder": packed} | answer(packed, reference)), flush=True)


if __name__ == "__main__":
    main()
