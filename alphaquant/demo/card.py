"""The demo model's card: `model/README.md`, written from measured figures."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from alphaquant.demo import DEMO_LENGTH
from alphaquant.demo.measure import Figures

_CARD = """---
language: en
pipeline_tag: text-generation
---
# AlphaQuant demo model

A small mixture-of-experts language model of the OLMoE architecture, trained from scratch on the
training part of AlphaQuant's `builtin` text: the documentation that comes with every Python
(pydoc topics and the standard library's docstrings). It exists so that a compression run has
something real to compress without a download. It writes sentences that look like Python
documentation and knows nothing.

| | |
|---|---|
| parameters | {parameters:,} ({bytes:,} bytes as bf16) |
| blocks, hidden size, heads | {blocks}, {hidden}, {heads} |
| experts per block, used per token | {experts}, {chosen} |
| tokenizer | byte-level BPE, {vocabulary:,} tokens |
| training | {steps:,} steps of {batch:,} tokens, seed {seed} |
| held-out perplexity ({windows} windows of {length} tokens) | {perplexity:.2f} |
| a unigram model's, same tokens | {unigram:.1f} ({ratio:.1f} times as much) |
| after rounding every matrix but the routers to the nearest int2 (128 weights per scale) | {int2:.1f} |
| load of the busiest and the idlest expert (even: 1) | {busiest:.2f}, {idlest:.2f} |

Reproduce it with `python -m alphaquant.demo.train --out DIR --seed {seed} --steps {steps}`. The
same versions on the same kind of CPU give the same bytes.
"""


def write_card(folder: Path, figures: Figures, steps: int, batch_tokens: int, seed: int) -> str:
    """Write `README.md` into a checkpoint folder, and return it."""
    config = AutoConfig.from_pretrained(folder)
    text = _CARD.format(
        parameters=figures.parameters,
        bytes=(folder / "model.safetensors").stat().st_size,
        blocks=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        experts=config.num_experts,
        chosen=config.num_experts_per_tok,
        vocabulary=config.vocab_size,
        steps=steps,
        batch=batch_tokens,
        seed=seed,
        windows=figures.windows,
        length=DEMO_LENGTH,
        perplexity=figures.perplexity,
        unigram=figures.unigram_perplexity,
        ratio=figures.unigram_perplexity / figures.perplexity,
        int2=figures.int2_perplexity,
        busiest=figures.expert_load.max().item(),
        idlest=figures.expert_load.min().item(),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text
