"""Accept: take results that older code computed for what today's code would compute.

For edits that cannot change results, such as a clearer name or a faster loop; a person decides that. Only the
code may differ: a new record leads from today's key to the old artifact and says whence it came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.planning import Pending, pending_in
from alphaquant.store.records import (
    KeyRecord,
    changed_inputs,
    changed_modules,
    key_of,
    load_record,
    local_time,
    now,
    recent_records,
    save_record,
    why_new,
)
from alphaquant.store.stage import Stage, lookup

Verdict: TypeAlias = Literal["accepted", "cached", "nothing", "refused"]


@dataclass(frozen=True)
class Acceptance:
    """What accepting a stage means for given inputs. Nothing is written before `save_acceptance`.

    `refused`: an input differs from every earlier result's, or is not known.
    """

    name: str
    verdict: Verdict
    reason: str
    out: ArtifactRef | Pending | None = None
    """What later stages get."""
    modules: tuple[str, ...] = ()
    """Code that differs from the code that computed the result."""
    records: tuple[KeyRecord, ...] = ()
    """To be written: the stage's, and its blocks'."""
    blocks: int = 0
    """How many of them are blocks'."""


def find_acceptance(stage: Stage, store: ArtifactStore, inputs: Mapping[str, Any]) -> Acceptance:
    """The newest result with equal inputs and other code, and the blocks that the same code made.

    Blocks of other plans count too, so that a plan that shares their beginning finds them.
    """
    if waits_for := sorted(pending_in(inputs)):
        reason = f"waits for {', '.join(waits_for)}, whose result is not known"
        return Acceptance(stage.name, "refused", reason, Pending(stage.name))
    found = lookup(stage, store, inputs)
    if found.miss is None and found.record:
        return Acceptance(stage.name, "cached", found.record.standing(), found.record.ref)
    if found.record is not None:
        reason = f"this very code has computed it already; its artifact is {found.miss}"
        return Acceptance(stage.name, "nothing", reason, found.record.ref)
    old = _same_inputs(store, stage, found.ingredients)
    blocks = _blocks(store, stage, found.ingredients, old.ingredients["code"] if old else None)
    if old is None:
        return _only_blocks(store, stage, found.ingredients, blocks)
    if old.ref and (problem := store.problem(old.ref)):
        reason = f"the artifact of {local_time(old.when)} is {problem}"
        return Acceptance(stage.name, "nothing", reason, Pending(stage.name))
    record = _renewed(store, old, found.ingredients["code"])
    reason = f"the result of {local_time(old.when)}"
    return Acceptance(
        stage.name,
        "accepted",
        f"{reason} and {len(blocks)} blocks" if blocks else reason,
        old.ref,
        record.accepted_code,
        (*blocks, record),
        len(blocks),
    )


def save_acceptance(store: ArtifactStore, acceptance: Acceptance) -> None:
    """Write the records; blocks first, so that the stage's own stands for all."""
    for record in acceptance.records:
        save_record(store, record)


def _same_inputs(
    store: ArtifactStore, stage: Stage, ingredients: dict[str, Any]
) -> KeyRecord | None:
    """The newest result of other code for the same inputs."""
    for record in recent_records(store, stage.name, None):
        if changed_modules(record.ingredients, ingredients) and not changed_inputs(
            record.ingredients, ingredients
        ):
            return record
    return None


def _only_blocks(
    store: ArtifactStore, stage: Stage, ingredients: dict[str, Any], blocks: tuple[KeyRecord, ...]
) -> Acceptance:
    """No result of the stage has these inputs; an interrupted run may have left blocks of it."""
    out = Pending(stage.name)
    if blocks:
        reason = f"{len(blocks)} blocks of an unfinished result or another plan"
        code = blocks[0].accepted_code
        return Acceptance(stage.name, "accepted", reason, out, code, blocks, len(blocks))
    if not recent_records(store, stage.name, 1):
        return Acceptance(stage.name, "nothing", "it never ran", out)
    reason = f"differs from its earlier results ({why_new(store, stage.name, ingredients)})"
    return Acceptance(stage.name, "refused", reason, out)


def _blocks(
    store: ArtifactStore,
    stage: Stage,
    ingredients: dict[str, Any],
    code: dict[str, str] | None,
) -> tuple[KeyRecord, ...]:
    """Records for the stage's blocks under today's code.

    Only blocks that one version of the code made, `code` or else the newest, for the stage's own inputs:
    what a block is given besides them (its index, what came before it) may be anything.
    """
    renewed = []
    for record in recent_records(store, f"{stage.name}-block", None):
        old = record.ingredients
        if old["code"] == ingredients["code"] or not _agree(old["inputs"], ingredients["inputs"]):
            continue
        code = code or old["code"]
        fresh = _renewed(store, record, ingredients["code"])
        if old["code"] == code and load_record(store, fresh.stage, fresh.key) is None:
            renewed.append(fresh)
    return tuple(renewed)


def _agree(block: dict[str, Any], stage: dict[str, Any]) -> bool:
    """Whether what a block's key says of the stage's inputs is what they are."""
    static = block["static"]
    return all(static[name] == stage[name] for name in static if name in stage)


def _renewed(store: ArtifactStore, old: KeyRecord, code: dict[str, str]) -> KeyRecord:
    """The record of an old result under today's code, told against the code that computed it."""
    origin = old
    if old.accepted_from:
        origin = load_record(store, old.stage, old.accepted_from) or old
    ingredients = old.ingredients | {"code": code}
    return old.model_copy(
        update={
            "key": key_of(ingredients),
            "ingredients": ingredients,
            "accepted_from": origin.key,
            "accepted_on": now(),
            "accepted_code": changed_modules(origin.ingredients, ingredients),
        }
    )
