"""What lies in a store in a bucket, found by a few listings and not by a question for each artifact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, TypeAlias

from alphaquant.errors import UserError
from alphaquant.store.artifacts import ArtifactRef
from alphaquant.store.bucket import Entry
from alphaquant.store.files import parse_json
from alphaquant.store.inspection import folder_of
from alphaquant.store.records import KeyRecord, load_record
from alphaquant.store.remote import RemoteStore
from alphaquant.upkeep.consequences import Name
from alphaquant.upkeep.inventory import QUARANTINE
from alphaquant.upkeep.soundness import told_by

Files: TypeAlias = dict[str, Entry]


def artifacts_in(store: RemoteStore) -> dict[Name, Files]:
    """Files of every artifact, whole or not. Raises UserError when there is no store at the URL."""
    found: dict[Name, Files] = defaultdict(dict)
    for path, entry in store.remote.files("objects").items():
        kind, _, rest = path.partition("/")
        _, _, rest = rest.partition("/")
        digest, _, name = rest.partition("/")
        if name:
            found[kind, digest][name] = entry
    if not found and not store.remote.files("runs") and not store.remote.files("keys"):
        raise UserError(
            f"there is no artifact store at {store.location}. Name one with --store or ALPHAQUANT_STORE."
        )
    return dict(found)


def ref_of(name: Name) -> ArtifactRef:
    """A reference to an artifact whose size is not known."""
    return ArtifactRef(kind=name[0], digest=name[1], size=0)


def paths_of(name: Name, files: Iterable[str]) -> list[str]:
    """Where the files of an artifact are."""
    return [f"{folder_of(ref_of(name))}/{file}" for file in files]


def jsons_in(store: RemoteStore, folder: str) -> Files:
    """JSON files below a folder."""
    found = store.remote.files(folder)
    return {name: entry for name, entry in found.items() if name.endswith(".json")}


def record_in(store: RemoteStore, name: str) -> KeyRecord | None:
    """The record in a file of `keys/`; None when it is absent, torn or not of its name."""
    stage, _, file = name.partition("/")
    return load_record(store, stage, file.removesuffix(".json"))


def manifests_in(store: RemoteStore) -> dict[str, tuple[dict[str, Any] | None, float]]:
    """Every run's manifest, None when it is torn, and when it was written, by the id of the run."""
    files = {name: entry for name, entry in jsons_in(store, "runs").items() if "/" not in name}
    texts = store.remote.read_many(f"runs/{name}" for name in files)
    return {
        run_id: (told_by(parse_json(text), run_id), entry.modified)
        for (name, entry), text in zip(files.items(), texts, strict=True)
        if text is not None
        for run_id in [name.removesuffix(".json")]
    }


def quarantined_in(store: RemoteStore) -> dict[str, list[str]]:
    """What fsck has put aside: its files, by what was put aside."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in store.remote.files(QUARANTINE):
        found["/".join(path.split("/")[:2])].append(f"{QUARANTINE}/{path}")
    return dict(found)
