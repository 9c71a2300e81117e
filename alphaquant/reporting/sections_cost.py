"""The sections on what compression cost: scores, other plans at the same bits, rounding error, routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from alphaquant.reporting.document import Grid, Section
from alphaquant.reporting.figures_errors import changed_by_method, comparable, error_figure
from alphaquant.reporting.figures_router import router_figure
from alphaquant.reporting.figures_scores import rival_figure, score_figure
from alphaquant.reporting.notation import change_text, count, number, percent, shown, shown_interval
from alphaquant.reporting.scores import BEFORE_ROUTER, Rival, Scores
from alphaquant.reporting.sections import Items, add_picture, identity_cells
from alphaquant.reporting.style import MOST_POINTS
from alphaquant.reporting.tables import ReportInputs

_WORST = 10


def score_section(scores: Scores) -> Section:
    """Original against quantized in every metric, then against other plans at the same bits."""
    items: Items = []
    if not scores.rows:
        return Section(
            "scores", "Scores", ["This run evaluated nothing, so there are no scores to show."]
        )
    add_picture(
        items,
        "scores",
        "Scores of the original and the quantized model",
        "Dots are measured values, lines their 95 % intervals. Each panel has its own axis, which need not start at "
        "zero: compare the distance of the dots with the length of the lines.",
        score_figure(scores),
    )
    items.append(_score_grid(scores))
    items += _rivals(scores)
    return Section("scores", "Scores", items)


def error_section(inputs: ReportInputs, linears: pd.DataFrame) -> Section:
    """What rounding did to every linear's output, and how much of it the method took back."""
    if inputs.errors is None:
        text = "This run has no table of errors, so rounding error cannot be shown."
        return Section("errors", "Rounding error", [text])
    data = comparable(linears)
    if data.empty:
        text = "No linear was rounded with a measurable error: all stayed bf16, or no token reached them."
        return Section("errors", "Rounding error", [text])
    items: Items = [_error_words(inputs, linears, data)]
    caption = "Relative output error is the share of a linear's output energy on calibration inputs that rounding changes. "
    if changed_by_method(data):
        caption += (
            "Left: points below the diagonal got better. Right: below 1 is better; boxes hold the middle half, "
            "whiskers reach from 5 to 95 %. Colours and markers are roles."
            + (
                f" Of {len(data):,} linears {MOST_POINTS:,}, chosen at random, are drawn on the left."
                if len(data) > MOST_POINTS
                else ""
            )
        )
    else:
        caption += "Boxes hold the middle half of a role's linears, whiskers reach from 5 to 95 %."
    add_picture(
        items,
        "errors",
        "Relative output error per linear",
        caption,
        error_figure(linears, _method(inputs)),
    )
    items.append(_worst(data))
    return Section("errors", "Rounding error", items)


def router_section(inputs: ReportInputs, linears: pd.DataFrame) -> Section:
    """How far the routers' choices moved, and what repairing them gave back."""
    items: Items = []
    summary: Mapping[str, Any] = inputs.router or {}
    if linears.empty and inputs.router_blocks is None and not summary:
        text = "This run has no table of its linears, so nothing is known about routers."
        return Section("router", "Routers", [text])
    if not bool(linears["expert"].notna().any()) and inputs.router_blocks is None:
        text = "This model is dense: it has no routers, so no token can change experts and there is nothing to repair."
        return Section("router", "Routers", [text])
    if reason := summary.get("skipped"):
        items.append(f"Router repair was skipped: {reason}.".replace("..", "."))
    elif inputs.router is None and inputs.router_history is None:
        chosen = inputs.setting("router", "method")
        why = " (`router.method` is `none`)" if chosen == "none" else ""
        items.append(f"Routers were not repaired in this run{why}.")
    else:
        items.append(_router_words(summary))
    if inputs.router_blocks is None:
        items.append("How many tokens changed experts was not measured.")
    add_picture(
        items,
        "router",
        "Tokens whose experts changed, and the repair of the routers",
        "A token counts as changed when the set of experts chosen for it differs from the original model's. Block "
        "errors, where routers were repaired block by block, are those of the block's output on held-out windows "
        "behind repaired blocks, relative to what the original block adds to its input. Training curves, where "
        "routers were trained end to end, show the loss on calibration text and the KL on text held out from it; "
        "the dashed line is the KL before any repair.",
        router_figure(inputs.router_blocks, inputs.router_history, summary),
    )
    return Section("router", "Routers", items)


def _score_grid(scores: Scores) -> Grid:
    rows = []
    between = any(row.model == BEFORE_ROUTER for row in scores.rows)
    for first, second in scores.pairs():
        middle = scores.find(second.metric, BEFORE_ROUTER, second.task)
        rows.append(
            [
                second.task,
                second.metric,
                shown(first) if first else "–",
                *([shown(middle) if middle else "–"] if between else []),
                shown(second),
                shown_interval(second) or "–",
                change_text(first, second, scores.change(second)) or "–",
                "lower" if second.lower_is_better else "higher",
            ]
        )
    untrained = ["routers untrained"] if between else []
    header = [
        "task",
        "metric",
        "original",
        *untrained,
        "quantized",
        "95 % interval",
        "change",
        "better",
    ]
    title = "Every score; where a change has an interval, it is paired by question or window"
    return Grid(title, header, rows, frozenset(range(2, len(header) - 1)), frozenset({0, 1}))


