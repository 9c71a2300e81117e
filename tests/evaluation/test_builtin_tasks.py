"""Our lm-eval tasks are made the same way everywhere and give nothing away."""

from __future__ import annotations

import math
from collections import Counter

from alphaquant.evaluation.builtin_tasks import (
    BUILTIN_TASKS,
    CHOICES,
    builtin_task,
    cloze_questions,
    cloze_rows,
    passages_of,
    rolling_rows,
)
from alphaquant.text.builtin import Document, documents


def test_rolling_rows_are_the_held_out_documents() -> None:
    assert [row["page"] for row in rolling_rows()] == [d.text for d in documents("test")]


def test_cloze_questions_are_many_and_deterministic() -> None:
    rows = cloze_rows()
    assert rows == cloze_rows()
    assert len(rows) == 200
    assert all(len(row["choices"]) == CHOICES == len(set(row["choices"])) for row in rows)


def test_the_true_ending_follows_its_context_in_a_held_out_document() -> None:
    texts = [document.text for document in documents("test")]
    for row in cloze_rows():
        whole = f"{row['context']} {row['choices'][row['label']]}"
        assert any(whole in text for text in texts)
        assert len(row["context"].split()) <= 40


def test_the_place_of_the_true_ending_gives_nothing_away() -> None:
    places = Counter(row["label"] for row in cloze_rows())
    assert set(places) == set(range(CHOICES))
    assert max(places.values()) < 0.4 * len(cloze_rows())


def test_any_number_of_questions_is_a_mix_of_documents() -> None:
    texts = {d.text: d.name for d in documents("test")}
    askers = {
        next(name for text, name in texts.items() if row["context"] in text)
        for row in cloze_rows()[:20]
    }
    assert len(askers) >= 8


def test_wrong_endings_are_as_rare_as_the_true_one() -> None:
    counts = Counter(word for document in documents("test") for word in document.text.split())

    def rarity(ending: str) -> float:
        return -sum(math.log(counts[word]) for word in ending.split())

    gaps = [
        abs(rarity(choice) - rarity(row["choices"][row["label"]]))
        for row in cloze_rows()
        for choice in row["choices"]
    ]
    assert sorted(gaps)[int(0.95 * len(gaps))] < 1


def test_endings_never_begin_a_paragraph() -> None:
    document = Document(
        "d", "\n\n".join(" ".join(f"w{p}x{i}" for i in range(60)) for p in range(3))
    )
    passages = passages_of(document)
    assert len(passages) == 6
    for passage in passages:
        paragraph = {word.split("x")[0] for word in passage.ending.split()}
        assert len(paragraph) == 1
        assert passage.context.split()[-1].startswith(paragraph.pop())


def test_too_few_documents_ask_nothing() -> None:
    lone = [Document("one", " ".join(f"word{i}" for i in range(500))), Document("two", "short")]
    assert cloze_questions(lone, 10, seed=0) == []


def test_only_our_own_names_have_a_configuration() -> None:
    configurations = [builtin_task(name) for name in BUILTIN_TASKS]
    assert [c["task"] for c in configurations if c is not None] == list(BUILTIN_TASKS)
    assert builtin_task("hellaswag") is None
