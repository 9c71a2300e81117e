"""The processes of a server: which commands, under which names, with which environments."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from flows.server.child import Child
from flows.server.options import (
    PROJECT,
    ServerOptions,
    client_environment,
    prefect,
    server_environment,
    worker_environment,
)

CPU_LIMIT = 4
"""Flow runs at once per CPU worker: most of them wait for GPU stages."""


def server_child(options: ServerOptions, environment: Mapping[str, str]) -> Child:
    """The Prefect server."""
    settings = server_environment(options, environment)
    return Child(
        "server", prefect("server", "start"), settings, options.logs / "server.log", options.home
    )


def worker_children(options: ServerOptions, environment: Mapping[str, str]) -> list[Child]:
    """CPU workers, and one GPU worker per device."""
    host = socket.gethostname()
    workers = []
    for number in range(1, options.cpu_workers + 1):
        settings = worker_environment(options, environment, gpu=None)
        name = f"{host}-cpu{number}"
        workers.append(_worker(options, name, "cpu", CPU_LIMIT, settings))
    for gpu in options.gpus:
        settings = worker_environment(options, environment, gpu=gpu)
        # Prefect allows no slash or percent sign in a worker's name
        name = f"{host}-gpu{gpu.replace('/', '-') or 0}"
        workers.append(_worker(options, name, "gpu", 1, settings))
    return workers


def registering(options: ServerOptions, environment: Mapping[str, str]) -> Child:
    """Makes pools and crash detection."""
    command = [sys.executable, "-m", "flows.server.register"]
    return _helper(options, environment, "register", command)


def deploying(options: ServerOptions, environment: Mapping[str, str]) -> Child:
    """Makes the deployments of `prefect.yaml`."""
    command = prefect("--no-prompt", "deploy", "--all")
    # each worker's own folder counts, not the one of whoever deploys
    clean = {name: value for name, value in environment.items() if name != "ALPHAQUANT_HOME"}
    return _helper(options, clean, "deploy", command)


def _worker(
    options: ServerOptions, name: str, pool: str, limit: int, settings: dict[str, str]
) -> Child:
    command = prefect("worker", "start", "--type", "process", "--pool", pool, "--name", name)
    command += ["--limit", str(limit), "--install-policy", "never"]
    return Child(name, command, settings, options.logs / f"{name}.log", options.home)


def _helper(
    options: ServerOptions, environment: Mapping[str, str], name: str, command: list[str]
) -> Child:
    settings = client_environment(options, environment)
    return Child(name, command, settings, options.logs / f"{name}.log", Path(PROJECT))
