"""Make `alpha.parquet` of a checkpoint, as stage alpha does: `python with_alpha.py MODEL OUT`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pandas as pd  # noqa: F401 - alpha_table imports it when it is called, and imports are not what is measured

from alphaquant.algorithms.alpha import alpha_table
from alphaquant.config import AlphaConfig
from alphaquant.models.checkpoint import Checkpoint


def main(model: Path, out: Path) -> None:
    """Take the alpha of every linear, and say what that took without imports."""
    wall, cpu = time.perf_counter(), time.process_time()
    table = alpha_table(Checkpoint(model), AlphaConfig())
    report = {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }
    table.to_parquet(out / "alpha.parquet", index=False)
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
