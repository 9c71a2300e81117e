"""Which figures may flatter: choices of AlphaQuant's defaults were made on some models and texts, not on others."""

from __future__ import annotations

from typing import Literal, TypeAlias

Standing: TypeAlias = Literal["tuned on", "held back"]

TUNED_MODELS = ("demo", "llama")
"""Models that defaults, recipes and thresholds were chosen on. All others are only reported."""
TUNED_TEXTS = ("builtin",)
"""Held-out texts that choices were made by. All others, such as wikitext2-test, are only reported."""


def standing(model: str, text: str) -> Standing:
    """`tuned on` where both the model and the text have had a say, by the names that pages give them."""
    return "tuned on" if model in TUNED_MODELS and text in TUNED_TEXTS else "held back"


def standing_words() -> str:
    """Markdown: what the column means."""
    return (
        f"*Tuned on* are the figures of {' and '.join(TUNED_MODELS)} on {' and '.join(TUNED_TEXTS)} text, by which "
        "defaults and recipes were chosen; *held back* are all others: no choice looked at them, but for correction's prior and "
        "the share of own text, which wikitext2-test had a say in (DECISIONS.md)."
    )
