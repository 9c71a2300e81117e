"""Time and memory of AlphaQuant and of other programs on the same checkpoints, on the CPU, in one command.

    python -m benchmarks.speed                              # everything: an hour on two idle cores
    python -m benchmarks.speed --only alpha scaling         # parts of it; the page shows all that is kept
    python -m benchmarks.speed --only quantize --case moe --repeats 1

Models are made here, in seconds, and other programs get environments of their own, in minutes, once. Programs take
turns, so that a busy minute falls on everybody. Runs are added to `speed.parquet` as they end: the same command adds
repeats, `--fresh` begins anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from alphaquant.text.builtin import documents
from benchmarks.orchestration import describe
from benchmarks.rivals.catalogue import RIVALS, Contestant
from benchmarks.rivals.environments import python_of
from benchmarks.rivals.inputs import Model
from benchmarks.rivals.provenance import commit
from benchmarks.speed import alpha, figure, quantize, scaling
from benchmarks.speed.models import DESIGNS, random_checkpoint
from benchmarks.speed.page import page
from benchmarks.speed.runs import Run, bare_bytes, read, write

PARTS = ("alpha", "quantize", "memory", "tuned", "scaling")
CASES = {
    "alpha": ("llama", "moe"),
    "quantize": ("llama", "moe"),
    "memory": ("deep",),
    "tuned": ("small",),
}
_CONTESTANTS = {
    "quantize": quantize.PLAIN,
    "memory": quantize.PLAIN,
    "tuned": quantize.TUNED,
}
_FEW = 16
"""Calibration windows at most where memory is the question: their number says little of it, and much of the time."""
_TEXT = 1_000_000  # characters, for some 300,000 tokens
_LONG = 120.0
"""Seconds of a run beyond which three repeats have to do."""


class Bench:
    """What is measured, where it is kept, and what is known so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._cache: Path = options.cache / "speed"
        self._out: Path = options.out
        self._out.mkdir(parents=True, exist_ok=True)
        self._table = self._out / "speed.parquet"
        self.runs = [] if options.fresh else read(self._table)
        self._bare: dict[tuple[str, str], int] = {}
        self._commit = commit()

    def measure(self) -> None:
        """Run the parts that are asked for, and write what is known after every run."""
        for part in PARTS[:-1]:
            if part in self._options.only:
                for case in CASES[part]:
                    if self._options.case in (None, case):
                        self._repeat(part, case)
        if "scaling" in self._options.only:
            scaling.measure(min(3, self._options.repeats)).to_parquet(
                self._out / "speed-scaling.parquet", index=False
            )
        self._write()

    def _repeat(self, part: str, case: str) -> None:
        """Rounds of all programs; from the third on without those that take long."""
        slow: set[tuple[str, str, str, str]] = set()
        for repeat in range(self._options.repeats):
            for run in self._round(part, case, slow if repeat >= 3 else set()):
                said = run.failed or f"{run.seconds:.1f} s, {run.wall:.1f} s with start and end"
                print(f"{part}, {run.case}, {run.program}, {run.setting}: {said}", flush=True)
                if run.wall > _LONG:
                    slow.add(run.key)
                self.runs.append(run)
                write(self._table, self.runs)
        self._write()

    def _round(
        self, part: str, case: str, left_out: set[tuple[str, str, str, str]]
    ) -> Iterator[Run]:
        model = random_checkpoint(self._cache / "models" / case, DESIGNS[case]).resolve()
        if part == "alpha":
            python = str(python_of(alpha.WeightWatcher(), self._options.cache))
            yield from alpha.analyze(
                model,
                python,
                self._cache / "alpha" / case,
                self._options.threads,
                bare=self._bare_of(part, sys.executable, python),
                commit=self._commit,
            )
            return
        contestants: Sequence[Contestant] = _CONTESTANTS[part]
        samples = self._options.samples
        pythons = {
            rival: str(python_of(RIVALS[rival], self._options.cache))
            for rival in quantize.rivals_of(contestants)
        }
        slow = {(program.split()[0], setting) for _, _, program, setting in left_out}
        for contestant in contestants:
            if (contestant.title, contestant.setting) not in slow:
                yield quantize.quantize(
                    part,
                    Model(case, model, self._options.length, str(self._text())),
                    contestant,
                    min(samples, _FEW) if part == "memory" else samples,
                    self._cache,
                    pythons,
                    self._options.threads,
                    bare=self._bare_of(part, sys.executable, *pythons.values()),
                    commit=self._commit,
                )

    def _text(self) -> Path:
        """A calibration text, put together once: looking for builtin text is no part of quantizing."""
        path = self._cache / "calibration.txt"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            words = "\n".join(document.text for document in documents("calibration"))
            path.write_text(words[:_TEXT], encoding="utf-8")
        return path

    def _bare_of(self, part: str, *pythons: str) -> dict[str, int]:
        for python in pythons:
            if (part, python) not in self._bare:
                size = bare_bytes(python, part, self._cache, self._options.threads)
                self._bare[part, python] = size
        return {python: self._bare[part, python] for python in pythons}

    def _write(self) -> None:
        """The page and its figures, of everything that is kept."""
        agreed = [
            alpha.agreement(self._cache / "models" / case, folder)
            for case in CASES["alpha"]
            if (folder := self._cache / "alpha" / case).is_dir()
        ]
        grown = self._out / "speed-scaling.parquet"
        slopes = None
        if grown.is_file():
            table = pd.read_parquet(grown)
            slopes = scaling.slopes(table)
            picture = figure.draw_scaling(table, slopes)
            (self._out / "speed-scaling.png").write_bytes(picture)
        if any(not run.failed for run in self.runs):
            (self._out / "speed.png").write_bytes(figure.draw(self.runs))
        text = page(self.runs, self._preface(), pd.concat(agreed) if agreed else None, slopes)
        (self._out / "speed.md").write_text(text, encoding="utf-8")

    def _preface(self) -> str:
        loads = [run.load for run in self.runs]
        commits = ", ".join(dict.fromkeys(run.commit for run in self.runs))
        return (
            f"{describe()} {self._options.threads} threads per program; runs of commit {commits or 'none'}, which began at "
            f"loads of {min(loads, default=0):.1f} to {max(loads, default=0):.1f}. Medians; programs took turns. On a busy "
            "machine ratios of CPU seconds mean more than those of seconds. Memory is the most that was resident, seen "
            "from outside, less what the program's Python has with torch imported, and for all but alpha transformers."
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure (all)")
    add("--case", choices=tuple(DESIGNS), help="this model alone")
    add("--repeats", type=int, default=5, help="rounds (5); three of what takes two minutes")
    add("--fresh", action="store_true", help="forget the runs that are kept")
    add("--samples", type=int, default=128, help="calibration windows (128)")
    add("--length", type=int, default=256, help="tokens per window (256)")
    add("--threads", type=int, default=2, help="of every program (2)")
    add("--cache", type=Path, default=Path(".rivals"), metavar="DIR", help="(.rivals)")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    options = parser.parse_args()
    options.cache = options.cache.resolve()
    Bench(options).measure()


if __name__ == "__main__":
    main()
