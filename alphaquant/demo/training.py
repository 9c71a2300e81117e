"""Train a small language model from scratch on given texts: what the demo and the benchmarks' models share.

The same seed gives the same bytes with the same versions on the same kind of CPU.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from alphaquant.demo import DEMO_LENGTH
from alphaquant.evaluation.perplexity import perplexity
from alphaquant.text.windows import evaluation_windows

END = "<|endoftext|>"
_PACE = 50  # steps after which the pace is known


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is trained; the defaults are the demo model's."""

    vocabulary: int = 1024
    """Tokens of the byte-level BPE that is trained first."""
    length: int = DEMO_LENGTH
    """Tokens per window."""
    batch: int = 16
    """Windows per step."""
    dropout: float = 0.15
    balance: float = 0.01
    """Weight of the loss that evens out the experts' load."""
    squared: bool = True
    """Whether matrices are learned as signed squares, which gives their weights heavy tails."""
    peak_rate: float = 3e-3
    peak_rate_of_roots: float = 1e-2
    warmup: int = 100
    """Steps until the peak."""
    threads: int = 2
    """Fixed, because the number of threads decides the order of sums."""
    device: str = "cpu"
    """On cuda activations are bf16, and no two runs give the same bytes."""


DEMO = Recipe()


def train_tokenizer(texts: list[str], vocabulary: int = DEMO.vocabulary) -> PreTrainedTokenizerFast:
    """Byte-level BPE; every text can be encoded, so there is no unknown token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
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


def batches(encoded: list[Tensor], seed: int, recipe: Recipe = DEMO) -> Iterator[Tensor]:
    """Batches `[batch, length]` without end; each epoch joins the documents in a new order."""
    length = recipe.length
    order = random.Random(seed)
    rows: list[Tensor] = []
    while True:
        while len(rows) < recipe.batch:
            stream = torch.cat(order.sample(encoded, len(encoded)))
            cut = stream[order.randrange(length) :]
            windows = cut[: len(cut) // length * length].view(-1, length)
            rows.extend(windows[order.sample(range(len(windows)), len(windows))])
        yield torch.stack([rows.pop() for _ in range(recipe.batch)])


def add_dropout(model: PreTrainedModel, rate: float) -> None:
    """Drop parts of the embeddings and of what each attention and feed-forward layer adds, in training.

    These architectures have no such dropout of their own; hooks leave them and their names alone.
    """

    def drop(module: nn.Module, arguments: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (functional.dropout(output[0], rate, module.training), *output[1:])
        return functional.dropout(output, rate, module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for block in model.model.layers:
        block.self_attn.register_forward_hook(drop)
        block.mlp.register_forward_hook(drop)


def learning_rate(step: int, steps: int, warmup: int = DEMO.warmup) -> float:
    """Share of the peak rate: linear warm-up, then a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))


class SignedSquare(nn.Module):
    """w = v |v|: large weights learn fast and small ones stay small (powerpropagation).

    The weights get the heavy tails of large models' weights, which is what makes coarse rounding
    hard. Schwarz et al., "Powerpropagation", NeurIPS 2021.
    """

    def forward(self, root: Tensor) -> Tensor:
        return root * root.abs()

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight.sign() * weight.abs().sqrt()


