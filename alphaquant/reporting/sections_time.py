"""The section on where time went, which no cached report can have: it is added when a run is handed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alphaquant.reporting.document import Grid, Picture, Section
from alphaquant.reporting.notation import number, share_text
from alphaquant.sizes import size_text
from alphaquant.store.profile import StageProfile
from alphaquant.store.stage import OTHER
from alphaquant.work import Rates, Spent

FIGURE = "time_by_step"
"""Name of the figure."""
_HEADER = ("stage", "step", "seconds", "of the stage", "GFLOP", "GB", "floor, s", "× floor")
_GIGA = 1e9


def time_section(profiles: Sequence[StageProfile], png: bytes) -> Section:
    """Words, the figure `png`, and a row per stage and step, the slowest first within a stage."""
    picture = Picture(
        FIGURE,
        "Seconds of every stage by step, and their physical floor",
        "Wall seconds of the computation whose result was used, also where this run found it. A step counts without the "
        "steps inside it; on a GPU a step has the seconds until its work was handed over, and the first that needs a "
        "result waits for those before it. The black line is the floor: FLOP, bytes of memory and bytes of files by "
        "formula, each over its measured rate, the largest of the three per step, added up over steps that have a formula.",
        png,
    )
    rows = [row for profile in profiles for row in _rows(profile)]
    grid = Grid("Steps", _HEADER, rows, frozenset(range(2, len(_HEADER))), folded=True)
    return Section(
        "time", "Where the time went", [_words(profiles), *_machines(profiles), picture, grid]
    )


def told(profile: StageProfile) -> dict[str, Any]:
    """A profile as JSON: what the table says, and seconds by block and step."""
    return {
        "stage": profile.name,
        "seconds": profile.seconds,
        "floor": profile.floor(profile.steps),
        "machine": profile.rates and profile.rates.machine,
        "steps": {
            step: {"seconds": s.seconds, "flop": _flop(s), "bytes": _bytes(s)}
            | {"floor": profile.floor({step: s})}
            for step, s in profile.steps.items()
        },
        "blocks": [{step: s.seconds for step, s in block.items()} for block in profile.blocks],
    }


def _words(profiles: Sequence[StageProfile]) -> str:
    total = sum(profile.seconds for profile in profiles)
    slowest = max(profiles, key=lambda profile: profile.seconds)
    named = [item for item in slowest.steps.items() if item[0] != OTHER] or [(OTHER, Spent())]
    step, spent = max(named, key=lambda item: item[1].seconds)
    text = (
        f"Computing what this report rests on took {number(total)} s, {share_text(slowest.seconds / total)} of it in the "
        f"stage `{slowest.name}`, whose slowest step is `{step}` ({number(spent.seconds)} s"
    )
    floor = slowest.floor({step: spent})
    return text + (f", {number(spent.seconds / floor)} times its floor)." if floor else ").")


def _machines(profiles: Sequence[StageProfile]) -> list[str]:
    """What was measured, for each machine that computed something."""
    found = {p.rates.machine: p.rates for p in profiles if p.rates}
    return [_rates(rates) for rates in found.values()]


def _rates(rates: Rates) -> str:
    products = f"{number(rates.flop / _GIGA)} GFLOP/s in fp32"
    if rates.tensor_flop != rates.flop:
        products += f" and {number(rates.tensor_flop / _GIGA)} in bf16"
    return (
        f"Measured on {rates.machine}, before its first stage, as the best of many tries: products of matrices {products}, memory "
        f"{size_text(rates.moved)}/s, cached files {size_text(rates.read)}/s, files forced to the disk "
        f"{size_text(rates.written)}/s."
    )


def _rows(profile: StageProfile) -> list[list[str]]:
    ordered = sorted(profile.steps.items(), key=lambda item: (item[0] == OTHER, -item[1].seconds))
    return [_row(profile, step, spent) for step, spent in ordered]


def _row(profile: StageProfile, step: str, spent: Spent) -> list[str]:
    floor = profile.floor({step: spent})
    amounts = [value / _GIGA for value in (_flop(spent), _bytes(spent))]
    return [
        profile.name,
        step,
        f"{spent.seconds:.2f}",
        share_text(spent.seconds / profile.seconds),
        *(number(value) if value else "–" for value in amounts),
        number(floor) if floor else "–",
        number(spent.seconds / floor) if floor else "–",
    ]


def _flop(spent: Spent) -> float:
    return spent.work.flop + spent.work.tensor_flop


def _bytes(spent: Spent) -> float:
    """Of memory and files together."""
    return spent.work.moved + spent.work.read + spent.work.written
