"""Base job templates, rendered by the workers' own configuration classes and read by the real clients."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import yaml
from docker.types import HostConfig
from kubernetes_asyncio.client import ApiClient
from prefect.client.schemas.objects import Flow, FlowRun
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from tests.prefect_server import ROOT

TEMPLATES = ROOT / "deployments" / "base-job-templates"


def _rendered(kind: type[BaseJobConfiguration], name: str, **values: Any) -> Any:
    template = json.loads((TEMPLATES / f"{name}-gpu.json").read_text())

    async def render() -> BaseJobConfiguration:
        # no block is referred to, so nobody is asked
        found = await kind.from_template_and_values(template, values, client=object())  # type: ignore[arg-type]
        run = FlowRun(id=uuid4(), name="quantize-1a2b3c4d", flow_id=uuid4())
        found.prepare_for_flow_run(run, flow=Flow(name="stage"), worker_name="worker")
        return found

    return asyncio.run(render())


def test_every_placeholder_has_a_described_variable() -> None:
    for path in sorted(TEMPLATES.glob("*.json")):
        template = json.loads(path.read_text())
        variables = template["variables"]["properties"]
        text = json.dumps(template["job_configuration"])
        placeholders = {part.partition(" }}")[0] for part in text.split("{{ ")[1:]}
        assert placeholders == set(variables), path.name
        assert all(variable["title"] for variable in variables.values())


def test_a_process_gets_the_workers_device_and_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    job = _rendered(ProcessJobConfiguration, "process", env={"A": "1"})
    assert job.env["CUDA_VISIBLE_DEVICES"] == "3"
    assert job.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert job.env["A"] == "1"
    assert job.command.endswith("-m prefect.engine")


def test_a_container_gets_its_gpu_shared_memory_and_the_store() -> None:
    job = _rendered(
        DockerWorkerJobConfiguration, "docker", gpu_ids=["2"], artifact_volume="/mnt/aq"
    )
    assert job.image == "alphaquant:0.1"
    assert job.volumes == ["/mnt/aq:/artifacts"]
    assert job.env["PREFECT_HOME"] == "/var/lib/alphaquant"
    assert not job.privileged
    host = HostConfig(version="1.50", **job.container_create_kwargs)
    assert host["DeviceRequests"] == [
        {
            "Driver": "nvidia",
            "Count": 0,
            "DeviceIDs": ["2"],
            "Capabilities": [["gpu"]],
            "Options": {},
        }
    ]
    assert host["ShmSize"] == 16 * 2**30
    assert host["CapDrop"] == ["ALL"]


def _manifest(**values: Any) -> dict[str, Any]:
    manifest: dict[str, Any] = _rendered(
        KubernetesWorkerJobConfiguration, "kubernetes", **values
    ).job_manifest
    return manifest


FULL = {
    "gpu_count": 2,
    "gpu_product": "NVIDIA-H100-80GB-HBM3",
    "image": "registry.example.org/alphaquant:0.1",
    "artifact_pvc": "artifacts",
    "shm_size": "32Gi",
    "memory_limit": "128Gi",
    "service_account_name": "runs",
    "env": {"ALPHAQUANT_STORE": "s3://bucket/alphaquant"},
}


def test_a_pod_asks_for_gpus_and_mounts_the_store() -> None:
    spec = _manifest(**FULL)["spec"]
    assert spec["backoffLimit"] == 0
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    [container] = pod["containers"]
    assert container["image"] == "registry.example.org/alphaquant:0.1"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2, "memory": "128Gi"}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes[mounts["/artifacts"]] == {"persistentVolumeClaim": {"claimName": "artifacts"}}
    assert volumes[mounts["/dev/shm"]] == {"emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}}
    env = {entry["name"]: entry["value"] for entry in container["env"]}
    assert env["ALPHAQUANT_STORE"] == "s3://bucket/alphaquant"
    assert env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    assert env["PREFECT_HOME"] == "/var/lib/alphaquant"


@pytest.mark.parametrize("values", [{}, FULL], ids=["defaults", "full"])
def test_the_manifest_is_a_job_to_the_python_client(values: dict[str, Any]) -> None:
    manifest = _manifest(**values)

    async def read() -> Any:
        # a field that the client does not know is lost on the way
        async with ApiClient() as client:
            answer = SimpleNamespace(data=json.dumps(manifest))
            return client.sanitize_for_serialization(client.deserialize(answer, "V1Job"))

    assert _comparable(asyncio.run(read())) == _comparable(manifest)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("values", [{}, FULL], ids=["defaults", "full"])
def test_the_manifest_is_a_job_to_kubectl(values: dict[str, Any]) -> None:
    manifest = _manifest(**values)
    # works offline: kubectl reads the job into its own types, which refuses wrong types and drops unknown fields
    ended = subprocess.run(
        ["kubectl", "set", "env", "--local", "--output=yaml", "--filename=-", "CHECKED=1"],
        input=json.dumps(manifest),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    read = yaml.safe_load(ended.stdout)
    [container] = read["spec"]["template"]["spec"]["containers"]
    assert container["env"].pop() == {"name": "CHECKED", "value": "1"}
    assert _comparable(read) == _comparable(manifest)


def _comparable(manifest: dict[str, Any]) -> Any:
    """A manifest with quantities as text, which is how clients write them."""
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    limits["nvidia.com/gpu"] = str(limits["nvidia.com/gpu"])
    return _without_empty(manifest)


def _without_empty(value: Any) -> Any:
    """Without what stands for nothing: null, {} and []."""
    if isinstance(value, dict):
        kept = {name: _without_empty(part) for name, part in value.items()}
        return {name: part for name, part in kept.items() if part not in (None, {}, [])}
    return [_without_empty(part) for part in value] if isinstance(value, list) else value
