"""Train the demo model: a small OLMoE on the training part of the builtin text.

    python -m alphaquant.demo.train --out DIR --seed 0

About 2.8 million parameters, at most 6 MB as bf16; about 20 minutes on two CPU cores. The same seed,
machine and thread count give the same bytes.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from alphaquant.evaluation.perplexity import perplexity
from alphaquant.text.builtin import documents
from alphaquant.text.windows import evaluation_windows

VOCABULARY = 1024
END = "<|endoftext|>"
LENGTH = 256
BATCH = 16
DROPOUT = 0.15
PEAK_RATE = 3e-3
WARMUP = 100


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every text can be encoded, so there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        pad_token=END,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def model_config(end: int) -> OlmoeConfig:
    """Four blocks of sixteen experts, four of them per token."""
    return OlmoeConfig(
        vocab_size=VOCABULARY,
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


def batches(encoded: list[list[int]], steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches `[BATCH, LENGTH]`; each epoch joins the documents in a new order."""
    order = random.Random(seed)
    rows: list[Tensor] = []
    for _ in range(steps):
        while len(rows) < BATCH:
            stream = [t for document in order.sample(encoded, len(encoded)) for t in document]
            start = order.randrange(LENGTH)
            cut = torch.tensor(stream[start:])
            windows = cut[: len(cut) // LENGTH * LENGTH].view(-1, LENGTH)
            rows.extend(windows[order.sample(range(len(windows)), len(windows))])
        yield torch.stack([rows.pop() for _ in range(BATCH)])


def add_dropout(model: OlmoeForCausalLM, rate: float) -> None:
    """Drop parts of the embeddings and of what each attention and expert layer adds, in training.

    OLMoE has no such dropout of its own; hooks leave the architecture and its names alone.
    """

    def drop(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (functional.dropout(output[0], rate, module.training), *output[1:])
        return functional.dropout(output, rate, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for block in model.model.layers:
        block.self_attn.register_forward_hook(drop)
        block.mlp.register_forward_hook(drop)


def learning_rate(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to zero."""
    if step < WARMUP:
        return (step + 1) / WARMUP
    return 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP))


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """AdamW that decays matrices but neither norms nor embeddings."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95))


def train(out: Path, seed: int, steps: int) -> None:
    """Train from scratch and write the checkpoint folder `out`."""
    torch.manual_seed(seed)
    texts = [document.text for document in documents("train")]
    tokenizer = train_tokenizer(texts)
    encoded = [tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    heldout = evaluation_windows(
        tokenizer, [document.text for document in documents("calibration")], LENGTH
    )
    model = OlmoeForCausalLM(model_config(tokenizer.eos_token_id)).float()
    model.set_experts_implementation("grouped_mm")
    add_dropout(model, DROPOUT)
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    print(f"{sum(map(len, encoded))} tokens, {sum(p.numel() for p in model.parameters())} parameters")
    began = time.monotonic()
    for step, batch in enumerate(batches(encoded, steps, seed), start=1):
        model.train()
        loss = model(batch, labels=batch, output_router_logits=True, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0 or step == steps:
            minutes = (time.monotonic() - began) / 60
            print(
                f"step {step} loss {loss.item():.3f} held-out perplexity "
                f"{perplexity(model, heldout, batch_size=16):.2f} {minutes:.1f} min",
                flush=True,
            )
    save(model, tokenizer, out)


def save(model: OlmoeForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights as bf16, config and tokenizer."""
    model.to(torch.bfloat16).eval().save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1600)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed, arguments.steps)


if __name__ == "__main__":
    main()
