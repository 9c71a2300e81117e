"""Let WeightWatcher analyze every linear of a checkpoint's blocks: `python with_weightwatcher.py MODEL OUT`.

Runs with WeightWatcher's own Python and imports nothing of AlphaQuant. It gets a module per matrix as it lies on
disk, because it does not see the experts that transformers fuses. Leaves `table.json` and `report.json` in OUT.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from weightwatcher import WeightWatcher

_KEPT = ["name", "spectral_norm", "norm", "stable_rank", "alpha", "xmin", "num_pl_spikes", "D"]


def main(model: Path, out: Path) -> None:
    """Analyze with its defaults, and say what that took without imports and reading."""
    logging.disable(logging.WARNING)
    modules = torch.nn.ModuleDict()
    for name, weight in load_file(model / "model.safetensors").items():
        if ".layers." in name and weight.ndim == 2:
            linear = torch.nn.Linear(*weight.T.shape, bias=False)
            linear.weight.data = weight.float()
            modules[name.removesuffix(".weight").replace(".", "/")] = linear
    wall, cpu = time.perf_counter(), time.process_time()
    table = WeightWatcher(model=modules).analyze()
    report = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "versions": {name: version(name) for name in ("weightwatcher", "torch")},
    }
    table = table[_KEPT].assign(name=table["name"].str.replace("/", "."))
    table.to_json(out / "table.json", orient="records", double_precision=15)
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
