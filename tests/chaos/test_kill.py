"""The demo run killed with SIGKILL again and again: what was finished stays, and the products come out the same.

More moments, at which every stage is hit: `ALPHAQUANT_CHAOS_KILLS=20 ALPHAQUANT_CHAOS_SEED=1`.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from flows.dag import STAGE_NAMES
from flows.orphans import SERVER, end_orphans
from tests.chaos.command import Command, processes_with
from tests.chaos.soundness import assert_sound, different_files
from tests.prefect_server import clean_environment, empty_database

pytestmark = [
    pytest.mark.slow,
    pytest.mark.prefect,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc"),
]

_LOG = logging.getLogger(__name__)
KILLS = int(os.environ.get("ALPHAQUANT_CHAOS_KILLS", "5"))
SEED = int(os.environ.get("ALPHAQUANT_CHAOS_SEED", "0"))
CONFIG = """
model: {path: null}
calibration: {dataset: builtin, samples: 8, sequence_length: 128, generated: 0.25, balance: 2}
rotation: {kind: hadamard}
allocation: {target_bits: 2.5} # so few that tuning the whole model finds something to do
quantization: {tune: model, tune_steps: 4, tune_model_steps: 16}
router: {method: kl, epochs: 1, batch_size: 4}
evaluation: {sequence_length: 128, tasks: [builtin_rolling, builtin_cloze], limit: 10}
comparison: {uniform: [int4], methods: [rtn]}
"""
# copying a few files takes milliseconds, which who looks on a busy machine would miss
_STOPS_AT_THE_SUMMARY = """
import sys, time
import flows.publish
flows.publish.write_summary = lambda path, summary: time.sleep(600)
from flows.cli import main
sys.exit(main(sys.argv[1:]))
"""
BLOCKS = 4
_SAFE_SHARE = 0.3
"""Share of an undisturbed stage's time during which it is surely not over yet, were it three times as fast."""
_WRITING_SECONDS = 0.03
_BLOCK_SECONDS = 0.4


