"""Train the demo model: a small OLMoE on the training part of the builtin text.

    python -m alphaquant.demo.train --out DIR --seed 0

About 2.8 million parameters, at most 6 MB as bf16; some ten minutes on two idle CPU cores. The same
seed gives the same bytes with the same versions on the same kind of CPU.
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
from torch.nn.utils import parametrize
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from alphaquant.demo import DEMO_LENGTH
from alphaquant.demo.card import write_card
from alphaquant.demo.measure import measure
from alphaquant.evaluation.perplexity import perplexity
from alphaquant.text.builtin import documents
from alphaquant.text.windows import evaluation_windows

VOCABULARY = 1024
END = "<|endoftext|>"
BATCH = 16
"""Windows of DEMO_LENGTH tokens per step."""
DROPOUT = 0.15
BALANCE = 0.01
PEAK_RATE = 3e-3
PEAK_RATE_OF_ROOTS = 1e-2
WARMUP = 100
THREADS = 2
"""Fixed, because the number of threads decides the order of sums."""


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
    """`steps` batches `[BATCH, DEMO_LENGTH]`; each epoch joins the documents in a new order."""
    order = random.Random(seed)
    rows: list[Tensor] = []
    for _ in range(steps):
        while len(rows) < BATCH:
            stream = [t for document in order.sample(encoded, len(encoded)) for t in document]
            start = order.randrange(DEMO_LENGTH)
            cut = torch.tensor(stream[start:])
            windows = cut[: len(cut) // DEMO_LENGTH * DEMO_LENGTH].view(-1, DEMO_LENGTH)
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


class SignedSquare(nn.Module):
    """w = v |v|: large weights learn fast and small ones stay small (powerpropagation).

    The weights get the heavy tails of large models' weights, which is what makes coarse rounding
    hard. Schwarz et al., "Powerpropagation", NeurIPS 2021.
    """

    def forward(self, root: Tensor) -> Tensor:
        return root * root.abs()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.sign() * weight.abs().sqrt()


def matrices(model: OlmoeForCausalLM) -> list[tuple[nn.Module, str]]:
    """(module, parameter) of every attention and expert matrix."""
    return [
        (module, name)
        for block in model.model.layers
        for part in (block.self_attn, block.mlp.experts)
        for module in part.modules()
        for name, parameter in list(module.named_parameters(recurse=False))
        if parameter.ndim > 1
    ]


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    """AdamW with a faster, decayed rate for the roots of matrices."""
    roots = [p for name, p in model.named_parameters() if "parametrizations" in name]
    others = [p for name, p in model.named_parameters() if "parametrizations" not in name]
    groups = [
        {"params": roots, "lr": PEAK_RATE_OF_ROOTS, "weight_decay": 0.1},
        {"params": others, "lr": PEAK_RATE, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def imbalance(router_logits: tuple[Tensor, ...], chosen: int) -> Tensor:
    """Mean over blocks of experts * sum(share of tokens * mean probability); 1 is even.

    The loss of Switch Transformers (Fedus et al., 2022), block by block: the model's own averages
    over blocks first, so that one block's overuse of an expert hides another's neglect of it.
    """
    losses = []
    for logits in router_logits:
        probabilities = logits.float().softmax(dim=-1)
        picks = torch.zeros_like(probabilities).scatter_(1, logits.topk(chosen).indices, 1.0)
        shares = picks.mean(dim=0) / chosen
        losses.append(logits.shape[1] * (shares * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def train(out: Path, seed: int, steps: int) -> None:
    """Train from scratch, write the checkpoint folder `out`, measure it and write its card."""
    torch.manual_seed(seed)
    # Threads add up the experts' gradients in any order otherwise, and no two runs are the same.
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(THREADS)
    texts = [document.text for document in documents("train")]
    tokenizer = train_tokenizer(texts)
    encoded = [
        tokenizer(text, verbose=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts
    ]
    heldout = evaluation_windows(
        tokenizer, [document.text for document in documents("calibration")], DEMO_LENGTH
    )
    model = OlmoeForCausalLM(model_config(tokenizer.eos_token_id)).float()
    model.set_experts_implementation("grouped_mm")
    model.router_aux_loss_coef = 0.0
    add_dropout(model, DROPOUT)
    squared = matrices(model)
    for module, name in squared:
        parametrize.register_parametrization(module, name, SignedSquare())
    optimizer = optimizer_of(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    print(
        f"{sum(map(len, encoded))} tokens, {sum(p.numel() for p in model.parameters())} parameters"
    )
    began = time.monotonic()
    for step, batch in enumerate(batches(encoded, steps, seed), start=1):
        model.train()
        with parametrize.cached():
            output = model(batch, labels=batch, output_router_logits=True, use_cache=False)
        balance = imbalance(output.router_logits, model.config.num_experts_per_tok)
        (output.loss + BALANCE * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0 or step == steps:
            minutes = (time.monotonic() - began) / 60
            print(
                f"step {step} loss {output.loss.item():.3f} imbalance {balance.item():.2f} held-out perplexity "
                f"{perplexity(model, heldout, batch_size=16):.2f} {minutes:.1f} min",
                flush=True,
            )
    for module, name in squared:
        parametrize.remove_parametrizations(module, name)
    save(model, tokenizer, out)
    card = write_card(out, measure(model, tokenizer), steps, BATCH * DEMO_LENGTH, seed)
    print(card)


def save(model: OlmoeForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write weights as bf16, config and tokenizer, readable by everybody."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.eval().save_pretrained(out)
    tokenizer.save_pretrained(out)
    settings = out / "tokenizer_config.json"
    # The name that every release of transformers knows; the one written is new in release 5.
    text = settings.read_text(encoding="utf-8").replace(
        "TokenizersBackend", "PreTrainedTokenizerFast"
    )
    settings.write_text(text, encoding="utf-8")
    for file in out.iterdir():
        file.chmod(0o644)


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
