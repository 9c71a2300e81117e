"""Run AlphaQuant's own command line in this process, and tell what it took once everything is imported.

    python with_alphaquant.py REPORT.json quantize --src DIR ...

Unlike the rivals' figure, its CPU seconds include resolving the model, the store and the export.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

# what the stages import when they run: rivals are timed without their imports too
import alphaquant.algorithms.quantize_model
import alphaquant.evaluation.evaluate
import alphaquant.export.dense
import alphaquant.text.windows  # noqa: F401
from flows.cli import main

if __name__ == "__main__":
    from transformers import AutoTokenizer, PreTrainedModel  # noqa: F401  (behind alphaquant, which sets up torch)

    began = time.process_time()
    code = main(sys.argv[2:])
    report = {"cpu_seconds": time.process_time() - began}
    Path(sys.argv[1]).write_text(json.dumps(report), encoding="utf-8")
    sys.exit(code)
