"""The verbs of the command line: one module each, imported when the verb is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "run": "Compress a model, score it and write a report.",
        "sweep": (
            "Run every combination of some config values and compare the results, or "
            "ask by experiment what alpha is worth on a model."
        ),
        "compare": (
            "Quantize a model with several methods at the same formats, and set what "
            "each costs side by side: bits, KL, perplexity, agreement, seconds."
        ),
        "plan": "Tell what a run would do, and why.",
        "why": "Explain why a stage ran, or what a run did.",
        "accept": "Keep the results of older code after an edit that changes none of them.",
        "diff": "Compare two runs.",
        "evaluate": "Score checkpoints against their original.",
        "benchmark": (
            "Measure bytes, memory and speed of a checkpoint in each consumer, beside its original."
        ),
        "quantize": (
            "Quantize every linear of one or several models to one format (routers "
            "stay bf16, and lm_head, unless allocation.lm_head names one)."
        ),
        "fsck": (
            "Check every file of the store, and put what is damaged aside so that it is made again."
        ),
        "gc": "Remove artifacts that no kept run needs; without --delete, tell what would go.",
        "server": "Start a Prefect server with pools, deployments and workers, until Ctrl-C.",
    }
)
"""What each does, in the order in which `--help` lists them."""
