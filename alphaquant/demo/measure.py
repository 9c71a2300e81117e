"""What makes the demo model worth compressing: it beats a unigram model, uses its experts, and breaks at int2."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.demo import DEMO_LENGTH
from alphaquant.evaluation.perplexity import perplexity
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.text.builtin import documents
from alphaquant.text.windows import evaluation_windows, tokenize

COARSE = Scheme.parse("int2-g128")


@dataclass(frozen=True, slots=True)
class Figures:
    """The demo model's figures on the held-out part of the builtin text."""

    parameters: int
    windows: int
    perplexity: float
    unigram_perplexity: float
    int2_perplexity: float
    expert_load: Tensor
    """Share of its block's tokens times experts, so that 1 is an even load # [blocks, experts]"""


def measure(model: nn.Module, tokenizer: Any) -> Figures:
    """All figures of a causal language model with fused experts, computed in fp32."""
    model = copy.deepcopy(model).float().eval()
    windows = heldout_windows(tokenizer)
    return Figures(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        windows=len(windows),
        perplexity=perplexity(model, windows),
        unigram_perplexity=unigram_perplexity(tokenizer, windows),
        int2_perplexity=perplexity(rounded(model, COARSE), windows),
        expert_load=expert_load(model, windows),
    )


def heldout_windows(tokenizer: Any) -> Tensor:
    """The test part of the builtin text, int64 `[windows, DEMO_LENGTH]`."""
    texts = [document.text for document in documents("test")]
    return evaluation_windows(tokenizer, texts, DEMO_LENGTH)


def unigram_perplexity(tokenizer: Any, windows: Tensor) -> float:
    """Perplexity on `windows` of token frequencies in the training part, each count plus one."""
    seen = tokenize(tokenizer, [document.text for document in documents("train")])
    counts = torch.bincount(seen, minlength=len(tokenizer)).double() + 1
    losses = -(counts / counts.sum()).log()[windows[:, 1:]]
    return math.exp(losses.mean().item())


def rounded(model: nn.Module, scheme: Scheme) -> nn.Module:
    """A copy with every matrix of the decoder but the routers rounded to nearest."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in copied.named_parameters():
            if weight.ndim > 1 and ".layers." in name and not name.endswith(".mlp.gate.weight"):
                weight.copy_(quantize_weight(weight, scheme, name=name).dequantize())
    return copied


@torch.inference_mode()
def expert_load(model: Any, windows: Tensor) -> Tensor:
    """Each expert's share of the routed tokens, relative to an even one, `[blocks, experts]`."""
    chosen = model.config.num_experts_per_tok
    experts = model.config.num_experts
    counts = torch.zeros(model.config.num_hidden_layers, experts)
    for batch in windows.split(16):
        output = model(batch, output_router_logits=True, use_cache=False)
        for block, logits in enumerate(output.router_logits):
            picks = logits.view(-1, experts).topk(chosen).indices
            counts[block] += torch.bincount(picks.flatten(), minlength=experts)
    return counts / counts.mean(dim=1, keepdim=True)
