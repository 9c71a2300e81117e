"""The section on tuning: how much closer each block came to the original's after GPTQ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alphaquant.reporting.document import Section
from alphaquant.reporting.notation import count, number, percent
from alphaquant.reporting.sections import Items, add_picture
from alphaquant.reporting.style import AFTER, BEFORE, new_figure
from alphaquant.reporting.tables import ReportInputs

_STAGES = (("before", BEFORE, "s", "as GPTQ left it"), ("after", AFTER, "o", "after tuning"))


def tuning_section(inputs: ReportInputs) -> Section | None:
    """What tuning brought, block by block; None for a run that tuned nothing."""
    blocks = inputs.tuning
    if blocks is None:
        return None
    items: Items = [_words(blocks)]
    add_picture(
        items,
        "tuning",
        "Held-out error of every block before and after tuning",
        "Squared error of a block's output on windows that tuning did not see, relative to what the original block adds "
        "to its input. It holds the errors of the blocks before as well, so it grows with depth. With "
        "tune_ahead the last block is tuned on the model's predictions, and its own error need not fall.",
        tuning_figure(blocks),
    )
    if inputs.model_tuning is not None:
        items.append(_whole_model(inputs.model_tuning))
    return Section("tuning", "Tuning", items)


def tuning_figure(blocks: pd.DataFrame) -> Figure:
    """Held-out block error by block, before and after."""
    figure = new_figure(3.2)
    axis = figure.subplots()
    places = blocks["block"].to_numpy(dtype="float64")
    for column, colour, marker, label in _STAGES:
        values = 100 * blocks[column].to_numpy(dtype="float64")
        axis.plot(places, values, color=colour, marker=marker, markersize=5, label=label)
    axis.set_ylim(bottom=0)
    axis.margins(y=0.15)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("block (0 is nearest to the input)")
    axis.set_ylabel("held-out block error (%)")
    axis.legend(loc="upper left")
    return figure


def _whole_model(facts: Mapping[str, Any]) -> str:
    before, after = float(facts["kl_before"]), float(facts["kl_after"])
    return (
        f"Then scales and norms of all blocks moved together for {count(int(facts['steps']), 'step')}: on held-out "
        f"calibration windows the divergence from the original fell by {percent(1 - after / before, 0)}, from "
        f"{number(before)} to {number(after)} nats per token."
    )


def _words(blocks: pd.DataFrame) -> str:
    better = blocks[blocks["steps"] > 0]
    kept = len(blocks) - len(better)
    if better.empty:
        return (
            f"Tuning found nothing better than GPTQ's codes in {count(kept, 'block')} on held-out windows, so they "
            "stay as they were."
        )
    cut = float((1 - better["after"] / better["before"]).median())
    last = blocks.iloc[-1]
    rest = (
        f" In {count(kept, 'block')} it found nothing better, and GPTQ's codes stay."
        if kept
        else ""
    )
    return (
        f"Tuning lowered the held-out error of {count(len(better), 'block')}, in the median by {percent(cut, 0)}; after "
        f"the last one it stands at {number(float(last['after']))} instead of {number(float(last['before']))}.{rest}"
    )
