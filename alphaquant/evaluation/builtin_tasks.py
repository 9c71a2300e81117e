"""Two lm-eval tasks that need no download, made of the held-out part of the builtin text.

`builtin_rolling` is the rolling perplexity of whole documents. `builtin_cloze` shows forty words of a
document and asks which of four endings of six words is the true one; the others come from other
documents. Chance is 25 %. Besides lm-eval's `acc` it reports `acc_mutual_info`, which takes off what
each ending is worth without the context. Questions and their order are the same everywhere.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from alphaquant.text.builtin import Document, documents

BUILTIN_TASKS = ("builtin_rolling", "builtin_cloze")
CONTEXT_WORDS = 40
ENDING_WORDS = 6
LEAD_WORDS = 8
CHOICES = 4
QUESTIONS = 200
SEED = 0


def rolling_rows() -> list[dict[str, Any]]:
    """One row per held-out document: `page`."""
    return [{"page": document.text} for document in documents("test")]


def cloze_rows() -> list[dict[str, Any]]:
    """`QUESTIONS` rows: `context`, four `choices`, and `label`, the index of the true one."""
    return cloze_questions(documents("test"), QUESTIONS, SEED)


@dataclass(frozen=True, slots=True)
class Passage:
    """A place in a document: the words before it and those that follow."""

    document: str
    context: str
    ending: str


def cloze_questions(texts: list[Document], count: int, seed: int) -> list[dict[str, Any]]:
    """At most `count` questions over `texts`, in seeded order, so that any first part is a mix.

    The three wrong endings are those of other documents whose words are, in sum, most nearly as
    rare as the true one's: else the commonest words would win, whatever the context.
    """
    passages = [passage for text in texts for passage in passages_of(text)]
    counts = Counter(word for text in texts for word in text.text.split())
    rarity = {
        passage.ending: -sum(math.log(counts[word]) for word in passage.ending.split())
        for passage in passages
    }
    order = random.Random(seed)
    order.shuffle(passages)
    rows: list[dict[str, Any]] = []
    for passage in passages[:count]:
        others = {p.ending: None for p in passages if p.document != passage.document}
        others.pop(passage.ending, None)
        near = sorted(others, key=lambda ending: abs(rarity[ending] - rarity[passage.ending]))
        choices = [passage.ending, *near[: CHOICES - 1]]
        if len(choices) == CHOICES:
            order.shuffle(choices)
            label = choices.index(passage.ending)
            rows.append({"context": passage.context, "choices": choices, "label": label})
    return rows


def passages_of(document: Document) -> list[Passage]:
    """Places at least `LEAD_WORDS` into a paragraph, `CONTEXT_WORDS` apart, with whole endings.

    An ending that began a paragraph would be told by its capital and could be about anything.
    """
    text, found, start = document.text, [], 0
    words: list[tuple[int, int]] = []
    for paragraph in text.split("\n\n"):
        spans = [(start + m.start(), start + m.end()) for m in re.finditer(r"\S+", paragraph)]
        first = len(words)
        words += spans
        for at in range(first + LEAD_WORDS, len(words) - ENDING_WORDS + 1, CONTEXT_WORDS):
            begin = words[max(0, at - CONTEXT_WORDS)][0]
            context = text[begin : words[at - 1][1]]
            ending = text[words[at][0] : words[at + ENDING_WORDS - 1][1]]
            found.append(Passage(document.name, context, ending))
        start += len(paragraph) + 2
    return found


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
            "metric_list": [
                {"metric": "acc"},
                {"metric": "acc_norm"},
                {"metric": "acc_mutual_info"},
            ],
        },
    }
    if name not in configurations:
        return None
    return {"task": name, "test_split": "test", "num_fewshot": 0, **configurations[name]}
