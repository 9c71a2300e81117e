"""How much faster a sweep is on two workers than on one.

    python benchmarks/pool.py            # from the project's folder; a server, workers and sweeps are started

A sweep of six budgets with stages that sleep instead of computing (blocks and GPU stages take `SECONDS` each), so
that cores do not decide: what is measured is the scheduling. Each sweep is a fresh store.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.flows.pool import Pool, gpu_pool  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "pool.md"
SECONDS = 4.0
BUDGETS = "3,4,5,6,7,8"
REPEATS = 3


def sweep(pool: Pool, number: int) -> tuple[float, int]:
    """Wall seconds of one sweep on a fresh store, and the blocks that were computed."""
    started = time.perf_counter()
    command = pool.command(
        *("sweep", "--model", "model", "--json", "--out", f"sweep-{number}"),
        *("--over", f"allocation.target_bits={BUDGETS}"),
    )
    out, err = command.communicate()
    if command.returncode:
        raise SystemExit(err)
    spent = time.perf_counter() - started
    return spent, sum(point["blocks_ran"] for point in json.loads(out)["points"])


def measure(folder: Path, devices: int) -> list[float]:
    """Wall seconds of sweeps on so many workers."""
    spent = []
    for number in range(REPEATS):
        with gpu_pool(folder / f"{devices}-{number}") as pool:
            for device in range(devices):
                pool.start_worker(f"gpu{device}", FAKE_SECONDS=str(SECONDS))
            seconds, blocks = sweep(pool, number)
        if blocks != 2 + 2 * 6:
            raise SystemExit(f"{blocks} blocks were computed instead of 14")
        spent.append(seconds)
        print(f"{devices} workers: {seconds:.1f} s", flush=True)
    return spent


def main() -> None:
    """Measure, print, save."""
    with tempfile.TemporaryDirectory() as name:
        one, two = (measure(Path(name), devices) for devices in (1, 2))
    first, second = statistics.median(one), statistics.median(two)
    text = (
        f"# A sweep of six budgets on one and two workers\n\n"
        f"Stages and blocks that sleep {SECONDS:.0f} s each; medians of {REPEATS}, wall seconds from start to exit of "
        f"`alphaquant sweep`. 6 plans of 4 blocks each: 14 blocks computed, 10 shared.\n\n"
        f"| workers | seconds | |\n|---:|---:|---|\n"
        f"| 1 | {first:.1f} | {', '.join(f'{t:.1f}' for t in one)} |\n"
        f"| 2 | {second:.1f} | {', '.join(f'{t:.1f}' for t in two)} |\n\n"
        f"Two workers take {second / first:.2f} of the time of one.\n"
    )
    print(text)
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
