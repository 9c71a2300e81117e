"""What a run on a pool survives: its job killed, the worker killed, the server killed."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.devices import PRETENDED
from tests.chaos.command import Command, processes_with
from tests.chaos.paced_stages import BLOCKS, FOLDER, NAME, hold_file
from tests.chaos.soundness import assert_sound
from tests.flows.fakes import make_model_folder
from tests.prefect_server import PrefectServer, prefect_server

pytestmark = [
    pytest.mark.slow,
    pytest.mark.prefect,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc"),
]
_SECONDS = 240


class Fleet:
    """A server, one worker that owns a pretended device, and runs that share a store."""

    def __init__(self, folder: Path, server: PrefectServer) -> None:
        self.folder = folder
        self.server = server
        self.device = f"pretended-{os.getpid()}"
        self.environment = server.environment | {FOLDER: str(folder)}
        self._logs = 0
        self.commands: list[Command] = []
        self.worker = self.start_worker()

    def start_worker(self) -> Command:
        """Another worker on the same device."""
        arguments = ["-m", "prefect", "worker", "start", "--pool", "gpu", "--limit", "1"]
        self.worker = self._start(arguments, {PRETENDED: self.device})
        return self.worker

    def run(self, bits: float, *, where: str = "pool", **settings: str) -> Command:
        """Start a run whose budget tells it from others."""
        keys = (
            f"allocation.target_bits={bits}",
            f"execution.where={where}",
            "execution.device=cpu",
        )
        options = [part for key in keys for part in ("--set", key)]
        places = ["--store", str(self.store), "--out", str(self.out(bits))]
        return self._start(["-m", NAME, "run", "--model", "model", *places, *options], settings)

    @property
    def store(self) -> Path:
        """The store of all runs."""
        return self.folder / "store"

    def out(self, bits: float) -> Path:
        """Where a run's products are."""
        return self.folder / f"out-{bits}"

    def hold(self, bits: float, block: int) -> Path:
        """Let a block not end before the file that this returns is removed."""
        file = hold_file(self.folder, bits, block)
        file.touch()
        return file

    def events(self, bits: float, event: str = "began") -> list[dict[str, Any]]:
        """What happened to the blocks of a run."""
        log = self.folder / "blocks.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        found = [json.loads(line) for line in lines]
        return [one for one in found if (one["bits"], one["event"]) == (bits, event)]

    def process_at(self, bits: float, block: int, command: Command) -> int:
        """Wait until a block has begun; the process that computes it."""

        def begun() -> list[int]:
            return [one["process"] for one in self.events(bits) if one["block"] == block]

        assert command.wait_until(lambda: bool(begun()), _SECONDS), command.said
        return begun()[-1]

    def summary(self, bits: float) -> dict[str, Any]:
        """What a run left."""
        summary: dict[str, Any] = json.loads((self.out(bits) / "summary.json").read_text())
        return summary

    def made_of(self, bits: float) -> str:
        """What the checkpoint of a run was made of."""
        config = json.loads((self.out(bits) / "checkpoint" / "config.json").read_text())
        return str(config["made_of"])

    def end(self) -> None:
        """End everything that was started."""
        for command in self.commands:
            command.kill()
        for process in processes_with(FOLDER, str(self.folder)):
            os.kill(process, signal.SIGKILL)

    def _start(self, arguments: list[str], settings: dict[str, str]) -> Command:
        self._logs += 1
        log = self.folder / f"command-{self._logs}.log"
        environment = self.environment | settings
        command = Command([sys.executable, *arguments], log, self.folder, environment)
        self.commands.append(command)
        return command


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    make_model_folder(folder / "model")
    with prefect_server(folder / "prefect") as server:
        _deploy(server)
        made = Fleet(folder, server)
        try:
            yield made
        finally:
            made.end()


def _deploy(server: PrefectServer) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    with server.client() as client:
        client.create_work_pool(WorkPoolCreate(name="gpu", type="process"))
        client.create_deployment(
            client.create_flow_from_name("stage"),
            "gpu",
            entrypoint=f"{NAME}.run_job",
            work_pool_name="gpu",
        )


