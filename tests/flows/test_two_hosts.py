"""Two machines without a shared disk: a server and a store in a bucket, a worker on each, one sweep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from flows.devices import PRETENDED
from tests.flows.fakes import make_model_folder
from tests.flows.hosts import PYTHON, Host, can_make_hosts, two_hosts
from tests.flows.pool import COMMAND, DEPLOY
from tests.prefect_server import clean_environment

pytestmark = [
    pytest.mark.prefect,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts(), reason="needs root and network namespaces"),
]

BUDGETS = (3, 4, 5, 6, 7, 8)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="module")
def told(hosts: tuple[Host, Host]) -> dict[str, Any]:
    """The summary of the sweep, and the manifests of its runs."""
    near = hosts[0]
    s3, server = f"http://{near.address}:5000", f"http://{near.address}:4200"
    environment = clean_environment() | {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PREFECT_API_URL": f"{server}/api",
        "PREFECT_API_AUTH_STRING": "admin:secret",
        "PREFECT_SERVER_API_AUTH_STRING": "admin:secret",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PYTHONWARNINGS": "ignore",
        "ALPHAQUANT_STORE": "s3://artifacts/shared",
    }
    make_model_folder(near.folder / "model")
    near.start([PYTHON, "-m", "moto.server", "-H", near.address, "-p", "5000"], environment)
    near.start(
        [PYTHON, "-m", "prefect", "server", "start"],
        _of(near, environment)
        | {
            "PREFECT_SERVER_API_HOST": near.address,
            "PREFECT_UI_API_URL": f"{server}/api",
            "PREFECT_SERVER_UI_ENABLED": "false",
        },
    )
    near.wait_for(f"{s3}/moto-api/")
    bucket = (
        f"import boto3; boto3.client('s3', endpoint_url='{s3}').create_bucket(Bucket='artifacts')"
    )
    near.run([PYTHON, "-c", bucket], environment | {"AWS_DEFAULT_REGION": "us-east-1"})
    near.wait_for(f"{server}/api/health")
    create = ["work-pool", "create", "gpu", "--type", "process"]
    near.run([PYTHON, "-m", "prefect", *create], _of(near, environment))
    near.run([PYTHON, "-c", DEPLOY], _of(near, environment))
    worker = [PYTHON, "-m", "prefect", "worker", "start", "--pool", "gpu", "--limit", "1"]
    for host in hosts:
        settings = {PRETENDED: f"gpu-of-{host.name[-1]}", "FAKE_SECONDS": "1"}
        host.start([*worker, "--name", host.name], _of(host, environment) | settings)
    over = f"allocation.target_bits={','.join(map(str, BUDGETS))}"
    sweep = ["sweep", "--model", "model", "--over", over, "--set", "execution.where=pool"]
    said = near.run(
        [PYTHON, "-c", COMMAND, *sweep, "--out", "sweep", "--json"], _of(near, environment)
    )
    runs = sorted((near.folder / "sweep").glob("*/summary.json"))
    return {"sweep": json.loads(said), "runs": [json.loads(path.read_text()) for path in runs]}


def _of(host: Host, environment: dict[str, str]) -> dict[str, str]:
    """The environment with a home and a cache that only this host has."""
    own = host.folder / f"{host.name}-home"
    own.mkdir(exist_ok=True)
    return environment | {"PREFECT_HOME": str(own), "ALPHAQUANT_CACHE": str(own / "cache")}


def _ran(told: dict[str, Any], name: str) -> list[dict[str, Any]]:
    entries = (stage for run in told["runs"] for stage in run["stages"] if stage["name"] == name)
    return [stage for stage in entries if stage["state"] == "ran"]


def test_every_point_completes(told: dict[str, Any]) -> None:
    assert [point["bits_per_weight"] for point in told["sweep"]["points"]] == list(BUDGETS)
    assert {run["status"] for run in told["runs"]} == {"completed"}


def test_both_hosts_work(told: dict[str, Any]) -> None:
    places = {(stage["host"][-1], stage["device"]) for stage in _ran(told, "quantize")}
    assert places == {("a", "gpu-of-a"), ("b", "gpu-of-b")}


def test_common_stages_are_computed_once(told: dict[str, Any]) -> None:
    for name in ("calibration", "baseline", "answers", "alpha", "sensitivity"):
        assert len(_ran(told, name)) == 1, name
    assert len(_ran(told, "quantize")) == len(BUDGETS)


def test_common_blocks_are_computed_once(told: dict[str, Any]) -> None:
    ran = sum(run["blocks"]["ran"] for run in told["runs"])
    cached = sum(run["blocks"]["cached"] for run in told["runs"])
    # of four blocks, the first two depend on no budget
    assert (ran, cached) == (2 + 2 * len(BUDGETS), 2 * (len(BUDGETS) - 1))


def test_a_host_holds_what_it_used_and_no_more(
    told: dict[str, Any], hosts: tuple[Host, Host]
) -> None:
    far = hosts[1]
    kinds = {path.parts[-3] for path in far.folder.glob(f"{far.name}-home/cache/*/objects/*/*/*")}
    assert "quantize-block" in kinds
    assert "export" not in kinds or "evaluate" in kinds
    assert "analyze" not in kinds
