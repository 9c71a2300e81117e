"""Two lm-eval tasks that need no download, made of the held-out part of the builtin text.

`builtin_rolling` is the rolling perplexity of whole documents. `builtin_cloze` shows about forty
words of a document and asks which of four endings of six words is the true one; the others come
from other documents. Questions and their order are the same everywhere.
"""

from __future__ import annotations

import random
from typing import Any

from alphaquant.text.builtin import Document, documents

BUILTIN_TASKS = ("builtin_rolling", "builtin_cloze")
CONTEXT_WORDS = 40
ENDING_WORDS = 6
CHOICES = 4
QUESTIONS = 200
SEED = 0


def rolling_rows() -> list[dict[str, Any]]:
    """One row per held-out document: `page`."""
    return [{"page": document.text} for document in documents("test")]


def cloze_rows() -> list[dict[str, Any]]:
    """`QUESTIONS` rows: `context`, four `choices`, and `label`, the index of the true one."""
    return cloze_questions(documents("test"), QUESTIONS, SEED)


def cloze_questions(texts: list[Document], count: int, seed: int) -> list[dict[str, Any]]:
    """Questions over `texts`, drawn from documents in turn so that any number of them is mixed.

    Every ending starts within a paragraph, so that a capital or the topic of a first word does not
    give it away. Documents without a long enough paragraph ask nothing.
    """
    order = random.Random(seed)
    passages = {text.name: _passages(text.text) for text in texts}
    askers = [name for name, found in passages.items() if found]
    for found in passages.values():
        order.shuffle(found)
    rows: list[dict[str, Any]] = []
    round_number = 0
    while len(rows) < count and len(askers) >= CHOICES:
        order.shuffle(askers)
        for name in askers:
            if round_number >= len(passages[name]) or len(rows) == count:
                continue
            context, ending = passages[name][round_number]
            rivals = order.sample([other for other in askers if other != name], CHOICES - 1)
            choices = [ending, *(order.choice(passages[rival])[1] for rival in rivals)]
            order.shuffle(choices)
            rows.append({"context": context, "choices": choices, "label": choices.index(ending)})
        round_number += 1
        if all(round_number >= len(passages[name]) for name in askers):
            break
    return rows


def _passages(text: str) -> list[tuple[str, str]]:
    """Consecutive pieces of the paragraphs: (context, ending)."""
    size = CONTEXT_WORDS + ENDING_WORDS
    return [
        (" ".join(words[at : at + CONTEXT_WORDS]), " ".join(words[at + CONTEXT_WORDS : at + size]))
        for words in (paragraph.split() for paragraph in text.split("\n\n"))
        for at in range(0, len(words) - size + 1, size)
    ]


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return {"test": Dataset.from_list(rows)}


def builtin_task(name: str) -> dict[str, Any] | None:
    """The lm-eval configuration of one of our tasks, or None for any other name."""
    configurations: dict[str, dict[str, Any]] = {
        "builtin_rolling": {
            "custom_dataset": lambda **_: _dataset(rolling_rows()),
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{page}}",
            "metric_list": [
                {"metric": "word_perplexity"},
                {"metric": "byte_perplexity"},
                {"metric": "bits_per_byte"},
            ],
        },
        "builtin_cloze": {
            "custom_dataset": lambda **_: _dataset(cloze_rows()),
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
    }
    if name not in configurations:
        return None
    return {"task": name, "test_split": "test", "num_fewshot": 0, **configurations[name]}
