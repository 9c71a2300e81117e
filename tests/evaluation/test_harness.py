"""lm-eval runs our tasks, a user's own and named ones, quietly, and explains what it cannot run."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from alphaquant.demo import demo_model_path
from alphaquant.errors import DataError
from alphaquant.evaluation import harness
from alphaquant.evaluation.harness import (
    TaskRun,
    answer_tasks,
    load_tasks,
    paired_changes,
    run_tasks,
)
from alphaquant.evaluation.scores import Score

QUESTIONS = 100


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def run(model: Any, tokenizer: Any) -> TaskRun:
    parts = [
        answer_tasks(
            model,
            tokenizer,
            [task],
            limit=limit,
            max_length=256,
            batch_size=32,
            model_label="original",
        )
        for task, limit in (("builtin_rolling", 6), ("builtin_cloze", QUESTIONS))
    ]
    return TaskRun([s for part in parts for s in part.scores], parts[1].answers)


def test_both_of_our_tasks_are_scored_with_intervals(run: TaskRun) -> None:
    rows = {(score.task, score.metric): score for score in run.scores}
    assert set(rows) == {
        ("builtin_rolling", "word_perplexity"),
        ("builtin_rolling", "byte_perplexity"),
        ("builtin_rolling", "bits_per_byte"),
        ("builtin_cloze", "acc"),
        ("builtin_cloze", "acc_norm"),
        ("builtin_cloze", "acc_mutual_info"),
    }
    assert all(s.model == "original" and s.low < s.value < s.high for s in rows.values())
    byte = rows["builtin_rolling", "byte_perplexity"].value
    assert rows["builtin_rolling", "bits_per_byte"].value == pytest.approx(math.log2(byte))
    assert 2 < byte < 6


def test_a_share_has_the_binomial_standard_error(run: TaskRun) -> None:
    score = next(s for s in run.scores if s.metric == "acc")
    assert score.stderr == pytest.approx(
        math.sqrt(score.value * (1 - score.value) / (QUESTIONS - 1))
    )
    assert len(run.answers["builtin_cloze", "acc"]) == QUESTIONS


def test_the_demo_model_is_clearly_above_chance(run: TaskRun) -> None:
    rows = {score.metric: score for score in run.scores}
    assert rows["acc"].value - 3 * rows["acc"].stderr > 0.25
    assert rows["acc_mutual_info"].value - 6 * rows["acc_mutual_info"].stderr > 0.25


def test_a_users_own_task_file_runs(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    rows = [
        {"question": f"The value of item {i} is", "choices": ["returned", "xq"], "gold": 0}
        for i in range(4)
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(
        "task: mine\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'mine.jsonl'}}}, cache_dir: {tmp_path}}}\n"
        "output_type: multiple_choice\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: gold\n'
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    scores = run_tasks(model, tokenizer, [str(tmp_path / "mine.yaml")], max_length=64)
    assert [(score.task, score.metric) for score in scores] == [("mine", "acc")]
    assert 0 <= scores[0].value <= 1


def test_nothing_is_printed_and_nothing_stays_changed(
    capfd: pytest.CaptureFixture[str], model: Any, tokenizer: Any
) -> None:
    before = tqdm.tqdm.__init__, logging.getLogger("transformers").level
    run_tasks(model, tokenizer, ["builtin_cloze"], limit=2, max_length=256)
    assert capfd.readouterr() == ("", "")
    assert (tqdm.tqdm.__init__, logging.getLogger("transformers").level) == before


def test_no_tasks_are_no_scores(model: Any, tokenizer: Any) -> None:
    assert run_tasks(model, tokenizer, []) == []


def test_a_missing_task_file_is_an_error() -> None:
    with pytest.raises(DataError, match=r"no task file nowhere/mine\.yaml"):
        load_tasks(["nowhere/mine.yaml"])


@pytest.mark.parametrize("content", ["task: [", "question: 1\n", "task: bare\n"])
def test_a_broken_task_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(content)
    with pytest.raises(DataError, match=r"cannot use the task file .*broken\.yaml"):
        load_tasks([str(file)])


class Index:
    """Stands in for lm-eval's index, which takes many seconds to read."""

    built: list[bool]

    def __init__(self, include_defaults: bool) -> None:
        Index.built.append(include_defaults)
        self.task_index = {"hellaswag": None} if include_defaults else {}
        self.all_tasks = list(self.task_index)

    def load(self, names: list[Any]) -> Any:
        if names == ["hellaswag"]:
            raise ConnectionError("Couldn't reach 'Rowan/hellaswag' on the Hub\nand more")
        return {"tasks": {}, "groups": {}, "group_map": {}}


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> type[Index]:
    import lm_eval.tasks

    Index.built = []
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Index)
    return Index


def test_the_large_index_is_read_only_for_its_own_names(index: type[Index]) -> None:
    load_tasks(["builtin_cloze", "builtin_rolling"])
    assert index.built == [False]


def test_an_unknown_task_names_the_nearest(index: type[Index]) -> None:
    with pytest.raises(DataError, match=r"unknown task 'helaswag'; nearest: hellaswag"):
        load_tasks(["helaswag"])
    assert index.built == [True]


def test_a_dataset_that_cannot_be_reached_says_what_to_do(index: type[Index]) -> None:
    with pytest.raises(
        DataError, match=r"cannot load task 'hellaswag'.*reach.*builtin_rolling"
    ) as caught:
        load_tasks(["hellaswag"])
    assert "\n" not in str(caught.value)
    assert index.built == [True]


def test_changes_are_paired_by_question() -> None:
    key = ("task", "acc")
    original = TaskRun([], {key: {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0}, ("task", "f1"): {0: 1.0}})
    quantized = TaskRun([], {key: {1: 1.0, 2: 1.0, 3: 0.0, 9: 0.0}})
    (score,) = paired_changes(original, quantized)
    assert (score.task, score.metric, score.model) == ("task", "acc_change", "quantized")
    assert score.value == 0
    assert score.low < 0 < score.high


def test_equal_answers_change_nothing_for_sure() -> None:
    answered = TaskRun([], {("task", "acc"): {q: float(q % 2) for q in range(10)}})
    (score,) = paired_changes(answered, answered)
    assert (score.value, score.stderr, score.low, score.high) == (0, 0, 0, 0)


def test_a_metric_without_a_standard_error_has_no_interval() -> None:
    run = TaskRun([], {})
    results = {
        "results": {
            "gsm": {"alias": "gsm", "exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"}
        },
        "samples": {},
    }
    harness._collect(results, "original", run)
    score = run.scores[0]
    assert isinstance(score, Score)
    assert (score.metric, score.value) == ("exact_match,strict", 0.5)
    assert math.isnan(score.stderr)
    assert math.isnan(score.low)


def test_a_window_too_short_for_an_answer_is_explained(model: Any, tokenizer: Any) -> None:
    with pytest.raises(
        DataError, match=r"longer than a window of 2 tokens.*evaluation\.sequence_length"
    ):
        answer_tasks(model, tokenizer, ["builtin_cloze"], limit=4, max_length=2)
