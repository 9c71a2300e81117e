"""Where the time of a stage went, put together from the records of the stage and of its blocks.

A block keeps the seconds of the attempt that computed it, so a stage that went on behind finished blocks, and one that
was found, have the profile of the work itself and not of the last run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.records import load_record, load_records
from alphaquant.store.stage import OTHER, StageResult
from alphaquant.work import Rates, Spent


@dataclass(frozen=True)
class StageProfile:
    """Seconds and work of a stage by step; the steps add up to the wall time of computing it."""

    name: str
    steps: Mapping[str, Spent]
    """Those of its blocks included; `other` is what was in no step."""
    blocks: Sequence[Mapping[str, Spent]]
    """By step, for each block in order; empty for a stage without blocks."""
    rates: Rates | None
    """What the machine could do that computed the stage last."""

    @property
    def seconds(self) -> float:
        """Of all steps."""
        return sum(spent.seconds for spent in self.steps.values())

    def floor(self, steps: Mapping[str, Spent]) -> float:
        """Seconds that some steps take at the least; 0 where no formula or machine tells."""
        return sum(self.rates.floor(s.work) for s in steps.values()) if self.rates else 0.0


def profiles(store: ArtifactStore, results: Sequence[StageResult]) -> list[StageProfile]:
    """Of every stage that was ever computed and timed, in order."""
    found = (stage_profile(store, result.name, result.key) for result in results)
    return [profile for profile in found if profile and profile.seconds > 0]


def stage_profile(store: ArtifactStore, stage: str, key: str) -> StageProfile | None:
    """The profile of one result; None when it was not timed, or skipped."""
    record = load_record(store, stage, key) if key else None
    if record is None or not record.steps or record.skipped:
        return None
    blocks = []
    for block in load_records(store, f"{stage}-block", record.unit_keys):
        named = sum(spent.seconds for spent in block.steps.values())
        rest = Spent(max(0.0, block.seconds - named))
        blocks.append({**block.steps, OTHER: rest})
    steps = dict(record.steps)
    for block_steps in blocks:
        for step, spent in block_steps.items():
            steps[step] = steps.get(step, Spent()) + spent
    return StageProfile(stage, steps, blocks, record.place.rates if record.place else None)
