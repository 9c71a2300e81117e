"""Two hosts on one machine: network namespaces with a cable between them and host names of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PYTHON = sys.executable


@dataclass
class Host:
    """A network namespace; what is started in it is ended with it."""

    name: str
    address: str
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, arguments: Sequence[str]) -> list[str]:
        """`arguments`, run on this host."""
        rename = f'hostname {self.name}; exec "$@"'
        inside = ["unshare", "--uts", "sh", "-c", rename, self.name, *arguments]
        return ["ip", "netns", "exec", self.name, *inside]

    def start(self, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """Start a process that goes on; what it prints is in `<name>-<number>.log`."""
        with (self.folder / f"{self.name}-{len(self.processes)}.log").open("wb") as log:
            started = subprocess.Popen(
                self.command(arguments),
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(started)

    def run(self, arguments: Sequence[str], environment: dict[str, str]) -> str:
        """Run a command to its end; returns what it printed. Raises AssertionError when it fails."""
        ended = subprocess.run(
            self.command(arguments),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=480,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def wait_for(self, url: str, seconds: float = 240.0) -> None:
        """Wait until a URL answers, whatever it says."""
        code = (
            "import sys, urllib.request, urllib.error\n"
            "try: urllib.request.urlopen(sys.argv[1], timeout=2).close()\n"
            "except urllib.error.HTTPError: pass\n"
        )
        limit = time.monotonic() + seconds
        while subprocess.run(
            self.command([PYTHON, "-S", "-c", code, url]), capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < limit, f"{url} does not answer"
            time.sleep(0.3)


def can_make_hosts() -> bool:
    """Whether this machine lets us: Linux, root, and the tools."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    name = f"aqprobe{os.getpid()}"  # several test processes ask at the same moment
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts that see each other and nothing else."""
    mark = f"aq{os.getpid() % 10000}"
    hosts = [Host(f"{mark}{side}", f"10.77.0.{n}", folder) for n, side in ((1, "a"), (2, "b"))]
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
        ends = [f"{host.name}e" for host in hosts]
        _ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for host, end in zip(hosts, ends, strict=True):
            _ip("link", "set", end, "netns", host.name)
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", end)
            _ip("-n", host.name, "link", "set", end, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            for process in reversed(host.processes):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()
            subprocess.run(["ip", "netns", "del", host.name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
