"""What `alphaquant server` is asked for, checked before anything starts, and the environments that follow."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from alphaquant.errors import ConfigError, UserError
from alphaquant.store.whole import check_writable
from flows.prefect_settings import DEFAULTS
from flows.preflight import open_store

PROJECT = Path(__file__).parents[2]
"""The folder with `prefect.yaml` and `deployments/`, when AlphaQuant runs from a checkout."""
SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT_AUTH = "PREFECT_API_AUTH_STRING"
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
_DATABASES = ("sqlite+aiosqlite", "postgresql+asyncpg")
_MOST_GPUS = 64
# each of these would send the children to another server than ours
_FOREIGN = ("PREFECT_PROFILE", "PREFECT_API_KEY", "PREFECT_SERVER_API_BASE_PATH")


@dataclass(frozen=True)
class ServerOptions:
    """A checked request. `joins` is the API of a server elsewhere; then only workers start here."""

    host: str
    port: int
    home: Path
    store: str
    gpus: tuple[str, ...]
    """One worker each; empty strings stand for a worker without a GPU."""
    cpu_workers: int
    database: str | None = None
    joins: str | None = None

    @property
    def url(self) -> str:
        """Where the UI is, seen from this machine."""
        if self.joins:
            return self.joins.removesuffix("/api")
        seen = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{seen}]' if ':' in seen else seen}:{self.port}"

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL must be."""
        return f"{self.url}/api"

    @property
    def logs(self) -> Path:
        """Where each process's output goes."""
        return self.home / "logs"


def check(options: ServerOptions, environment: Mapping[str, str]) -> None:
    """Raise UserError for the first thing that would fail or be unsafe later; starts nothing."""
    check_writable(options.home, "--home")
    store = open_store(options.store)
    if "://" not in options.store:
        check_writable(store.root, "--store")
    if options.joins:
        _check_address(options.joins)
        return
    _check_password(options.host, environment)
    _check_database(options.database)
    for name in ("prefect.yaml", "deployments"):
        if not (PROJECT / name).exists():
            raise ConfigError(
                f"{PROJECT / name} does not exist: the deployments are part of AlphaQuant's source folder, not of "
                "an installed package. Run `alphaquant server` from a checkout that is installed with "
                "`pip install -e .`, or start workers only with --join."
            )
    check_port(options.host, options.port)


def check_port(host: str, port: int) -> None:
    """Raise UserError unless the server can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ConfigError(
            f"--host {host} is no address of this machine ({error.strerror})"
        ) from error
    with socket.socket(family, kind) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(address)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port} ({error.strerror}). Another server may run there: stop it, or "
                "choose another --port."
            ) from error


def devices(wanted: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    """What `--gpus` means here: a device for each GPU worker, an empty string for a worker without one."""
    if wanted == "auto":
        return visible_gpus(environment) or ("",)
    if wanted.isdigit() and int(wanted) <= _MOST_GPUS:
        return tuple(str(index) for index in range(int(wanted)))
    names = wanted.split(",")
    if len(names) > 1 and all(re.fullmatch(r"[A-Za-z0-9/:-]+", name) for name in names):
        return tuple(names)
    raise ConfigError(
        f"--gpus {wanted!r} is not known; allowed: auto (every GPU of this machine, or those of "
        "CUDA_VISIBLE_DEVICES), a number of GPUs such as 2, or devices such as 0,1"
    )


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Devices that CUDA would show, asked without loading torch."""
    shown = environment.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return tuple(name for name in shown.split(",") if name not in ("", "-1"))
    if not (program := shutil.which("nvidia-smi")):
        return ()
    asked = [program, "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    if answer.returncode:
        return ()
    return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip().isdigit())


def client_environment(options: ServerOptions, environment: Mapping[str, str]) -> dict[str, str]:
    """For whatever talks to the server: its address and password, and none of another server's."""
    made = {name: value for name, value in environment.items() if name not in _FOREIGN}
    made = DEFAULTS | made | {"PREFECT_API_URL": options.api_url, "PREFECT_HOME": str(options.home)}
    if not options.joins and (password := environment.get(SERVER_AUTH)):
        made[CLIENT_AUTH] = password
    # a checkout that is not installed must be importable in every folder
    paths = [str(PROJECT), *filter(None, [environment.get("PYTHONPATH")])]
    return made | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def server_environment(options: ServerOptions, environment: Mapping[str, str]) -> dict[str, str]:
    """For the server itself."""
    made = client_environment(options, environment) | {
        "PREFECT_SERVER_API_HOST": options.host,
        "PREFECT_SERVER_API_PORT": str(options.port),
    }
    # relative, so that the UI works under every name, port and tunnel through which a browser reaches it
    made.setdefault("PREFECT_UI_API_URL", "/api")
    made.setdefault("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "false")
    # its default is Prefect's own folder, which may be read-only and which other servers write to
    made.setdefault("PREFECT_UI_STATIC_DIRECTORY", str(options.home / "ui"))
    if options.database:
        made[DATABASE] = options.database
    return made


def worker_environment(
    options: ServerOptions, environment: Mapping[str, str], gpu: str | None
) -> dict[str, str]:
    """For a worker and the flow runs it starts; `gpu` is the device that is its own."""
    made = client_environment(options, environment) | {
        "ALPHAQUANT_STORE": options.store,
        "ALPHAQUANT_HOME": environment.get("ALPHAQUANT_HOME") or str(Path.cwd()),
    }
    made.setdefault("PREFECT_WORKER_QUERY_SECONDS", "2")
    if gpu is None:
        made["CUDA_VISIBLE_DEVICES"] = ""
    elif gpu:
        made |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu}
    return made


def prefect(*arguments: str) -> list[str]:
    """Prefect's command, of the Python that runs us."""
    return [sys.executable, "-m", "prefect", *arguments]


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path != "/api":
        raise ConfigError(f"--join {url!r} is not a server's API, such as http://head:4200/api")


def _check_password(host: str, environment: Mapping[str, str]) -> None:
    password = environment.get(SERVER_AUTH, "")
    if password and ":" not in password:
        raise ConfigError(f"{SERVER_AUTH} has no colon; it must be user:password")
    if not password and not _is_loopback(host):
        raise UserError(
            f"--host {host} lets other machines reach the server, and anybody who does can run code here. "
            f"Set {SERVER_AUTH}=user:password first (clients then set {CLIENT_AUTH} to the same), or stay on "
            "127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_database(url: str | None) -> None:
    if url is None:
        return
    scheme, found, _ = url.partition("://")
    if scheme not in _DATABASES:
        # the rest may hold a password
        what = f"of the kind {scheme!r}" if found else "is no URL"
        raise ConfigError(
            f"--database {what}; allowed: postgresql+asyncpg://user:password@host/name and "
            "sqlite+aiosqlite:///FILE"
        )
