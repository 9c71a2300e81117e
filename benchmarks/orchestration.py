"""What AlphaQuant costs besides the work: starting, looking up, keeping blocks.

    python benchmarks/orchestration.py            # from the project's folder; fills a store with the demo first

Every figure is a median; commands are measured from start to exit as a user sees it, and by the CPU seconds that
they and their children used, which a busy machine changes less. The table goes to the terminal and to
`benchmarks/results/orchestration.md`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.stage import Stage, StageResult, Workbench, run_stage

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "orchestration.md"
BLOCKS = 32
BLOCK_SIZES = {"4 KiB": 2**12, "16 MiB": 2**24}
_QUANTIZATION_SECONDS = 60.0
_EMPTY_FLOW = """
from flows import prefect_settings
prefect_settings.prepare()
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
prefect_settings.quiet_terminal([])

@flow
def empty():
    for index in range({tasks}):
        task(name=f"stage-{{index}}", cache_policy=NO_CACHE, persist_result=False)(lambda: None)()
    for index in range({artifacts}):
        create_markdown_artifact("x" * 1000, key=f"page-{{index}}")

with temporary_settings({{PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}}):
    empty()
"""
"""What Prefect alone costs for a run: its import, its server, as many tasks and artifacts."""


@dataclass(frozen=True)
class Cost:
    """A median of several measurements, in seconds."""

    wall: float
    cpu: float

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


@dataclass(frozen=True)
class Line:
    """A line of the table."""

    what: str
    cost: Cost
    goal: float | None = None

    def row(self) -> str:
        """As Markdown."""
        goal = "" if self.goal is None else f"< {self.goal:g}"
        met = "" if self.goal is None else ("yes" if self.cost.wall < self.goal else "**no**")
        return f"| {self.what} | {self.cost.wall:.2f} | {self.cost.cpu:.2f} | {goal} | {met} |"


class Bench:
    """A folder with a store, a Prefect home and a run's products."""

    def __init__(self, folder: Path, repeats: int, config: Sequence[str]) -> None:
        self.folder = folder
        self.repeats = repeats
        self._config = list(config)
        kept = {name: value for name, value in os.environ.items() if "PREFECT" not in name}
        self._environment = kept | {
            "PYTHONPATH": str(ROOT),
            "PREFECT_HOME": str(folder / "home"),
            "HF_HUB_OFFLINE": "1",
        }

    def alphaquant(self, *arguments: str, store: str = "store") -> list[str]:
        """A command line; `run` and `plan` are given the config and places."""
        command = [sys.executable, "-m", "flows.cli", *arguments]
        if arguments[0] in ("run", "plan"):
            places = ["--store", str(self.folder / store), "--out", str(self.folder / "out")]
            command += [*self._config, *places]
        return command

    def run(self, command: Sequence[str]) -> tuple[Cost, str]:
        """Run a command; raises CalledProcessError when it fails."""
        before, started = _children_cpu(), time.perf_counter()
        ended = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        return Cost(time.perf_counter() - started, _children_cpu() - before), ended.stdout

    def median(self, *commands: Sequence[str]) -> list[Cost]:
        """Medians of commands that take turns, so that a change of load meets all of them."""
        costs: list[list[Cost]] = [[] for _ in commands]
        for _ in range(self.repeats):
            for found, command in zip(costs, commands, strict=True):
                found.append(self.run(command)[0])
        return [_median(found) for found in costs]


def measure_commands(bench: Bench) -> tuple[list[Line], str]:
    """Commands as a user sees them, and the cost of a hit by stage."""
    run_here = bench.alphaquant("run", "--no-prefect", "--json")
    bench.run(run_here)  # fills the store
    summary = json.loads(bench.run(run_here)[1])
    computed = [stage["name"] for stage in summary["stages"] if stage["state"] == "ran"]
    if computed:
        raise SystemExit(f"these stages were to be cached and ran: {', '.join(computed)}")
    on_prefect = bench.alphaquant("run", "--json")
    bench.run(on_prefect)  # the first start of a server makes the database
    empty_flow = _EMPTY_FLOW.format(tasks=len(summary["stages"]), artifacts=5)
    program = [sys.executable, "-c", empty_flow]
    help_, fresh, known, here, with_prefect, empty, python = bench.median(
        bench.alphaquant("--help"),
        bench.alphaquant("plan", store="empty"),
        bench.alphaquant("plan"),
        run_here,
        on_prefect,
        program,
        [sys.executable, "-c", "pass"],
    )
    lines = [
        Line("`python -c pass`", python),
        Line("`alphaquant --help`", help_),
        Line("`alphaquant plan` of the demo, empty store", fresh, 2),
        Line("`alphaquant plan` of the demo, all cached", known, 2),
        Line("`alphaquant run --no-prefect` of the demo, all cached", here),
        Line(
            "`alphaquant run` of the demo, all cached (Prefect's embedded server)", with_prefect, 12
        ),
        Line("an empty flow of as many tasks and artifacts on an embedded server", empty),
        Line("own share: the run less the empty flow", with_prefect - empty, 1),
    ]
    return lines, _hits(bench, run_here)