def _rivals(scores: Scores) -> Items:
    rivals, own = scores.rivals(), scores.find("kl_mean")
    if not rivals or own is None:
        return ["No other plan was measured in this run (see the config section comparison)."]
    items: Items = [" ".join(_rival_words(rivals, own.value))]
    add_picture(
        items,
        "rivals",
        "KL of this plan and of other plans",
        "Each row is a plan that was quantized and measured in the same way, before routers are "
        "repaired and scales of the whole model tuned; further left is closer to the original. "
        "The dashed line marks this plan; several dots in a row are several plans of one kind.",
        rival_figure(scores),
    )
    rows = [
        [
            rival.label,
            "–" if rival.bits is None else f"{rival.bits:.3f}",
            number(rival.median),
            shown_interval(rival.scores[0])
            if len(rival.scores) == 1
            else f"{number(min(s.value for s in rival.scores))} to "
            f"{number(max(s.value for s in rival.scores))} over {len(rival.scores)}",
        ]
        for rival in rivals
    ]
    header = ("plan", "bits per weight", "KL (median)", "95 % interval, or range of a series")
    items.append(Grid("Other plans, measured", header, rows, numeric=frozenset({1, 2})))
    return items


def _rival_words(rivals: list[Rival], own: float) -> list[str]:
    """What the comparison shows: against series, against single plans, and method against method."""
    words = [f"This plan's KL to the original is {number(own)} nats per token."]
    for rival in rivals:
        if len(rival.scores) > 1:
            beaten = sum(own < score.value for score in rival.scores)
            best = number(min(score.value for score in rival.scores))
            words.append(
                f"It is below {beaten} of {len(rival.scores)} plans of the kind `{rival.label}` (best {best})."
            )
    single = [rival for rival in rivals if len(rival.scores) == 1]
    if above := [f"`{rival.label}`" for rival in single if own < rival.median]:
        words.append(f"It is below {', '.join(above)}.")
    if below := [f"`{rival.label}`" for rival in single if own >= rival.median]:
        words.append(f"It is not below {', '.join(below)}.")
    values = {rival.label: rival.median for rival in single}
    pairs = [
        (plan, values[label], values[other])
        for label in sorted(values)
        if (plan := label.removesuffix(", gptq")) != label and (other := f"{plan}, rtn") in values
    ]
    for better, verb in ((True, "lowers"), (False, "does not lower")):
        if named := [
            f"`{plan}` ({number(rtn)} to {number(gptq)})"
            for plan, gptq, rtn in pairs
            if (gptq < rtn) is better
        ]:
            words.append(
                f"With the same plan, GPTQ {verb} the KL of rounding for {', '.join(named)}."
            )
    return words


def _error_words(inputs: ReportInputs, linears: pd.DataFrame, data: pd.DataFrame) -> str:
    before, after = (data[name].to_numpy(dtype="float64") for name in ("error_rtn", "error"))
    untouched = (
        int(linears["bits_per_weight"].ge(15.99).sum())
        if "bits_per_weight" in linears.columns
        else 0
    )
    kept = f" {count(untouched, 'linear')} stayed bf16 and are not counted." if untouched else ""
    starved = int((linears["tokens"] == 0).sum()) if "tokens" in linears.columns else 0
    if starved:
        kept += f" No calibration token reached {count(starved, 'linear')}."
    if not changed_by_method(data):
        return (
            f"The median relative output error of {count(len(data), 'rounded linear')} is "
            f"{number(float(np.median(before)))}. Rounding to nearest has no second step, so the error before and "
            f"after is the same and only one is shown.{kept}"
        )
    better, worse = int((after < before).sum()), int((after > before * (1 + 1e-9)).sum())
    rose = f"rose in {worse:,}" if worse else "rose in none"
    cut = 1 - float(np.median(after / before))
    change = f"cut by {percent(cut, 0)}" if cut >= 0 else f"raised by {percent(-cut, 0)}"
    return (
        f"With {_method(inputs)} the relative output error fell in {better:,} of {count(len(data), 'rounded linear')} "
        f"and {rose}; in the median it was {change}, from {number(float(np.median(before)))} to "
        f"{number(float(np.median(after)))}.{kept}"
    )


def _method(inputs: ReportInputs) -> str:
    method = inputs.setting("quantization", "method")
    return str(method).upper() if method else "the method"


def _worst(data: pd.DataFrame) -> Grid:
    worst = data.sort_values(["error", "linear"], ascending=[False, True], kind="stable").head(
        _WORST
    )
    rows = [
        [
            *identity_cells(row),
            str(row.get("scheme", "–")),
            number(float(row["error_rtn"])),
            number(float(row["error"])),
            f"{int(row['tokens']):,}" if pd.notna(row.get("tokens")) else "–",
        ]
        for row in worst.to_dict("records")
    ]
    header = ["linear", "role", "block", "format", "error, rounding", "error, after", "tokens"]
    title = (
        "The linear with the largest error"
        if len(rows) == 1
        else f"The {len(rows)} linears with the largest error"
    )
    return Grid(title, header, rows, frozenset({2, 4, 5, 6}), frozenset({0, 3}))


def _router_words(summary: Mapping[str, Any]) -> str:
    method = f" (`{summary['method']}`)" if "method" in summary else ""
    before, after = summary.get("kl_before"), summary.get("kl_after")
    if before is None or after is None:
        return f"The routers were repaired{method}."
    if after >= before:
        return (
            f"Repairing the routers{method} found none with a lower KL on held-out windows than the "
            f"{number(float(before))} nats per token they have, so they stay as they were."
        )
    text = (
        f"Repairing the routers{method} lowered the KL on held-out windows from {number(float(before))} to "
        f"{number(float(after))} nats per token"
    )
    before, after = summary.get("changed_before"), summary.get("changed_after")
    if before is None or after is None:
        return f"{text}."
    return (
        f"{text}; the share of tokens whose experts differ from the original's went from {percent(float(before))} to "
        f"{percent(float(after))}."
    )
