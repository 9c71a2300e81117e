"""The right row of scores.parquet ends up behind each headline number, written as people write it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from alphaquant.evaluation import scores as evaluation
from alphaquant.reporting import scores as reporting
from alphaquant.reporting.notation import change_text, number, share_text, shown, size_change
from alphaquant.reporting.scores import Scores
from alphaquant.reporting.tables import ReportInputs


def table(*rows: tuple[str, str, float, str]) -> pd.DataFrame:
    """Scores without intervals."""
    return pd.DataFrame(rows, columns=["task", "metric", "value", "model"])


def test_labels_are_those_that_evaluation_writes() -> None:
    ours = (reporting.ORIGINAL, reporting.QUANTIZED, reporting.HELDOUT)
    assert ours == (evaluation.ORIGINAL, evaluation.QUANTIZED, evaluation.HELDOUT)


def test_a_task_with_its_own_perplexity_is_not_taken_for_the_held_out_text() -> None:
    found = Scores.of(
        table(
            ("lambada", "perplexity", 9.0, "quantized"), ("heldout", "perplexity", 5.0, "quantized")
        )
    ).find("perplexity")
    assert found is not None
    assert found.value == 5.0


def test_paired_changes_are_companions_and_no_scores_of_their_own(moe_run: ReportInputs) -> None:
    scores = Scores.of(moe_run.scores)
    assert not any("change" in second.metric for _, second in scores.pairs())
    acc = scores.find("acc", task="builtin_cloze")
    assert acc is not None
    original = scores.find("acc", "original", "builtin_cloze")
    assert change_text(original, acc, scores.change(acc)) == "−1.70 points (−3.30 to −0.10)"
    perplexity = scores.find("perplexity")
    assert perplexity is not None
    assert change_text(None, perplexity, scores.change(perplexity)) == "+2.76 % (+2.01 to +3.49)"


def test_an_unpaired_change_has_no_interval(moe_run: ReportInputs) -> None:
    scores = Scores.of(moe_run.scores)
    first = scores.find("bits_per_byte", "original", "builtin_rolling")
    second = scores.find("bits_per_byte", task="builtin_rolling")
    assert second is not None
    assert change_text(first, second, None) == "+1.68 %"


def test_each_task_has_one_main_metric() -> None:
    rows = [("t", metric, 0.5, "quantized") for metric in ("f1", "acc", "acc_norm")]
    assert [second.metric for _, second in Scores.of(table(*rows)).tasks()] == ["acc_norm"]


def test_a_numbered_series_of_plans_is_one_rival_and_a_format_is_not_a_number() -> None:
    rows = [("heldout", "kl_mean", 0.1 * n, f"random {n}") for n in (1, 2, 3)]
    rows += [
        ("heldout", "kl_mean", 0.05, "uniform int4"),
        ("heldout", "kl_mean", 0.01, "quantized"),
    ]
    rows += [("heldout", "bits_per_weight", 4.25, "uniform int4")]
    rivals = Scores.of(table(*rows)).rivals()
    assert [rival.text for rival in rivals] == ["uniform int4, 4.25 bits", "random (3)"]
    assert [score.value for score in rivals[1].scores] == pytest.approx([0.1, 0.2, 0.3])


def test_a_standard_error_becomes_an_interval() -> None:
    rows = table(("t", "acc", 0.5, "quantized")).assign(stderr=0.1)
    score = Scores.of(rows).rows[0]
    assert (score.low, score.high) == pytest.approx((0.304, 0.696))
    assert shown(score) == "50.0 %"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4.25, "4.25"),
        (5.4312, "5.43"),
        (-0.0312, "−0.0312"),
        (123.4, "123"),
        (12345.6, "12,346"),
        (0.00099999, "0.00100"),
        (0.0000123, "1.23e-05"),
        (-0.0000123, "−1.23e-05"),
        (3.1e8, "3.10e+08"),
        (np.nan, "–"),
        (np.inf, "∞"),
    ],
)
def test_numbers_have_three_digits_and_true_minus_signs(value: float, text: str) -> None:
    assert number(value) == text


def test_a_share_that_rounds_to_nothing_is_still_there() -> None:
    assert [share_text(share) for share in (0.0, 0.002, 0.336)] == ["0 %", "<1 %", "34 %"]


def test_sizes_are_in_one_unit() -> None:
    assert size_change(8 * 13.9e9, 8 * 3.7e9) == "13.9 → 3.70 GB"
    assert size_change(8 * 1.2e9, 8 * 4.1e8) == "1,200 → 410 MB"
