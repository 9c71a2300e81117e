"""Units: the parts of a stage that are artifacts of their own, so that a killed run loses at most one.

A decoder block is such a unit. What block k becomes depends on everything before it, so its key holds the
digests of all earlier blocks, not only of the last: a block that is kept as it is would hide what came
before it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from alphaquant.clock import spent_so_far
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.keys import canonical
from alphaquant.store.records import KeyRecord, key_of, load_record, save_record
from alphaquant.store.usage import note_use
from alphaquant.work import Spent, since


class BlockCache:
    """Blocks of one model under one stage, asked for in order: `get(0)`, perhaps `put(0)`, `get(1)`, ..."""

    def __init__(
        self,
        store: ArtifactStore,
        kind: str,
        code: dict[str, str],
        static: dict[str, Any],
        *,
        made: set[str] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`made`: keys of the blocks that a forced stage has computed; only these are found again.

        `check` is called before a block is kept and raises when it must not be.
        """
        self._store = store
        self._kind = kind
        self._code = code
        self._static = canonical(static)
        self._made = made
        self._check = check
        self._claim = ExitStack()
        self._chain = ""
        self.refs: list[ArtifactRef] = []
        self.ran = 0
        self.cached = 0
        self.keys: list[str] = []
        self.seconds = 0.0
        self.spent: dict[str, Spent] = {}
        """By step, and in all `seconds`: what the blocks took that were computed here."""
        self._goes_on: bool
        self._begin()

    def get(self, index: int, ingredients: dict[str, Any]) -> Path | None:
        """The finished block `index` for these ingredients, or None when it must be computed.

        None also means that the block is ours to compute until `put` or `close`: whoever else wants it
        waits for us.
        """
        self._in_order(index)
        key = key_of(self._ingredients(index, ingredients))
        found = self._find(key)
        if found is None:
            self.close()
            waits = time.perf_counter()
            self._claim.enter_context(
                self._store.locked(f"{self._kind}-{key}", f"{self._kind} {index}")
            )
            self._began += time.perf_counter() - waits
            found = self._find(key)
        if found is None:
            if not self._goes_on:
                self._begin()
            return None
        self.close()
        self._goes_on = False
        self.cached += 1
        return self._append(key, found)

    def put(self, index: int, ingredients: dict[str, Any], write: Callable[[Path], None]) -> Path:
        """Let `write` fill the block's folder, keep it, and return where it is now."""
        self._in_order(index)
        with self._store.draft(self._kind) as draft:
            write(draft.path)
            self._check()
        assert draft.ref is not None
        whole = self._ingredients(index, ingredients)
        key = key_of(whole)
        seconds, steps = time.perf_counter() - self._began, since(spent_so_far(), self._before)
        self.seconds += seconds
        for step, spent in steps.items():
            self.spent[step] = self.spent.get(step, Spent()) + spent
        save_record(
            self._store,
            KeyRecord(
                stage=self._kind,
                key=key,
                ingredients=whole,
                ref=draft.ref,
                seconds=seconds,
                steps=steps,
            ),
        )
        if self._made is not None:
            self._made.add(key)
        self.close()
        self.ran += 1
        self._begin(at_once=True)
        return self._append(key, draft.ref)

    def close(self) -> None:
        """Let go of a block that was to be computed and is not."""
        self._claim.close()

    def as_refs(self) -> dict[str, dict[str, Any]]:
        """What a `refs.json` says about the finished blocks, in order."""
        return {f"block-{index:04d}": ref.model_dump() for index, ref in enumerate(self.refs)}

    def _begin(self, *, at_once: bool = False) -> None:
        """A block's time begins: where it is asked for, or at once behind one that was put, as it may be solved while that is written.

        What it took until then counts for the other one.
        """
        self._began, self._before, self._goes_on = time.perf_counter(), spent_so_far(), at_once

    def _find(self, key: str) -> ArtifactRef | None:
        if self._made is not None and key not in self._made:
            return None
        record = load_record(self._store, self._kind, key)
        if record is None or record.ref is None:
            return None
        note_use(self._store, record.ref)
        return None if self._store.problem(record.ref) else record.ref

    def _in_order(self, index: int) -> None:
        if index != len(self.refs):
            raise ValueError(
                f"block {index} was asked for after {len(self.refs)} blocks; go in order"
            )

    def _append(self, key: str, ref: ArtifactRef) -> Path:
        self.keys.append(key)
        self._chain = hashlib.sha256(f"{self._chain}{ref.digest}".encode()).hexdigest()
        self.refs.append(ref)
        return self._store.path(ref)

    def _ingredients(self, index: int, ingredients: dict[str, Any]) -> dict[str, Any]:
        inputs = {
            "static": self._static,
            "index": index,
            "before": self._chain,
            "block": canonical(ingredients),
        }
        return {"stage": self._kind, "code": self._code, "inputs": inputs}
