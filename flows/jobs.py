"""A job: one stage with its inputs, written into the store by the run that wants it and read by a worker.

Prefect carries the job's name only. The worker looks the inputs up again on its own machine and refuses to
compute when it sees another model, another file or other code than the run did.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import alphaquant.errors
import flows.dag
from alphaquant.config.section import Section
from alphaquant.errors import AlphaQuantError, DataError, ModelError, StoreError
from alphaquant.models.resolve import ModelRef, resolve_model
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.records import explain, key_of
from alphaquant.store.stage import Stage
from flows.contents import file_digests
from flows.experiment_dag import STAGES

_MARK = "!"
_KINDS: tuple[type[BaseModel], ...] = (ArtifactRef, ModelRef, *Section.__subclasses__())
_MODELS = {kind.__name__: kind for kind in _KINDS}


@dataclass(frozen=True)
class Job:
    """A stage and the inputs it is to be computed for."""

    stage: Stage
    inputs: dict[str, Any]


def write_job(store: ArtifactStore, stage: Stage, inputs: Mapping[str, Any]) -> str:
    """Put a job into the store; returns its key, which is that of the result."""
    ingredients = stage.ingredients(inputs)
    key = key_of(ingredients)
    job = {"stage": stage.name, "inputs": encoded(dict(inputs)), "ingredients": ingredients}
    store.write_json(f"jobs/{stage.name}-{key}.json", job)
    return key


def read_job(store: ArtifactStore, stage: str, key: str) -> Job:
    """The job of a key, with inputs as this machine has them.

    Raises StoreError when the store does not hold it or this machine's code differs, ModelError and
    DataError when a model or a file is not the one the run saw.
    """
    told = store.read_json(f"jobs/{stage}-{key}.json")
    if not isinstance(told, dict):
        raise StoreError(
            f"the store {store.location} of this worker holds no job {stage} {key}. Run and worker need one "
            "store: set ALPHAQUANT_STORE to the same folder or URL on both."
        )
    job = Job(_stage_named(stage), decoded(told["inputs"], store.root / "cache" / "models.json"))
    _check_files(job.inputs.get("files"))
    ingredients = job.stage.ingredients(job.inputs)
    if key_of(ingredients) != key:
        raise StoreError(
            f"this worker would compute something else than stage {stage} of the run "
            f"({explain(told['ingredients'], ingredients)}). Install the same version on both."
        )
    return job


def _stage_named(name: str) -> Stage:
    """A stage of runs or of experiments."""
    found: Stage = STAGES[name] if name in STAGES else getattr(flows.dag, name)
    return found


def write_failure(
    store: ArtifactStore, stage: str, key: str, run: str, error: BaseException
) -> None:
    """Leave word of why a job failed, for the run that waits for it. `run` is the job's flow run."""
    told = {"run": run, "type": type(error).__name__, "message": str(error)}
    with contextlib.suppress(AlphaQuantError, OSError):
        store.write_json(f"jobs/{stage}-{key}.failed.json", told)


def read_failure(store: ArtifactStore, stage: str, key: str, run: str) -> AlphaQuantError | None:
    """The error of ours that a job ended with, as the worker raised it; None for any other ending."""
    told = store.read_json(f"jobs/{stage}-{key}.failed.json")
    if not isinstance(told, dict) or told.get("run") != run:
        return None
    kind = getattr(alphaquant.errors, str(told.get("type")), None)
    if not (isinstance(kind, type) and issubclass(kind, AlphaQuantError)):
        return None
    return kind(f"{told.get('message')} (stage {stage}, on a worker)")


def encoded(value: Any) -> Any:
    """An input as JSON that tells the types of references and config sections."""
    if isinstance(value, BaseModel):
        return {f"{_MARK}{type(value).__name__}": value.model_dump(mode="json")}
    if isinstance(value, dict):
        return {name: encoded(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(part) for part in value]
    return value


def decoded(value: Any, digests: Path | None = None) -> Any:
    """The input that `encoded` was given; models are looked up anew.

    `digests` is a file that remembers the sums of model files, so that not every job reads them.
    """
    if isinstance(value, list):
        return [decoded(part, digests) for part in value]
    if not isinstance(value, dict):
        return value
    name = next(iter(value), "")
    kind = _MODELS.get(name.removeprefix(_MARK)) if name.startswith(_MARK) else None
    if len(value) == 1 and kind is not None:
        found = kind.model_validate(value[name])
        return _found_here(found, digests) if isinstance(found, ModelRef) else found
    return {name: decoded(part, digests) for name, part in value.items()}


def _found_here(wanted: ModelRef, digests: Path | None) -> ModelRef:
    here = resolve_model(wanted.source, digests)
    if here.digest != wanted.digest:
        raise ModelError(
            f"{here.path} holds other files on this worker than on the machine that started the run. "
            "Give both the same model: a shared folder, or a hub id with model.revision."
        )
    return here


def _check_files(wanted: Any) -> None:
    # files that belong to a task are named after it; what is no file itself is skipped by file_digests
    found = file_digests(wanted or {})
    for name, digest in (wanted or {}).items():
        if found.get(name) != digest:
            raise DataError(
                f"the file {name} is missing on this worker, or differs from the one the run saw. Put "
                "texts and tasks on a disk that both share."
            )