@dataclass(frozen=True)
class Kill:
    """When a run is killed, and what of it."""

    stage: str
    moment: Literal["within", "writing", "behind a block", "handing over"]
    share: float
    """How late within that moment."""
    how: Literal["with its server", "alone", "without a server"]
    """An embedded server dies with the run, or is left as an orphan; or there is none."""


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody killed."""

    out: Path
    summary: dict[str, Any]
    seconds: Mapping[str, float]


def kills(count: int, seed: int) -> list[Kill]:
    """Random moments in the order of stages, all of them hit when there are enough, and the end."""
    chance = random.Random(seed)
    if count < len(STAGE_NAMES) + 2:
        stages = ["quantize", "quantize", *chance.sample(STAGE_NAMES, count - 2)]
    else:
        more = chance.choices(STAGE_NAMES, k=count - len(STAGE_NAMES) - 2)
        stages = ["quantize", "quantize", *STAGE_NAMES, *more]
    stages.sort(key=STAGE_NAMES.index)
    ways: list[Any] = (["alone", "with its server", "without a server"] * count)[:count]
    chance.shuffle(ways)
    found = []
    for index, (stage, how) in enumerate(zip(stages, ways, strict=True)):
        moment: Any = "within"
        if stage == "quantize":
            moment = "behind a block"
        elif stage in stages[:index]:
            moment = chance.choice(["within", "writing"])
        found.append(Kill(stage, moment, chance.random(), how))
    return [*found, Kill("analyze", "handing over", 0.0, "without a server")]


class Killer:
    """Runs one command on one store, and kills it."""

    def __init__(self, folder: Path, seconds: Mapping[str, float]) -> None:
        self.out = folder / "out"
        self.store = folder / "store"
        self.home = folder / "home"
        self._folder = folder
        self._seconds = seconds
        self._count = 0
        self.home.mkdir()
        shutil.copyfile(empty_database(), self.home / "prefect.db")

    def start(self, *options: str, program: Sequence[str] = ("-m", "flows.cli")) -> Command:
        """The run."""
        self._count += 1
        log = self._folder / f"run-{self._count}.log"
        arguments = ["--store", str(self.store), "--out", str(self.out), *options]
        return Command(
            [sys.executable, *program, "run", "config.yaml", *arguments],
            log,
            self._folder,
            clean_environment() | {"PREFECT_HOME": str(self.home)},
        )

    def kill(self, kill: Kill) -> Command:
        """Start the run, kill it at that moment, and return it."""
        drafts, blocks = set(self._drafts()), self.blocks()
        options = ["--no-prefect"] if kill.how == "without a server" else []
        if kill.moment == "handing over":
            command = self.start(*options, program=("-c", _STOPS_AT_THE_SUMMARY))
        else:
            command = self.start(*options)
        living = command.wait_until(lambda: kill.stage in command.begun)
        assert living, command.said
        if kill.moment == "writing":
            command.wait_until(
                lambda: bool(set(self._drafts()) - drafts) or kill.stage in command.ended
            )
            time.sleep(kill.share * _WRITING_SECONDS)
        elif kill.moment == "behind a block":
            command.wait_until(lambda: self.blocks() > blocks or kill.stage in command.ended)
            time.sleep(kill.share * _BLOCK_SECONDS)
        elif kill.moment == "handing over":
            command.wait_until(lambda: any(self.out.parent.glob(f".{self.out.name}.*")))
        else:
            time.sleep(kill.share * _SAFE_SHARE * self._seconds[kill.stage])
        assert command.process.poll() is None, command.said
        command.kill(whole=kill.how != "alone")
        return command

    def blocks(self) -> int:
        """Quantized blocks that the store knows."""
        return len(list((self.store / "keys" / "quantize-block").glob("*.json")))

    def _drafts(self) -> list[Path]:
        """Drafts with something in them."""
        return [path.parent for path in (self.store / "tmp").glob("*/*")]


def write_config(folder: Path) -> None:
    """A run of well under a minute in which every stage has something to do."""
    (folder / "config.yaml").write_text(CONFIG)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The same run, left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_config(folder)
    killer = Killer(folder, {})
    command = killer.start("--no-prefect")
    assert command.wait() == 0, command.said
    summary = json.loads((killer.out / "summary.json").read_text())
    assert summary["blocks"] == {"ran": BLOCKS, "cached": 0}
    assert {stage["name"]: stage["state"] for stage in summary["stages"]} == dict.fromkeys(
        STAGE_NAMES, "ran"
    )
    seconds = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    return Undisturbed(killer.out, summary, seconds)


def test_a_run_that_is_killed_again_and_again_loses_nothing_that_was_finished(
    undisturbed: Undisturbed, tmp_path: Path
) -> None:
    write_config(tmp_path)
    killer = Killer(tmp_path, undisturbed.seconds)
    finished: set[str] = set()
    hit = []
    blocks = 0
    for kill in kills(KILLS, SEED):
        command = killer.kill(kill)
        check_nothing_was_lost(command, finished, blocks)
        finished |= set(command.ended)
        assert blocks <= killer.blocks()
        blocks = killer.blocks()
        hit += [stage for stage in command.begun[-1:] if stage not in command.ended]
        _LOG.info("%s after %s: %d stages, %d blocks", kill, command.begun, len(finished), blocks)
    assert len(hit) >= KILLS * 2 / 3
    if 2 * len(STAGE_NAMES) <= KILLS:
        assert set(hit) == set(STAGE_NAMES)
    command = killer.start()
    assert command.wait() == 0, command.said
    check_nothing_was_lost(command, finished, blocks)
    told = {"summary.json", "checkpoint/alphaquant.json"}  # which run it was, and when
    timed = {"profile.json", "report.html", "report.md", "figures/time_by_step.png"}
    assert different_files(undisturbed.out, killer.out) <= told | timed
    summary = json.loads((killer.out / "summary.json").read_text())
    assert _report(summary) == _report(undisturbed.summary)  # as it is before seconds are added
    same = ("scores", "bits_per_weight", "status")
    assert [summary[key] for key in same] == [undisturbed.summary[key] for key in same]
    assert_sound(killer.store)
    assert_nothing_lives_on(killer.home)


def _report(summary: dict[str, Any]) -> str:
    """Digest of the report in the store."""
    (analyze,) = [stage for stage in summary["stages"] if stage["name"] == "analyze"]
    return Path(analyze["artifact"]).name


def test_a_server_that_was_just_started_does_not_outlive_its_killed_run_for_long(
    tmp_path: Path,
) -> None:
    write_config(tmp_path)
    killer = Killer(tmp_path, {})
    command = killer.start()

    def servers() -> list[int]:
        return [
            process
            for process in processes_with("PREFECT_HOME", str(killer.home))
            if SERVER in Path(f"/proc/{process}/cmdline").read_text().split("\0")
        ]

    assert command.wait_until(lambda: bool(servers())), command.said
    command.kill(whole=False)
    assert servers()
    assert set(servers()) <= set(end_orphans())
    assert_nothing_lives_on(killer.home)


def check_nothing_was_lost(command: Command, finished: set[str], blocks: int) -> None:
    """What an earlier run finished is found by the next, stage by stage and block by block."""
    ended = command.ended
    assert {stage for stage in finished & ended.keys() if ended[stage] == "ran"} == set()
    if command.blocks and ended.get("quantize") == "ran":
        assert command.blocks == (BLOCKS - blocks, blocks)


def assert_nothing_lives_on(home: Path, seconds: float = 120) -> None:
    """No process of any of the runs, least of all a server, is left."""
    limit = time.monotonic() + seconds
    while left := list(processes_with("PREFECT_HOME", str(home))):
        assert time.monotonic() < limit, f"processes {left} are left"
        time.sleep(0.1)
