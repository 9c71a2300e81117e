"""The picture of a comparison: every format and method is on it, and nothing measured gives none."""

from __future__ import annotations

import numpy as np
import pandas as pd

from alphaquant.reporting.comparison import (
    COLUMNS,
    _figure,
    comparison_markdown,
    comparison_png,
)
from alphaquant.reporting.style import drawing


def table() -> pd.DataFrame:
    rows = [
        ("gptq", "int4", 4.5, 0.005, 9.8),
        ("rtn", "int4", 4.5, 0.008, 1.2),
        ("gptq", "int3", 3.5, 0.02, np.nan),
        ("rtn", "int3", 3.5, 0.05, 1.1),
    ]
    found = pd.DataFrame(rows, columns=["method", "format", "bits_per_weight", "kl", "seconds"])
    found = found.assign(kl_low=found["kl"] * 0.9, kl_high=np.nan, perplexity=11.0)
    found = found.assign(perplexity_original=10.0, top1_agreement=0.9, status="completed")
    return found.assign(error=None).reindex(columns=COLUMNS)


def test_axes_have_units_and_the_legend_has_formats_with_their_bits() -> None:
    with drawing():
        figure = _figure(table())
    left, right = figure.axes
    assert "nats per token" in left.get_xlabel()
    assert "(s)" in right.get_xlabel()
    # the best method on top
    assert [label.get_text() for label in left.get_yticklabels()] == ["rtn", "gptq"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["int4 (4.500 bits per weight)", "int3 (3.500 bits per weight)"]
    assert left.get_xscale() == right.get_xscale() == "log"


def test_equal_tables_give_equal_bytes_and_an_empty_one_none() -> None:
    assert comparison_png(table()) == comparison_png(table())
    assert comparison_png(table().assign(kl=np.nan)) is None


def test_the_page_marks_the_best_of_a_format_and_what_is_not_known() -> None:
    page = comparison_markdown("demo", table(), None)
    assert "**0.00500**" in page
    assert "**0.0200**" in page
    assert page.count("**") == 4
    assert "| 11.00 | 90.0% | – |" in page
    assert "Perplexity of the original: 10.00." in page


def test_seconds_of_different_devices_are_told_apart() -> None:
    same = comparison_markdown("demo", table().assign(device="cuda"), None)
    assert "cuda" not in same
    mixed = comparison_markdown("demo", table().assign(device=["cuda", "cpu", None, "cpu"]), None)
    assert "| 9.8 (cuda) |" in mixed
    assert "| 1.2 (cpu) |" in mixed
    assert "| – |" in mixed
    assert "compare those of one device only" in mixed
