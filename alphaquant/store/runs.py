"""Run manifests: what each run was told, what it did and why, and how it ended.

`runs/<run_id>.json`; the record that survives a lost Prefect database.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from datetime import UTC, datetime
from typing import Any

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactStore


def new_run_id() -> str:
    """Sortable by time, unique between machines."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}{secrets.token_hex(2)}"


def save_run(store: ArtifactStore, manifest: dict[str, Any]) -> None:
    """Write a run's manifest, whole."""
    store.write_json(f"runs/{manifest['run_id']}.json", manifest)


def run_ids(store: ArtifactStore) -> list[str]:
    """All runs, newest first."""
    return sorted(store.names("runs"), reverse=True)


def load_run(store: ArtifactStore, run_id: str) -> dict[str, Any]:
    """One run's manifest. Raises UserError.

    `run_id` may be the beginning of an id, `last`, or `last~1` for the run before the last.
    """
    known = run_ids(store)
    matches = [name for name in known if name.startswith(run_id)]
    if back := re.fullmatch(r"last(?:~(\d{1,9}))?", run_id):
        matches = known[int(back[1] or 0) :][:1]
    if len(matches) != 1:
        found = "no run" if not matches else f"{len(matches)} runs"
        hint = f"the newest: {', '.join(known[:3])}" if known else "the store holds no runs yet"
        raise UserError(f"{run_id!r} names {found} of {store.location}; {hint}")
    manifest = store.read_json(f"runs/{matches[0]}.json")
    if not isinstance(manifest, dict):
        raise UserError(f"the manifest of run {matches[0]} in {store.location} cannot be read")
    if manifest.get("status") == "running" and not at_work(manifest):
        manifest["status"] = "killed"
    return manifest


def at_work(manifest: dict[str, Any]) -> bool:
    """Whether a run has not ended. One of another machine is believed; here, its process must live."""
    if manifest.get("status") != "running":
        return False
    if manifest.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(manifest["process"]), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, KeyError):
        return False
    return True