class Bfloat16(nn.Module):
    """A weight as matrix products read it; the optimizer keeps it in fp32."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.to(torch.bfloat16)


def matrices(model: PreTrainedModel) -> list[tuple[nn.Module, str]]:
    """(module, parameter) of every attention and feed-forward matrix, routers left out."""
    return [
        (module, name)
        for block in model.model.layers
        for part in (block.self_attn, getattr(block.mlp, "experts", block.mlp))
        for module in part.modules()
        for name, parameter in list(module.named_parameters(recurse=False))
        if parameter.ndim > 1
    ]


def optimizer_of(model: nn.Module, recipe: Recipe = DEMO) -> torch.optim.AdamW:
    """AdamW with a faster, decayed rate for the roots of matrices."""
    roots = [p for name, p in model.named_parameters() if "parametrizations" in name]
    others = [p for name, p in model.named_parameters() if "parametrizations" not in name]
    groups = [
        {"params": roots, "lr": recipe.peak_rate_of_roots, "weight_decay": 0.1},
        {"params": others, "lr": recipe.peak_rate, "weight_decay": 0.0},
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


def train_model(
    make: Callable[[int], PreTrainedModel],
    texts: list[str],
    heldout: list[str],
    *,
    seed: int,
    steps: int,
    recipe: Recipe = DEMO,
    minutes: float | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A tokenizer, unless there is one, and a model trained on the documents `texts`; says how it goes on `heldout`.

    `make` is given the id of the token that ends a document, and returns the model to train. With
    `minutes` there are at most as many steps as the pace of the first ones lets expect in that time.
    Raises FloatingPointError when the held-out perplexity is not finite.
    """
    torch.manual_seed(seed)
    on_cpu = recipe.device == "cpu"
    # Threads add up the experts' gradients in any order otherwise, and no two runs are the same.
    torch.use_deterministic_algorithms(on_cpu)
    torch.set_num_threads(recipe.threads)
    tokenizer = tokenizer or train_tokenizer(texts, recipe.vocabulary)
    encoded = [
        torch.tensor([*ids, tokenizer.eos_token_id])
        for ids in tokenizer(texts, verbose=False)["input_ids"]
    ]
    windows = evaluation_windows(tokenizer, heldout, recipe.length)
    model = make(tokenizer.eos_token_id).float().to(recipe.device)
    routed = hasattr(model.config, "num_experts_per_tok")
    if routed:
        model.set_experts_implementation("grouped_mm")
        model.router_aux_loss_coef = 0.0
    add_dropout(model, recipe.dropout)
    squared = matrices(model) if recipe.squared else []
    # what autocast does not reach: on cuda grouped_mm takes bf16 alone
    cast = [] if on_cpu else [(m, name) for m, name in matrices(model) if getattr(m, name).ndim > 2]
    for module, name in squared:
        parametrize.register_parametrization(module, name, SignedSquare())
    for module, name in cast:
        parametrize.register_parametrization(module, name, Bfloat16(), unsafe=True)
    optimizer = optimizer_of(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, steps, recipe.warmup)
    )
    print(
        f"{sum(map(len, encoded))} tokens, {sum(p.numel() for p in model.parameters())} parameters"
    )
    mixed = torch.autocast(torch.device(recipe.device).type, torch.bfloat16, enabled=not on_cpu)
    options = {"output_router_logits": True} if routed else {}
    began = time.monotonic()
    step = 0
    supply = batches(encoded, seed, recipe)
    while step < steps:
        step += 1
        batch = next(supply).to(recipe.device)
        model.train()
        with parametrize.cached(), mixed:
            output = model(batch, labels=batch, use_cache=False, **options)
        loss, said = output.loss, ""
        if routed:
            even = imbalance(output.router_logits, model.config.num_experts_per_tok)
            loss, said = loss + recipe.balance * even, f" imbalance {even.item():.2f}"
        loss.backward()
        if nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
            optimizer.step()  # one bad batch in bf16 would make every weight NaN
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if minutes is not None and step == _PACE:
            output.loss.item()  # cuda works behind our back until somebody asks for a value
            steps = max(step, min(steps, int(minutes * 60 / (time.monotonic() - began) * step)))
        if step % (steps // 10 or 1) == 0 or step == steps:
            with mixed:
                found = perplexity(model, windows, batch_size=16, device=recipe.device)
            if not math.isfinite(found):
                raise FloatingPointError(
                    f"training diverged before step {step}: held-out perplexity {found}. Lower Recipe.peak_rate"
                )
            took = (time.monotonic() - began) / 60
            print(
                f"step {step} of {steps}, loss {output.loss.item():.3f}{said}, held-out perplexity "
                f"{found:.2f}, {took:.1f} min",
                flush=True,
            )
    for module, name in dict.fromkeys(squared + cast):
        value = getattr(module, name).detach().float()
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
        getattr(module, name).data = value
    return model, tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
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
