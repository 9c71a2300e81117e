"""The report's section on serving, which is measured after the run that the report is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from alphaquant.reporting.document import Grid, Picture, Section
from alphaquant.sizes import size_text

_KEY, _TITLE = "serving", "Serving"
_HEADER = ("model", "with", "on disk", "load s", "memory", "read/s", "written/s", "computed with")


def serving_section(answer: Mapping[str, Any], png: bytes) -> Section:
    """What `alphaquant benchmark` found: `answer` is what it prints as JSON, `png` its figure."""
    load = (
        f"{answer['batch_size']} x {answer['prompt_tokens']} tokens read, {answer['new_tokens']} written, on "
        f"{answer['measured'][:10]}; {answer['cores']} cores under load {answer['load_average']}. Medians (lowest to highest) "
        "of fresh processes, tokens per second. Weights that a consumer decodes when it loads are as fast as those "
        "that they are decoded to: the last column says what was multiplied with."
    )
    rows = [serving_row(entry) for entry in answer["rows"]]
    numeric = frozenset(range(2, len(_HEADER) - 1))
    left_out = [f"{p['model']} with {p['consumer']}: {p['reason']}" for p in answer["not_measured"]]
    picture = Picture(
        _KEY,
        "Bytes, memory and speed by consumer",
        "Grey is the original; lines go from the lowest to the highest repeat.",
        png,
    )
    grid = Grid("Medians", _HEADER, rows, numeric)
    return Section(_KEY, _TITLE, [load, picture, grid, *left_out])


def serving_row(entry: Mapping[str, Any]) -> list[str]:
    """One model with one consumer, in the order of the table's columns."""
    memory = entry["device_peak_bytes"] or entry["peak_bytes"]
    return [
        entry["model"],
        entry["consumer"],
        size_text(entry["bytes_on_disk"]),
        _span(entry["load_seconds"]),
        size_text(memory["median"]),
        _span(entry["prefill"]),
        _span(entry["decode"]),
        entry["computed_with"],
    ]


def _span(found: Mapping[str, float]) -> str:
    """The median, and the range where there is one."""
    values = [found[key] for key in ("low", "median", "high")]
    low, middle, high = (f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
    return middle if low == high else f"{middle} ({low} to {high})"
