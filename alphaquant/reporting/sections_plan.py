"""The sections on where the bits went, block by block and role by role, and on the run itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from alphaquant.reporting.document import Grid, Section
from alphaquant.reporting.figures_bits import format_shares
from alphaquant.reporting.heatmaps import expert_schemes, role_map
from alphaquant.reporting.notation import number, share_text
from alphaquant.reporting.sections import Items, add_picture, whole
from alphaquant.reporting.statistics import Floats
from alphaquant.reporting.tables import ReportInputs, role_order


def bits_section(inputs: ReportInputs, linears: pd.DataFrame) -> Section:
    """Bits per weight by block and role, formats by role, and the same as tables."""
    if inputs.plan is None:
        return Section(
            "bits", "Where the bits went", ["This run made no plan, so there are no bits to show."]
        )
    items: Items = []
    add_picture(
        items,
        "bits_by_block",
        "Bits per weight by block and role",
        "Stored bits per weight, scales and zero points included; the lighter, the more bits. Where experts of a "
        "block differ, the cell holds their mean by weights.",
        role_map(linears, "bits per weight") if bool(linears["block"].notna().any()) else None,
    )
    add_picture(
        items,
        "formats_by_role",
        "Share of formats by role",
        "How the weights of each role are spread over formats; formats are ordered by bits per weight, the lighter, "
        "the more.",
        format_shares(linears),
    )
    experts = expert_schemes(linears)
    add_picture(
        items,
        "formats_experts",
        "Format of every expert",
        "One panel per projection, one cell per expert, coloured by its format.",
        experts,
    )
    if experts is None and bool(linears["expert"].notna().any()):
        items.append(
            "All experts of a block share one format per projection, so there is no map over experts."
        )
    items += [*granularity_items(inputs), _by(linears, "role"), _by(linears, "block")]
    return Section("bits", "Where the bits went", items)


_SHARED = {
    "linear": "nothing: every linear has its own",
    "expert": "the projections of an expert",
    "fused": "q, k and v; gate and up; all experts of a block",
}


def granularity_items(inputs: ReportInputs) -> Items:
    """What sharing formats costs, where the policy could have chosen otherwise."""
    prices = (inputs.allocation or {}).get("granularities") or []
    if len(prices) < 2:
        return []
    finest = float(prices[0]["predicted_loss"])
    rows = [
        [
            f"{price['granularity']}{' (this plan)' if price['chosen'] else ''}",
            _SHARED.get(str(price["granularity"]), ""),
            f"{float(price['bits_per_weight']):.3f}",
            number(float(price["predicted_loss"])),
            f"{number(float(price['predicted_loss']) / finest)}×" if finest > 0 else "–",
        ]
        for price in prices
    ]
    header = ["granularity", "one format for", "bits per weight", "predicted loss", "of the finest"]
    return [
        "Kernels that run several linears as one need one format for them. The table has what that costs: the same "
        "policy under the same budget, losses predicted (nats per token) and added up.",
        Grid("Price of each granularity", header, rows, frozenset({2, 3, 4})),
    ]


def run_section(inputs: ReportInputs) -> Section:
    """What ran, how long it took, and with which settings."""
    facts = [
        ["model", inputs.model],
        ["architecture", inputs.model_type or "–"],
        ["parameters", f"{inputs.parameters:,}" if inputs.parameters is not None else "–"],
        ["digest", inputs.digest or "–"],
    ]
    items: Items = [Grid("Model", ["", ""], facts, code=frozenset({1}))]
    if inputs.stages:
        rows = [
            [
                str(stage.get("name", "–")),
                str(stage.get("state", "–")),
                _seconds(stage.get("seconds")),
                _gigabytes(stage.get("memory")),
            ]
            for stage in inputs.stages
        ]
        header = ["stage", "state", "seconds", "memory at most, GB"]
        items.append(Grid("Stages", header, rows, frozenset({2, 3})))
    else:
        items.append(
            "How long each stage took is in `summary.json`, where its seconds went in `profile.json` and in a section that is "
            "added when the run is handed over: a report that the cache can keep must not depend on it."
        )
    if inputs.config:
        rows = [[key, value] for key, value in _flat(inputs.config)]
        items.append(
            Grid("Config", ["setting", "value"], rows, code=frozenset({0, 1}), folded=True)
        )
    return Section("run", "The run", items)


def _by(linears: pd.DataFrame, key: str) -> Grid:
    """Bits, formats, alpha, loss and error of each role or block."""
    data = linears[linears["bits_per_weight"].notna() & linears[key].notna()]
    order = (
        role_order(data["role"])
        if key == "role"
        else sorted({int(block) for block in data["block"]})
    )
    columns: list[tuple[str, str, Callable[[Floats], Any]]] = [
        ("alpha", "median alpha", np.median),
        ("loss", "predicted loss, sum", np.sum),
        ("error_rtn", "median error, rounding", np.median),
        ("error", "median error, after", np.median),
    ]
    present = [
        column for column in columns if column[0] in data.columns and data[column[0]].notna().any()
    ]
    rows = []
    for name in order:
        part = data[data[key] == name]
        cells = [
            str(name) if key == "role" else whole(name),
            f"{len(part):,}",
            f"{int(part['size'].sum()):,}",
        ]
        cells.append(f"{float(np.average(part['bits_per_weight'], weights=part['size'])):.3f}")
        for column, _, summary in present:
            values = part[column].dropna().to_numpy(dtype="float64")
            cells.append(number(float(summary(values))) if len(values) else "–")
        shares = (part.groupby("scheme")["size"].sum() / part["size"].sum()).sort_values(
            ascending=False, kind="stable"
        )
        cells.append(
            ", ".join(f"{scheme} {share_text(float(share))}" for scheme, share in shares.items())
        )
        rows.append(cells)
    header = [
        key,
        "linears",
        "weights",
        "bits per weight",
        *(title for _, title, _ in present),
        "formats",
    ]
    numeric = frozenset(range(1, len(header) - 1)) | (
        frozenset({0}) if key == "block" else frozenset()
    )
    return Grid(
        f"By {key}", header, rows, numeric, frozenset({len(header) - 1}), folded=len(rows) > 12
    )


def _gigabytes(value: object) -> str:
    return f"{value / 1e9:.1f}" if isinstance(value, int) else "–"


def _seconds(value: object) -> str:
    return f"{float(value):,.1f}" if isinstance(value, int | float) else "–"


def _flat(config: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            text = (
                value
                if isinstance(value, str)
                else json.dumps(value, ensure_ascii=False, default=str)
            )
            found.append((f"{prefix}{key}", text))
    return found
