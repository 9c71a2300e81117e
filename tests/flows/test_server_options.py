"""What `alphaquant server` refuses before anything starts, and what its children are given."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from alphaquant.errors import UserError
from flows.server import options as module
from flows.server.options import (
    ServerOptions,
    check,
    client_environment,
    devices,
    server_environment,
    worker_environment,
)
from tests.flows.conftest import Cli
from tests.prefect_server import free_port


def _options(folder: Path, **changes: object) -> ServerOptions:
    usual = {
        "host": "127.0.0.1",
        "port": 4200,
        "home": folder / "home",
        "store": str(folder / "store"),
        "gpus": ("",),
        "cpu_workers": 1,
    }
    return ServerOptions(**(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("auto", ("0", "3")),
        ("0", ()),
        ("2", ("0", "1")),
        ("0,2", ("0", "2")),
        ("GPU-1a,MIG-2b/3", ("GPU-1a", "MIG-2b/3")),
    ],
)
def test_gpus_are_a_number_or_names_or_what_cuda_would_show(
    wanted: str, found: tuple[str, ...]
) -> None:
    assert devices(wanted, {"CUDA_VISIBLE_DEVICES": "0,3"}) == found


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_machine_without_gpus_gets_one_worker_for_gpu_stages(visible: str) -> None:
    assert devices("auto", {"CUDA_VISIBLE_DEVICES": visible}) == ("",)


def test_all_gpus_of_the_machine_are_found_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert devices("auto", {}) == ("0", "1")
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert devices("auto", {}) == ("",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "many"], "--gpus 'many' is not known; allowed: auto"),
        (["--gpus", "0,"], "--gpus '0,' is not known"),
        (["--cpu-workers", "-1"], "--cpu-workers -1 is negative"),
        (["--port", "0"], "--port 0 is not a port"),
        (["--host", "0.0.0.0"], "Set PREFECT_SERVER_API_AUTH_STRING=user:password first"),
        (["--host", "head"], "anybody who does can run code here"),
        (
            ["--database", "postgresql://u:secret@h/d"],
            "--database of the kind 'postgresql'; allowed",
        ),
        (["--database", "u:secret@h/d"], "--database is no URL; allowed: postgresql+asyncpg"),
        (["--join", "http://head:4200"], "is not a server's API, such as http://head:4200/api"),
        (["--join", "http://head:4200/api", "--port", "4300"], "--port is the server's"),
    ],
)
def test_what_would_fail_later_is_refused_with_what_to_do(
    cli: Cli, tmp_path: Path, arguments: list[str], message: str
) -> None:
    ending = cli("server", "--home", str(tmp_path / "home"), *arguments)
    assert ending.status == 2
    assert message in ending.stderr
    assert "secret" not in ending.stderr
    assert not (tmp_path / "home").exists()


def test_a_password_without_a_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be user:password"):
        check(_options(tmp_path), {"PREFECT_SERVER_API_AUTH_STRING": "secret"})


def test_a_password_opens_other_addresses(tmp_path: Path) -> None:
    wanted = _options(tmp_path, host="0.0.0.0", port=free_port())
    check(wanted, {"PREFECT_SERVER_API_AUTH_STRING": "user:password"})


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port} .*in use"):
            check(_options(tmp_path, port=port), {})


def test_an_installed_package_lacks_the_deployments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROJECT", tmp_path)
    with pytest.raises(UserError, match=r"prefect\.yaml does not exist.*--join"):
        check(_options(tmp_path, port=free_port()), {})
    check(_options(tmp_path, joins="http://head:4200/api"), {})


def test_children_talk_to_our_server_and_to_no_other(tmp_path: Path) -> None:
    users = {
        "PREFECT_API_URL": "https://elsewhere/api",
        "PREFECT_API_KEY": "key",
        "PREFECT_PROFILE": "work",
        "PREFECT_SERVER_API_AUTH_STRING": "user:password",
    }
    made = client_environment(_options(tmp_path, port=4321), users)
    assert made["PREFECT_API_URL"] == "http://127.0.0.1:4321/api"
    assert made["PREFECT_API_AUTH_STRING"] == "user:password"
    assert made["DO_NOT_TRACK"] == "1"
    assert not {"PREFECT_API_KEY", "PREFECT_PROFILE"} & made.keys()


def test_the_ui_asks_where_it_came_from_unless_the_user_knows_better(tmp_path: Path) -> None:
    wanted = _options(tmp_path, host="0.0.0.0", port=4321)
    assert server_environment(wanted, {})["PREFECT_UI_API_URL"] == "/api"
    made = server_environment(wanted, {"PREFECT_UI_API_URL": "https://aq.example.org/api"})
    assert made["PREFECT_UI_API_URL"] == "https://aq.example.org/api"


def test_a_gpu_is_seen_by_its_worker_alone(tmp_path: Path) -> None:
    wanted = _options(tmp_path)
    seen = [worker_environment(wanted, {}, gpu)["CUDA_VISIBLE_DEVICES"] for gpu in ("3", None)]
    assert seen == ["3", ""]
    assert worker_environment(wanted, {}, "3")["ALPHAQUANT_STORE"] == str(tmp_path / "store")
