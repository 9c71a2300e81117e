"""A GPU pool for tests: a real server, process workers with pretended devices, and runs that use them."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.devices import PRETENDED
from tests.flows.fakes import make_model_folder
from tests.prefect_server import ROOT, PrefectServer, prefect_server

DEPLOY = """
from prefect.flows import EntrypointType
from tests.flows.fake_job import run_fake_job
run_fake_job.to_deployment("gpu", work_pool_name="gpu", entrypoint_type=EntrypointType.MODULE_PATH).apply()
"""
COMMAND = """
import sys
import pytest
from tests.flows.fakes import use_fake_stages
import flows.watching
use_fake_stages(pytest.MonkeyPatch())
flows.watching._PATIENCE = 3.0
from flows.cli import main
sys.exit(main(sys.argv[1:]))
"""


@dataclass
class Pool:
    """A server with a GPU pool whose workers can be started and ended; commands share one store."""

    folder: Path
    server: PrefectServer
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    commands: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        """The artifact store of workers and runs."""
        return self.folder / "store"

    def start_worker(self, device: str, **settings: str) -> None:
        """Start a worker that owns a pretended device."""
        command = "worker start --pool gpu --type process --limit 1 --name"
        with (self.folder / f"{device}.log").open("ab") as log:
            self.workers[device] = subprocess.Popen(
                [sys.executable, "-m", "prefect", *command.split(), f"worker-{device}"],
                env=self.environment | {PRETENDED: device, **settings},
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )

    def stop_workers(self) -> None:
        """End all workers as a user would."""
        for worker in self.workers.values():
            worker.terminate()
        for worker in self.workers.values():
            worker.wait(120)
        self.workers.clear()

    @property
    def environment(self) -> dict[str, str]:
        """For workers and commands."""
        return self.server.environment | {"ALPHAQUANT_STORE": str(self.store)}

    def command(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        """Start `alphaquant` with fake stages that run on the pool."""
        where = ["--set", "execution.where=pool"] if arguments[0] in ("run", "sweep") else []
        started = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments, *where],
            env=self.environment | settings,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        self.commands.append(started)
        return started

    def jobs(self) -> list[str]:
        """Names of all jobs that were ever sent."""
        with self.server.client() as client:
            return [run.name for run in client.read_flow_runs() if run.deployment_id]

    def manifests(self) -> list[dict[str, Any]]:
        """What the store's run manifests say, oldest first."""
        return [json.loads(path.read_text()) for path in sorted((self.store / "runs").glob("*"))]


@contextlib.contextmanager
def gpu_pool(folder: Path) -> Iterator[Pool]:
    """A server with a pool and its deployment, without workers yet."""
    folder.mkdir(exist_ok=True)
    make_model_folder(folder / "model")
    with prefect_server(folder / "prefect") as server:
        pool = Pool(folder, server)
        create = ["work-pool", "create", "gpu", "--type", "process"]
        for command in (
            [sys.executable, "-m", "prefect", *create],
            [sys.executable, "-c", DEPLOY],
        ):
            subprocess.run(command, env=pool.environment, cwd=ROOT, check=True, capture_output=True)
        try:
            yield pool
        finally:
            for command in pool.commands:
                if command.poll() is None:
                    command.kill()
                command.communicate()
            pool.stop_workers()


def heed_interrupts() -> None:
    """A worker ends on SIGTERM by interrupting itself, which a background job of a shell ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