def _all_of(bits: float) -> str:
    return "".join(f"{block} at {bits}" for block in range(BLOCKS))


def _ended_well(fleet: Fleet, command: Command, bits: float) -> None:
    assert command.wait() == 0, command.said
    assert fleet.made_of(bits) == _all_of(bits)
    assert "Traceback" not in command.said


def test_a_killed_job_is_sent_again_and_goes_on_behind_its_blocks(fleet: Fleet) -> None:
    bits = 4.0
    hold = fleet.hold(bits, 3)
    command = fleet.run(bits)
    os.kill(fleet.process_at(bits, 3, command), signal.SIGKILL)
    hold.unlink()
    _ended_well(fleet, command, bits)
    assert "crashed" in command.said
    assert "sending it again" in command.said
    begun = Counter(one["block"] for one in fleet.events(bits))
    assert begun == Counter(range(BLOCKS)) + Counter([3])
    assert fleet.summary(bits)["blocks"] == {"ran": 2, "cached": 3}


def test_the_job_of_a_killed_worker_goes_on_and_the_next_one_waits_for_its_device(
    fleet: Fleet,
) -> None:
    bits, other = 4.5, 5.0
    hold = fleet.hold(bits, 2)
    command = fleet.run(bits)
    orphan = fleet.process_at(bits, 2, command)
    fleet.worker.kill(whole=False)
    worker = fleet.start_worker()
    second = fleet.run(other)
    waiting = f"waiting for process {orphan}"
    assert worker.wait_until(lambda: waiting in worker.said, _SECONDS)
    hold.unlink()
    _ended_well(fleet, command, bits)
    _ended_well(fleet, second, other)
    assert {one["process"] for one in fleet.events(bits)} == {orphan}
    assert fleet.events(bits, "ended")[-1]["at"] <= fleet.events(other)[0]["at"]
    devices = {
        stage["device"]
        for one in (bits, other)
        for stage in fleet.summary(one)["stages"]
        if stage["name"] == "quantize"
    }
    assert devices == {fleet.device}


@pytest.mark.parametrize(("bits", "back_before_the_end"), [(5.5, True), (6.0, False)])
def test_a_run_outlives_its_server(fleet: Fleet, bits: float, back_before_the_end: bool) -> None:
    hold = fleet.hold(bits, 2)
    command = fleet.run(bits)
    fleet.process_at(bits, 2, command)
    fleet.server.kill()
    try:
        away = "the Prefect server does not answer"
        assert command.wait_until(lambda: away in command.said, _SECONDS), command.said
        if not back_before_the_end:
            hold.unlink()
            assert command.wait_until(lambda: "quantize" in command.ended, _SECONDS), command.said
    finally:
        fleet.server.start()
    hold.unlink(missing_ok=True)
    _ended_well(fleet, command, bits)
    assert Counter(one["block"] for one in fleet.events(bits)) == Counter(range(BLOCKS))


def test_a_run_here_whose_server_is_gone_for_good_says_so_and_keeps_what_it_finished(
    fleet: Fleet,
) -> None:
    bits = 6.5
    hold = fleet.hold(bits, 2)
    # of itself Prefect tries each request again for a minute
    command = fleet.run(bits, where="here", PREFECT_CLIENT_MAX_RETRIES="0")
    fleet.process_at(bits, 2, command)
    fleet.server.kill()
    try:
        hold.unlink()
        told = f"alphaquant: the Prefect server at {fleet.server.api_url} does not answer"
        assert command.wait_until(lambda: told in command.said, _SECONDS), command.said
    finally:
        fleet.server.start()
    assert "the same command goes on when the server is back" in command.said
    assert "Traceback" not in command.said
    command.kill()  # Prefect gives up its events one by one, seven seconds each
    again = fleet.run(bits, where="here")
    _ended_well(fleet, again, bits)
    assert set(again.ended.values()) == {"cached", "skipped"}, again.said
    assert len(fleet.events(bits)) == BLOCKS


def test_the_store_is_sound_after_all_that(fleet: Fleet) -> None:
    assert_sound(fleet.store)
