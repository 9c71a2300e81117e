"""Dockerfile, compose file, units and Prefect files: they agree with each other and with the commands we have."""

from __future__ import annotations

import configparser
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow

from alphaquant.config.file import load_config, parse_config
from alphaquant.config.recipes import RecipeName
from flows.cli import build_parser
from tests.prefect_server import ROOT

FOLDER = ROOT / "deployments"
UNITS = ["alphaquant-gpu@.service", "alphaquant-server.service"]


def _yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


def _server_arguments(command: str) -> Any:
    """The command line, parsed by the command itself."""
    program, *arguments = shlex.split(command)
    assert Path(program).name == "alphaquant"
    return build_parser(arguments).parse_args(arguments)


@pytest.mark.parametrize(
    ("file", "deployed"),
    [
        (
            "prefect.yaml",
            [
                *(f"quantize-model/{name} cpu" for name in ("run", "balanced", "best")),
                *("sweep/run cpu", "experiment/run cpu", "stage/gpu gpu"),
            ],
        ),
        ("deployments/prefect-docker.yaml", ["stage/gpu-docker gpu-docker"]),
        ("deployments/prefect-kubernetes.yaml", ["stage/gpu-kubernetes gpu-kubernetes"]),
    ],
)
def test_entrypoints_are_flows_that_can_be_imported(file: str, deployed: list[str]) -> None:
    found = []
    for deployment in _yaml(file)["deployments"]:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        found.append(f"{flow.name}/{deployment['name']} {deployment['work_pool']['name']}")
    assert found == deployed


@pytest.mark.parametrize("name", ["balanced", "best"])
def test_a_recipe_has_a_deployment_whose_form_is_filled_in_with_it(name: RecipeName) -> None:
    [found] = [d for d in _yaml("prefect.yaml")["deployments"] if d["name"] == name]
    pool = ["execution.where=pool"]
    assert parse_config(found["parameters"]["config"]) == load_config(None, pool, name)


def test_job_variables_exist_in_the_pools_templates() -> None:
    for kind in ("docker", "kubernetes"):
        [deployment] = _yaml(f"deployments/prefect-{kind}.yaml")["deployments"]
        template = _yaml(f"deployments/base-job-templates/{kind}-gpu.json")
        assert deployment["work_pool"]["job_variables"].keys() <= set(
            template["variables"]["properties"]
        )


def test_compose_publishes_on_this_machine_only_and_wants_passwords() -> None:
    services = _yaml("deployments/compose.yaml")["services"]
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:4200:4200"]
    text = (FOLDER / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == set(
        re.findall(r"^(\w+)=$", (FOLDER / "compose.env.example").read_text(), re.MULTILINE)
    )
    assert not re.findall(r"\$\{\w+\}", text)  # without a value, compose refuses
    assert "PREFECT_SERVER_API_AUTH_STRING" in services["server"]["environment"]
    for worker in ("cpu-worker", "gpu-worker"):
        assert "PREFECT_API_AUTH_STRING" in services[worker]["environment"]


def test_compose_services_can_write_only_to_volumes_that_exist() -> None:
    compose = _yaml("deployments/compose.yaml")
    for name, service in compose["services"].items():
        volumes = dict(volume.split(":") for volume in service["volumes"])
        assert volumes.keys() <= compose["volumes"].keys()
        if name == "postgres":
            continue
        assert service["read_only"]
        home = _server_arguments(service["command"]).home
        assert any(home.is_relative_to(place) for place in volumes.values())


def test_compose_starts_the_commands_we_have() -> None:
    services = _yaml("deployments/compose.yaml")["services"]
    server, cpu, gpu = (
        _server_arguments(services[name]["command"])
        for name in ("server", "cpu-worker", "gpu-worker")
    )
    assert (server.host, server.join, server.gpus, server.cpu_workers) == ("0.0.0.0", None, "0", 0)
    assert cpu.join == gpu.join == "http://server:4200/api"
    assert (cpu.gpus, cpu.cpu_workers) == ("0", 1)
    assert (gpu.gpus, gpu.cpu_workers) == ("auto", None)
    [device] = services["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def _unit(name: str) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(FOLDER / name)
    return parser["Service"]


@pytest.mark.parametrize("name", UNITS)
def test_units_tell_the_command_alone_to_stop_and_give_it_time(name: str) -> None:
    unit = _unit(name)
    assert (unit["KillMode"], unit["KillSignal"]) == ("mixed", "SIGTERM")
    assert int(unit["TimeoutStopSec"]) >= 30 + 2 * 10  # flow runs, workers, server
    assert _server_arguments(unit["ExecStart"]).gpus in ("auto", "0")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_accepts_the_units(name: str, tmp_path: Path) -> None:
    program = tmp_path / "alphaquant"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = (FOLDER / name).read_text()
    installed = _unit(name)["ExecStart"].split()[0]
    unit = tmp_path / name
    unit.write_text(text.replace(installed, str(program)))
    ended = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_image_holds_what_is_copied_and_does_not_run_as_root() -> None:
    lines = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text()).splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    known = {"FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "STOPSIGNAL", "CMD"}
    assert {name for name, _ in steps} == known
    copied = [name for step, rest in steps if step == "COPY" for name in rest.split()[:-1]]
    kept = re.findall(r"^!(.+)$", (FOLDER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(copied) == sorted(kept)
    assert all((ROOT / name).exists() for name in copied)
    assert [rest for step, rest in steps if step == "USER"] == ["10001:10001"]
    settings = dict(
        pair.split("=", 1) for step, rest in steps if step == "ENV" for pair in rest.split()
    )
    volumes = next(yaml.safe_load(rest) for step, rest in steps if step == "VOLUME")
    places = ("/tmp/", *volumes)
    for name in (
        "ALPHAQUANT_STORE",
        "ALPHAQUANT_HOME",
        "HOME",
        "PREFECT_HOME",
        "PREFECT_UI_STATIC_DIRECTORY",
    ):
        assert settings[name].startswith(places), name
