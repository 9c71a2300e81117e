"""Where, when and from what the figures of a page come."""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
from collections.abc import Sequence

from benchmarks.rivals.own import ROOT
from benchmarks.rivals.standing import standing_words
from benchmarks.rivals.table import Result


def preface(options: argparse.Namespace, results: Sequence[Result]) -> str:
    """Markdown: day, commit, machine, versions, tokens, and how to read the tables."""
    parts = [
        made(options, results),
        f"Everybody quantized the same bf16 checkpoints with the same {options.samples} windows, symmetric, weights only, every linear of the decoder but routers. One "
        f"scorer put everybody's dequantized values into the original and compared in fp32 on the first "
        f"{options.windows} windows of each text. KL is that of next-token distributions, in nats per token, with its "
        f"95 % interval over windows, as has its ratio to AutoRound's, in pairs; the lowest comes first.",
        "Seconds and CPU seconds are those of the quantization alone, without imports, loading and saving (for "
        "AlphaQuant, CPU seconds include both latter); `CPU s of all` and peak memory are those of the whole command. "
        "Other programs shared the cores, so that ratios are those of CPU seconds. AlphaQuant's checkpoints are "
        "plain bf16: their bytes on disk are not those of their bits.",
        standing_words(),
        "In the figure, the shaded corner is the aim: at most 0.8 of AutoRound's divergence in at most half of "
        "its time.",
    ]
    return "\n\n".join(parts)


def made(options: argparse.Namespace, results: Sequence[Result]) -> str:
    """Markdown: day, commit, machine and versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{datetime.date.today()}, commit {commit()}; {os.cpu_count()} cores, {memory:.0f} GiB of memory, "
        f"{options.threads} thread per program, load {os.getloadavg()[0]:.1f} at the end. Versions: "
        f"{_versions(results)}."
    )


def commit() -> str:
    """The checked-out commit, and whether files differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")


def _versions(results: Sequence[Result]) -> str:
    found: dict[str, set[str]] = {}
    for result in results:
        for name, version in result.outcome.get("versions", {}).items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(found.items()))


def _git(*arguments: str) -> str:
    try:
        ended = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here: nobody knows
        return ""
    return ended.stdout.strip()
