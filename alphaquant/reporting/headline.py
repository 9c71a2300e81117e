"""The first screen: how small the model became, what that cost, and the answer in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from alphaquant.reporting.document import Card
from alphaquant.reporting.linears import plan_bits
from alphaquant.reporting.notation import (
    change_text,
    count,
    number,
    share_text,
    shown,
    shown_change,
    shown_interval,
    size_change,
)
from alphaquant.reporting.scores import ORIGINAL, ROTATED, Scores
from alphaquant.reporting.tables import ReportInputs

_CARD_TASKS = 4


def cards(inputs: ReportInputs, linears: pd.DataFrame, scores: Scores) -> list[Card]:
    """The headline numbers that this run has, most important first."""
    found = []
    bits = plan_bits(linears)
    if bits is not None:
        found.append(
            Card(
                "bits per weight",
                number(bits),
                f"{16 / bits:.1f}× smaller than bf16, decoder linears",
            )
        )
    sizes = model_sizes(inputs, linears)
    if sizes is not None:
        before, after = sizes
        found.append(
            Card(
                "whole model",
                size_change(before, after),
                f"{before / after:.1f}× smaller than bf16, embeddings included",
            )
        )
    first, second = scores.find("perplexity", ORIGINAL), scores.find("perplexity")
    if second is not None:
        note = change_text(first, second, scores.change(second)) or "quantized"
        found.append(Card("perplexity, held-out text", shown_change(first, second), note))
    if (kl := scores.find("kl_mean")) is not None:
        tail = scores.find("kl_p999")
        notes = ["nats per token", f"99.9th percentile {number(tail.value)}" if tail else ""]
        found.append(
            Card("KL to the original", number(kl.value), "; ".join(note for note in notes if note))
        )
    if (top := scores.find("top1_agreement")) is not None:
        interval = shown_interval(top)
        found.append(
            Card(
                "top-1 agreement",
                shown(top),
                f"95 %: {interval}" if interval else "same next token",
            )
        )
    for original, quantized in scores.tasks()[:_CARD_TASKS]:
        change = change_text(original, quantized, scores.change(quantized))
        note = f"{quantized.name}: {change}" if change else quantized.name
        found.append(Card(quantized.task, shown_change(original, quantized), note))
    return found


def model_sizes(inputs: ReportInputs, linears: pd.DataFrame) -> tuple[float, float] | None:
    """Bits of the whole model in bf16 and after compression; None when its parameters are not known."""
    if inputs.parameters is None or "bits_per_weight" not in linears.columns:
        return None
    planned = linears[linears["bits_per_weight"].notna()]
    stored = float((planned["bits_per_weight"] * planned["size"]).sum())
    own = planned[planned["role"] != "lm_head"] if inputs.tied else planned
    rest = 16.0 * max(inputs.parameters - int(own["size"].sum()), 0)
    after = inputs.total_bits if inputs.total_bits is not None else stored + rest
    return 16.0 * inputs.parameters, float(after)


def answer(inputs: ReportInputs, linears: pd.DataFrame, scores: Scores) -> list[str]:
    """What was done and what it cost, one sentence each."""
    sentences = []
    bits = plan_bits(linears)
    method, policy = (
        inputs.setting("quantization", "method"),
        inputs.setting("allocation", "policy"),
    )
    if bits is not None:
        planned = linears[linears["bits_per_weight"].notna()]
        formats = planned.groupby("scheme")["size"].sum() / planned["size"].sum()
        most = formats.sort_index().sort_values(ascending=False, kind="stable")
        listed = ", ".join(
            f"`{name}` {share_text(float(share))}" for name, share in most.head(4).items()
        )
        more = len(most) - 4
        rest = f" and {count(more, 'more format')}" if more > 0 else ""
        made = f" by policy `{policy}`" if policy else ""
        rounded = f" and rounded by `{method}`" if method else ""
        sentences.append(
            f"{count(len(planned), 'linear')} of {inputs.model} were assigned formats{made}{rounded}; "
            f"by share of weights: {listed}{rest}."
        )
        if bool((planned["role"] == "lm_head").any()):
            decoder = plan_bits(planned[planned["role"] != "lm_head"])
            sentences.append(
                f"`lm_head` is among them, with a format of its own; the decoder's linears, which budgets count, "
                f"store {decoder:.3f} bits per weight."
            )
    else:
        sentences.append("This run made no plan, so bits per weight are not known.")
    if inputs.rotation is not None:
        sentences.append(_rotation(inputs.rotation, scores))
    sentences += _cost(scores)
    if inputs.setting("export", "format") == "dense" and bits is not None:
        sentences.append(
            "Exported as `dense`, the checkpoint holds the rounded values as bf16: its folder is no smaller than the "
            "original's. Bits per weight count what the formats themselves store, scales and zero points included."
        )
    return sentences


def _rotation(facts: Mapping[str, Any], scores: Scores) -> str:
    text = (
        "The model was rotated inside its weights before they were rounded: the largest weight of a group went from "
        f"{number(facts['peak_before'])} to {number(facts['peak_after'])} times the root mean square (Gaussian "
        "weights: 2.85)"
    )
    kl = scores.find("kl_mean", ROTATED)
    if kl is None:
        return f"{text}."
    return f"{text}; rotated but not quantized, its mean token KL to the original is {number(kl.value)} nats."


def _cost(scores: Scores) -> list[str]:
    first, second = scores.find("perplexity", ORIGINAL), scores.find("perplexity")
    parts = []
    if first is not None and second is not None:
        change = change_text(first, second, scores.change(second))
        parts.append(
            f"held-out perplexity goes from {shown(first)} to {shown(second)}, {change or 'not comparable'}"
        )
    if (kl := scores.find("kl_mean")) is not None:
        interval = f" (95 % interval {shown_interval(kl)})" if shown_interval(kl) else ""
        parts.append(f"the mean token KL to the original is {number(kl.value)} nats{interval}")
    if not parts:
        return ["The run measured no held-out text, so what compression cost is not known from it."]
    text = "; ".join(parts)
    return [f"{text[0].upper()}{text[1:]}."]
