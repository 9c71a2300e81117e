"""Train the demo model: a small OLMoE on the training part of the builtin text.

    python -m alphaquant.demo.train --out DIR --seed 0

About 2.8 million parameters, at most 6 MB as bf16; some ten minutes on two idle CPU cores. The same
seed gives the same bytes with the same versions on the same kind of CPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import OlmoeConfig, OlmoeForCausalLM

from alphaquant.demo.card import write_card
from alphaquant.demo.measure import measure
from alphaquant.demo.training import DEMO, save, train_model
from alphaquant.text.builtin import documents


def model_config(end: int) -> OlmoeConfig:
    """Four blocks of sixteen experts, four of them per token."""
    return OlmoeConfig(
        vocab_size=DEMO.vocabulary,
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=16,
        num_experts_per_tok=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        router_aux_loss_coef=0.01,
        output_router_logits=False,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        dtype="bfloat16",
    )


def train(out: Path, seed: int, steps: int) -> None:
    """Train from scratch, write the checkpoint folder `out`, measure it and write its card."""
    model, tokenizer = train_model(
        lambda end: OlmoeForCausalLM(model_config(end)),
        [document.text for document in documents("train")],
        [document.text for document in documents("calibration")],
        seed=seed,
        steps=steps,
    )
    save(model, tokenizer, out)
    card = write_card(out, measure(model, tokenizer), steps, DEMO.batch * DEMO.length, seed)
    print(card)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