def measure_blocks(folder: Path, repeats: int) -> list[Line]:
    """What the store adds to a stage of 32 blocks whose bodies only write a file."""
    lines = []
    limit = 0.03 * _QUANTIZATION_SECONDS
    for label, size in BLOCK_SIZES.items():
        content = os.urandom(size)
        plain, kept, found = [], [], []
        for turn in range(repeats):
            plain.append(_timed(_write_plainly, folder, content))
            store = ArtifactStore(folder / f"blocks-{turn}")
            kept.append(_timed(_run_blocks, store, content, BLOCKS))
            shutil.rmtree(store.root / "keys" / "bench")
            found.append(_timed(_run_blocks, store, content, 0))
            shutil.rmtree(store.root)
        added = _median(kept) - _median(plain)
        lines += [
            Line(f"{BLOCKS} blocks of {label} kept, less writing them", added, limit),
            Line(f"{BLOCKS} blocks of {label} found", _median(found), limit),
        ]
    return lines


def _run_blocks(store: ArtifactStore, content: bytes, ran: int) -> None:
    def body(out: Path, bench: Workbench) -> None:
        cache = bench.block_cache()
        for index in range(BLOCKS):
            if cache.get(index, {}) is None:
                cache.put(index, {}, lambda to: _write(to / "block", content))
        (out / "refs.json").write_text(json.dumps(cache.as_refs()))

    result: StageResult = run_stage(Stage("bench", body, "alphaquant.errors"), store, {})
    assert result.units_ran == ran


def _write_plainly(folder: Path, content: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as plain:
        for index in range(BLOCKS):
            _write(Path(plain) / str(index), content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _timed(work: Callable[..., None], *arguments: Any) -> Cost:
    before, started = time.process_time(), time.perf_counter()
    work(*arguments)
    return Cost(time.perf_counter() - started, time.process_time() - before)


def _hits(bench: Bench, run_here: Sequence[str]) -> str:
    """Markdown: milliseconds that each stage's lookup takes, first in its process."""
    seconds: dict[str, list[float]] = {}
    for _ in range(bench.repeats):
        for stage in json.loads(bench.run(run_here)[1])["stages"]:
            seconds.setdefault(stage["name"], []).append(stage["seconds"])
    rows = (
        f"| {name} | {statistics.median(found) * 1000:.0f} |" for name, found in seconds.items()
    )
    return "\n".join(("| a hit of | ms |", "|---|---:|", *rows))


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
    )


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def describe() -> str:
    """When, on what and of which commit the figures are."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return (
        f"{datetime.date.today()}, commit {_git('rev-parse', '--short', 'HEAD')}"
        f"{' with changes' if _git('status', '--porcelain') else ''}, {os.cpu_count()} cores, {memory:.0f} GiB "
        f"memory, load {load:.1f} at the end."
    )


def _git(*arguments: str) -> str:
    ended = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return ended.stdout.strip()


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="measurements (5)")
    parser.add_argument(
        "--set", action="append", default=[], help="change a config key of the demo"
    )
    options = parser.parse_args()
    config = [part for assignment in options.set for part in ("--set", assignment)]
    with tempfile.TemporaryDirectory(prefix="alphaquant-bench-") as folder:
        lines, hits = measure_commands(Bench(Path(folder), options.repeats, config))
        lines += measure_blocks(Path(folder), options.repeats)
    table = "\n".join(
        (
            "| | seconds | CPU seconds | goal | met |",
            "|---|---:|---:|---|---|",
            *map(Line.row, lines),
        )
    )
    text = f"# Cost of orchestration\n\n{describe()} Medians of {options.repeats}.\n\n{table}\n\n{hits}\n"
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
