"""What every driver is told and what it leaves behind; imports nothing but torch and safetensors.

A driver runs with a rival's own Python, as `python drivers/with_RIVAL.py JOB.json`, and must not need AlphaQuant.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, REPORT, SAVED = "weights.safetensors", "report.json", "saved"


@dataclass
class Job:
    """One checkpoint to quantize with one rival, one format and one setting."""

    model: str
    """Folder of the original."""
    tokens_file: str
    bits: int
    group: int
    """Weights per scale."""
    kind: str
    """int (symmetric) or mxfp4."""
    settings: dict[str, Any]
    """The rival's own options; empty for its defaults."""
    out: str
    device: str = "cpu"
    """Where the rival computes: cpu or cuda."""
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> torch.Tensor:
        """Calibration windows, int64 [samples, length]."""
        return load_file(self.tokens_file)["tokens"]

    @property
    def saved(self) -> Path:
        """Folder for the checkpoint as the rival writes it."""
        return Path(self.out) / SAVED

    @contextmanager
    def timed(self, what: str = "seconds") -> Iterator[None]:
        """Note the wall and CPU seconds of the quantization itself: no imports, no loading, no saving."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.report[what] = time.perf_counter() - wall
        self.report[f"cpu_{what}"] = time.process_time() - cpu
        if self.device != "cpu":
            self.report["device_peak_bytes"] = torch.cuda.max_memory_allocated()

    def finish(self, weights: Mapping[str, torch.Tensor], *packages: str) -> None:
        """Keep the dequantized weights (by tensor name on disk) and the packages' versions."""
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        save_file(kept, str(Path(self.out) / WEIGHTS))
        self.report["versions"] = {
            name: version(name) for name in (*packages, "transformers", "torch")
        }
        (Path(self.out) / REPORT).write_text(json.dumps(self.report, indent=1), encoding="utf-8")


def read_job() -> Job:
    """The job that the command line names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
