"""Run manifests as they are read back: checked, so that a torn or foreign file is said to be one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.runs import load_run, run_ids


class StageEntry(BaseModel):
    """What happened to one stage in a run."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: str
    reason: str
    seconds: float
    key: str = ""
    host: str | None = None
    device: str | None = None

    @property
    def where(self) -> str:
        """Device and host of the computation; empty for a stage that was not computed."""
        return f"{self.device or 'cpu'} on {self.host}" if self.host else ""


class RunManifest(BaseModel):
    """What a run was told, what it did and how it ended."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    run_id: str
    status: str
    model: str
    stages: list[StageEntry]
    started: str | None = None
    model_ref: dict[str, Any] = {}
    config: dict[str, Any] = {}
    refs: dict[str, ArtifactRef] = {}
    environment: dict[str, str] = {}
    tags: list[str] = []
    bits_per_weight: float | None = None
    scores: dict[str, Any] = {}
    error: str | None = None
    stage_at_work: str | None = None

    def stage(self, name: str) -> StageEntry | None:
        """A stage's entry; None when the run did not come to it."""
        return next((entry for entry in self.stages if entry.name == name), None)


def read_run(store: ArtifactStore, run_id: str) -> RunManifest:
    """One run's manifest, named as in `load_run`. Raises UserError, also for a torn one."""
    raw = load_run(store, run_id)
    try:
        return RunManifest.model_validate(raw)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UserError(
            f"the manifest of run {run_id} in {store.location} is damaged at {where}; other runs can be read"
        ) from error


def recent_runs(store: ArtifactStore, count: int) -> tuple[list[RunManifest], list[str]]:
    """The newest runs, newest first, and the ids of those among them whose manifest is damaged."""
    newest = run_ids(store)[:count]
    found, damaged = [], []
    for run_id, raw in zip(
        newest, store.read_many(f"runs/{name}.json" for name in newest), strict=True
    ):
        try:
            found.append(RunManifest.model_validate(raw))
        except ValidationError:
            damaged.append(run_id)
    return found, damaged
