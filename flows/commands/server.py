"""`alphaquant server`: a Prefect server with pools, deployments and workers on this machine, in one command."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from alphaquant.errors import ConfigError, UserError
from alphaquant.store.whole import check_writable
from flows.commands.options import Verbs, add_store, add_verb
from flows.preflight import open_store
from flows.server.options import CLIENT_AUTH, DATABASE, SERVER_AUTH, ServerOptions, check, devices
from flows.server.supervise import Supervisor

_EXAMPLE = """  alphaquant server
  alphaquant server --store /mnt/alphaquant --gpus 0,1
  PREFECT_SERVER_API_AUTH_STRING=admin:secret alphaquant server --host 0.0.0.0
  PREFECT_API_AUTH_STRING=admin:secret alphaquant server --join http://head:4200/api --store /mnt/alphaquant"""
_HOST, _PORT = "127.0.0.1", 4200


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "server", _EXAMPLE)
    parser.add_argument("--host", help=f"address to listen on ({_HOST})")
    parser.add_argument("--port", type=int, help=f"port to listen on ({_PORT})")
    parser.add_argument(
        "--database",
        metavar="URL",
        help=f"PostgreSQL instead of SQLite ({DATABASE}, else a file below --home)",
    )
    parser.add_argument(
        "--gpus", default="auto", help="auto, a number of GPUs, or devices such as 0,1 (auto)"
    )
    parser.add_argument("--cpu-workers", type=int, metavar="N", help="(1; with --join 0)")
    add_store(parser)
    parser.add_argument(
        "--home",
        type=Path,
        default=Path("~/.alphaquant/server"),
        metavar="DIR",
        help="database and logs (~/.alphaquant/server)",
    )
    parser.add_argument(
        "--join", metavar="URL", help="start workers only, for the server at URL (ends in /api)"
    )
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Serve until a signal comes. SIGTERM ends it with status 0, Ctrl-C with 130."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    wanted = options_of(options)
    check(wanted, os.environ)
    with _alone(wanted.home):
        if "" in wanted.gpus:
            console.print("gpus      none found: the worker of the pool gpu computes on the CPU")
        supervisor = Supervisor(wanted, os.environ, console.print)
        number = supervisor.run(welcome(wanted))
    console.print("stopped   finished stages and blocks, and the history, are kept")
    if number == signal.SIGINT:
        raise KeyboardInterrupt


def options_of(options: argparse.Namespace) -> ServerOptions:
    """The command line as a request. Raises ConfigError for options that exclude each other."""
    if options.join:
        for name in ("host", "port", "database"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"--{name} is the server's; --join starts workers only. Leave one out."
                )
    workers = options.cpu_workers
    if workers is not None and workers < 0:
        raise ConfigError(f"--cpu-workers {workers} is negative; allowed: 0 and more")
    port = _PORT if options.port is None else options.port
    if not 0 < port < 65536:
        raise ConfigError(f"--port {port} is not a port; allowed: 1 to 65535")
    return ServerOptions(
        host=options.host or _HOST,
        port=port,
        home=options.home.expanduser().absolute(),
        store=open_store(options.store).location,
        gpus=devices(options.gpus, os.environ),
        cpu_workers=(0 if options.join else 1) if workers is None else workers,
        database=options.database or os.environ.get(DATABASE),
        joins=options.join,
    )


def welcome(wanted: ServerOptions) -> str:
    """What to do next."""
    lines = [f"logs          {wanted.logs}", f"store         {wanted.store}", "Ctrl-C stops", ""]
    if wanted.joins:
        return "\n".join(lines)
    settings = f"PREFECT_API_URL={wanted.api_url}"
    if os.environ.get(SERVER_AUTH):
        settings += f" {CLIENT_AUTH}=..."
    command = f"{settings} alphaquant run --store {wanted.store} --set execution.where=pool"
    ways = [
        f"Prefect UI    {wanted.url}",
        f"start a run   there (Deployments, Run), or: {command}",
    ]
    return "\n".join(["", *ways, *lines])


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the folder: two servers on one database would lose each other's work."""
    check_writable(home, "--home")
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise UserError(
                f"process {lock.read() or '?'} serves from {home} already. Stop it, or choose another --home "
                "and --port."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
