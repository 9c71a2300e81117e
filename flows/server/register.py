"""Make the work pools and the crash detection on a Prefect server; what is there already stays as it is.

    PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.server.register

Runs as a process of its own, so that whoever waits for it need not load Prefect.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectAlreadyExists

from flows.server.options import PROJECT

_POOLS = {"cpu": 16, "gpu": 64}
"""Flow runs at once over all machines; change it in the UI. Per GPU, `--limit 1` of its worker counts."""
_AUTOMATION = "alphaquant-crash-detection"


def register(client: SyncPrefectClient) -> None:
    """Make what is missing; bring the crash detection up to date."""
    template = read_deployment_file("base-job-templates/process-gpu.json")
    for name, limit in _POOLS.items():
        pool = WorkPoolCreate(
            name=name, type="process", concurrency_limit=limit, base_job_template=template
        )
        try:
            client.create_work_pool(pool)
        except ObjectAlreadyExists:
            continue
    wanted = AutomationCore.model_validate(read_deployment_file("crash-detection.json"))
    found = client.read_automations_by_name(wanted.name)
    if not found:
        client.create_automation(wanted)
    for automation in found[:1]:
        client.update_automation(automation.id, wanted)
    for twin in found[1:]:
        client.delete_automation(twin.id)


def read_deployment_file(name: str) -> dict[str, Any]:
    """A JSON file of `deployments/`."""
    path: Path = PROJECT / "deployments" / name
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    with get_client(sync_client=True) as client:
        register(client)
