"""A real Prefect server for tests: a free port of 127.0.0.1, a home of its own, ended with the test.

with prefect_server(tmp_path / "prefect") as server:
    subprocess.run([...], env=server.environment)
    with server.client() as client: ...
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flows import prefect_settings
from flows.server.reach import answers

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

ROOT = Path(__file__).parents[1]
_START_SECONDS = 240
_STOP_SECONDS = 60


@dataclass
class PrefectServer:
    """A server process; may be killed and started again on the same port and database."""

    home: Path
    port: int
    environment: dict[str, str]
    """For clients, workers and flows: the server's address, its home, and no other Prefect setting."""
    server_environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where the UI is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL must be."""
        return f"{self.url}/api"

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.home / "server.log"

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [sys.executable, "-m", "prefect", "server", "start"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.home,
                env=self.server_environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        limit = time.monotonic() + _START_SECONDS
        while not answers(self.api_url):
            if self.process.poll() is not None or time.monotonic() > limit:
                self.kill()
                raise RuntimeError(f"the Prefect server did not start: {self.log.read_text()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End the process as a user would."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self.process = None

    def kill(self) -> None:
        """End the process as a crash would."""
        if self.process is None:
            return
        self.process.kill()
        self.process.wait()
        self.process = None

    @contextlib.contextmanager
    def client(self) -> Iterator[SyncPrefectClient]:
        """A client of this server, whatever this process's own settings say."""
        from prefect.client.orchestration import SyncPrefectClient
        from prefect.settings import PREFECT_API_AUTH_STRING

        auth = self.environment.get(PREFECT_API_AUTH_STRING.name)
        with SyncPrefectClient(self.api_url, auth_string=auth) as client:
            yield client


@contextlib.contextmanager
def prefect_server(
    home: Path,
    *,
    database_url: str | None = None,
    ui: bool = False,
    settings: Mapping[str, str] | None = None,
) -> Iterator[PrefectServer]:
    """Run a server with its state in `home`, or in the database at `database_url`.

    `settings` are environment variables for the server and its clients. Without `ui` it starts faster.
    """
    home.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = clean_environment() | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        **(settings or {}),
    }
    of_server = environment | {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_UI_ENABLED": str(ui).lower(),
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
    }
    if database_url:
        of_server["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database_url
    elif not (home / "prefect.db").exists():
        shutil.copyfile(empty_database(), home / "prefect.db")
    server = PrefectServer(home, port, environment, of_server)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def clean_environment() -> dict[str, str]:
    """This process's environment without settings of Prefect, and with the project importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | prefect_settings.DEFAULTS | {"PYTHONPATH": str(ROOT)}


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def empty_database() -> Path:
    """A migrated SQLite database, made once per Prefect version: migrations take longer than the start."""
    version = importlib.metadata.version("prefect")
    folder = Path(tempfile.gettempdir()) / f"alphaquant-tests-{os.getuid()}" / f"prefect-{version}"
    folder.mkdir(parents=True, exist_ok=True)
    made, draft = folder / "empty.db", folder / "draft.db"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            draft.unlink(missing_ok=True)
            url = f"sqlite+aiosqlite:///{draft}"
            subprocess.run(
                [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"],
                env=clean_environment()
                | {"PREFECT_HOME": str(folder), "PREFECT_SERVER_DATABASE_CONNECTION_URL": url},
                check=True,
                capture_output=True,
                timeout=_START_SECONDS,
            )
            draft.rename(made)
    return made
