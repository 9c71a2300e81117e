"""The page of an experiment: does alpha help on this model, and which way?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from alphaquant.algorithms.arms import ARMS
from alphaquant.evaluation.paired import Comparison
from alphaquant.evaluation.verdict import Verdict, judge
from alphaquant.reporting.document import Card, Document, Grid, Section
from alphaquant.reporting.experiment_tables import (
    GIVEN,
    ExperimentInputs,
    alpha_relations,
    compare_arms,
    comparison_table,
    results_table,
    title_of,
)
from alphaquant.reporting.figures_experiment import arms_figure, front_figure, variants_figure
from alphaquant.reporting.markdown import to_markdown
from alphaquant.reporting.notation import count, number
from alphaquant.reporting.page import to_html
from alphaquant.reporting.sections import Items, add_picture
from alphaquant.reporting.style import drawing
from alphaquant.reporting.words_experiment import (
    answer_words,
    change_text,
    relation_words,
    rule_words,
)

_SPREAD = 0.005
"""Bits per weight within which arms count as equally large."""


def write_experiment(inputs: ExperimentInputs, out: Path) -> Verdict:
    """Write `experiment.html`, `experiment.md`, `figures/`, `results.parquet` and `comparisons.parquet`."""
    results, comparison = results_table(inputs), compare_arms(inputs)
    verdict = judge(comparison)
    with drawing():
        document = _document(inputs, results, comparison, verdict)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for picture in document.pictures():
        (figures / f"{picture.name}.png").write_bytes(picture.png)
    (out / "experiment.md").write_text(to_markdown(document), encoding="utf-8")
    (out / "experiment.html").write_text(to_html(document), encoding="utf-8")
    results.to_parquet(out / "results.parquet", index=False)
    comparison_table(verdict.changes).to_parquet(out / "comparisons.parquet", index=False)
    return verdict


def _document(
    inputs: ExperimentInputs, results: pd.DataFrame, comparison: Comparison, verdict: Verdict
) -> Document:
    bits = float(inputs.setting("allocation", "target_bits", np.nan))
    seeds, plans = len(inputs.losses), int((~results["front"]).sum())
    windows = len(inputs.original_loss)
    best = min(inputs.arms(), key=lambda name: comparison.mean(name).value)
    cards = [
        Card("bits per weight", number(bits), "the budget of every arm, scales included"),
        Card("plans measured", f"{plans}", f"{count(seeds, 'calibration seed')}"),
        Card("held-out text", count(windows, "window"), "resampled whole"),
        Card(
            "best arm",
            number(comparison.mean(best).value),
            f"nats per token: {ARMS[best].title}",
        ),
        Card("original perplexity", number(float(np.exp(inputs.original_loss.mean())), 4), ""),
    ]
    sections = (
        _arms_section(inputs, results, comparison),
        _comparisons_section(verdict),
        _front_section(inputs, results),
        _relations_section(inputs),
        _method_section(inputs),
    )
    return Document(
        title=f"What alpha is worth: {inputs.model}",
        subtitle=f"{number(bits)} bits per weight, {_granularity(inputs)}",
        cards=cards,
        answer=answer_words(verdict, comparison),
        sections=sections,
    )


def _arms_section(
    inputs: ExperimentInputs, results: pd.DataFrame, comparison: Comparison
) -> Section:
    items: Items = []
    add_picture(
        items,
        "arms",
        "KL of every arm at the same bits",
        "Large dots are means over calibration seeds and plans with their 95 % intervals, small ones single plans. "
        "Intervals resample seeds, windows and plans; as arms share seeds and windows, differences are known better than "
        "the intervals here show: see the comparisons.",
        arms_figure(inputs, comparison, results),
    )
    own = results[~results["front"]]
    rows = []
    for name in sorted(inputs.arms(), key=lambda name: comparison.mean(name).value):
        part, found = own[own["arm"] == name], comparison.mean(name)
        interval = f"{number(found.low)} to {number(found.high)}" if np.isfinite(found.low) else "–"
        rows.append(
            [
                ARMS[name].title,
                number(found.value),
                interval,
                number(float(part["perplexity"].mean()), 4),
                f"{float(part['bits_per_weight'].mean()):.3f}",
                f"{len(part)}",
                "; ".join(dict.fromkeys(text for text in part["variant"] if text)) or "–",
            ]
        )
    header = ["arm", "KL", "95 % interval", "perplexity", "bits", "plans", "chosen"]
    items.append(Grid("Arms, best first", header, rows, frozenset({1, 2, 3, 4, 5})))
    stored = own.groupby("arm")["bits_per_weight"].mean()
    if float(stored.max() - stored.min()) > 2 * _SPREAD:
        items.append(
            f"The arms do not store equally much: from {float(stored.min()):.3f} (`{title_of(str(stored.idxmin()))}`) to "
            f"{float(stored.max()):.3f} bits per weight (`{title_of(str(stored.idxmax()))}`), as groups are too coarse to "
            "use the whole budget. Differences between arms are partly differences of size."
        )
    return Section("arms", "The arms", items)


def _comparisons_section(verdict: Verdict) -> Section:
    rows = [
        [ARMS[one].title, ARMS[other].title, change_text(found)]
        for (one, other), found in verdict.changes.items()
    ]
    header = ["arm", "against", "change of the KL [95 %]"]
    return Section(
        "comparisons",
        "What beats what",
        [rule_words(), Grid("Paired comparisons", header, rows, frozenset({2}))],
    )


def _front_section(inputs: ExperimentInputs, results: pd.DataFrame) -> Section:
    rivals = _rivals(inputs.rivals)
    figure = front_figure(results, {name: found[:2] for name, found in rivals.items()})
    if figure is None:
        return Section("front", "Bits against cost", ["No points were asked for."])
    items: Items = []
    add_picture(
        items,
        "front",
        "KL over stored bits per weight",
        "Further down and left is better. Mixed plans and formats were quantized with the first calibration seed, and "
        "all were measured on the same windows."
        + (
            " Stars are other software's checkpoints with the bits they were named with."
            if rivals
            else ""
        ),
        figure,
    )
    points = results[results["front"]].sort_values(["bits_per_weight", "kl"])
    rows = [
        [
            str(row["label"]).removeprefix("front "),
            f"{row['bits_per_weight']:.3f}",
            number(row["kl"]),
            number(row["perplexity"], 4),
        ]
        for row in points.to_dict("records")
    ]
    rows += [
        [name, f"{bits:.3f}", number(kl), number(perplexity, 4)]
        for name, (bits, kl, perplexity) in rivals.items()
    ]
    header = ["plan", "bits per weight", "KL", "perplexity"]
    items.append(Grid("Points", header, rows, frozenset({1, 2, 3})))
    return Section("front", "Bits against cost", items)


def _rivals(tables: Mapping[str, pd.DataFrame]) -> dict[str, tuple[float, float, float]]:
    """Bits, KL and perplexity of other software's checkpoints by the last part of their path."""
    found = {}
    for text, table in tables.items():
        folder, _, bits = text.rpartition("@")
        scores = table[(table["task"] == "heldout") & (table["model"] == "quantized")]
        values = scores.set_index("metric")["value"]
        name = f"{Path(folder).name} ({bits})"
        found[name] = (float(bits), float(values["kl_mean"]), float(values["perplexity"]))
    return found


def _relations_section(inputs: ExperimentInputs) -> Section:
    rows = [
        [found.guide, found.against, f"{found.plain.count:,}", relation_words(found.plain), relation_words(found.partial)]
        for found in alpha_relations(inputs)
    ]  # fmt: skip
    header = ["alpha", "against", "linears", "rank correlation", f"given {GIVEN}"]
    return Section(
        "relations",
        "Alpha and sensitivity, linear by linear",
        [
            "Spearman's rank correlation with its 95 % interval, whole groups (attention, expert) resampled where they are "
            "many. Positive: the larger alpha, the more sensitive. The last column holds fixed what else tells linears "
            "apart; what is left there is alpha's own.",
            Grid("Rank correlations", header, rows, frozenset({2, 3, 4})),
        ],
    )


def _method_section(inputs: ExperimentInputs) -> Section:
    items: Items = [
        f"Every arm spends the same bits ({_granularity(inputs)}) on the same menu and is quantized with the same settings, "
        f"once per calibration seed ({len(inputs.losses)}). Where an arm had a choice of strength or estimator, it was "
        "made by predicted loss on the calibration text, which favours alpha; the text that scores chose nothing.",
        Grid(
            "What each arm does",
            ["arm", "spends bits by"],
            [[ARMS[name].title, ARMS[name].says] for name in inputs.arms()],
        ),
    ]
    add_picture(
        items,
        "variants",
        "Predicted loss over the strength of alpha",
        "First calibration seed. Lines that lie lower are better; the dotted line is the same rule without alpha. A circle "
        "marks what was taken.",
        variants_figure(inputs),
    )
    return Section("method", "How it was done", items)


def _granularity(inputs: ExperimentInputs) -> str:
    granularity = inputs.setting("allocation", "granularity") or "linear"
    words = {
        "linear": "a format per linear",
        "expert": "a format per expert",
        "fused": "fused groups",
    }
    return words.get(str(granularity), str(granularity))
