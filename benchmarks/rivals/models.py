"""Train the models that the comparison quantizes: a Llama and a mixture of experts larger than the demo.

    python -m benchmarks.rivals.models --out models
    python -m benchmarks.rivals.models --out models --only llama --text builtin train.txt
    python -m benchmarks.rivals.models --out models --only deep       # from models/llama, twelve minutes on two cores
    python -m benchmarks.rivals.models --out models --only large --device cuda --minutes 2 --text builtin FOLDER

Minutes each on a GPU, an hour each on two CPU cores (`large` is for GPUs). Of a folder, every .py, .md, .rst and .txt
file is read. Every model folder gets a `training.json` that tells how it was made and what it scores on text
that it has not seen.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
)

from alphaquant.demo.measure import unigram_perplexity
from alphaquant.demo.training import Recipe, save, train_model
from alphaquant.evaluation.perplexity import perplexity
from alphaquant.text.builtin import documents
from alphaquant.text.sources import load_documents
from alphaquant.text.windows import evaluation_windows

VOCABULARY = 2048
_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
_READ = (".py", ".md", ".rst", ".txt")


@dataclass(frozen=True, slots=True)
class Design:
    """A model to train: its architecture, its recipe and how long."""

    make: Callable[[int], PreTrainedModel]
    """Given the id of the token that ends a document."""
    recipe: Recipe
    steps: int
    grown_from: str | None = None
    """The design with half of its blocks whose weights it begins with."""


def large(end: int) -> PreTrainedModel:
    """A dense Llama of 14 blocks, 112 million parameters."""
    shape = {"vocab_size": 8192, "hidden_size": 768, "intermediate_size": 2048}
    heads = {"num_attention_heads": 12, "num_key_value_heads": 12}
    return LlamaForCausalLM(
        LlamaConfig(**(_SHARED | shape | heads), **_ends(end), num_hidden_layers=14)
    )


def llama(end: int, blocks: int = 6) -> PreTrainedModel:
    """A dense Llama: six blocks, 6.2 million parameters; every width is a multiple of 128."""
    shape = {"intermediate_size": 768, "num_hidden_layers": blocks}
    return LlamaForCausalLM(LlamaConfig(**_SHARED, **_ends(end), **shape))


def moe(end: int) -> PreTrainedModel:
    """An OLMoE of four blocks with 32 experts each, four per token: 14.7 million parameters."""
    return OlmoeForCausalLM(
        OlmoeConfig(
            **_SHARED,
            **_ends(end),
            intermediate_size=128,
            num_hidden_layers=4,
            num_experts=32,
            num_experts_per_tok=4,
            router_aux_loss_coef=0.01,
            output_router_logits=False,
        )
    )


def _ends(end: int) -> dict[str, Any]:
    return {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


_RECIPE = Recipe(vocabulary=VOCABULARY, length=512, batch=4, dropout=0.0)
_LARGE = replace(_RECIPE, vocabulary=8192, peak_rate=5e-4)
DESIGNS = {
    "llama": Design(llama, _RECIPE, steps=1500),
    "moe": Design(moe, _RECIPE, steps=1500),
    "large": Design(large, _LARGE, steps=4000),
    # errors have twice as far to go
    "deep": Design(
        partial(llama, blocks=12),
        replace(_RECIPE, peak_rate=1e-3, warmup=20),
        steps=400,
        grown_from="llama",
    ),
}
SMALL = ("llama", "moe")
"""Those that a CPU trains and quantizes in an acceptable time."""


def doubled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model with every block twice in a row, each of which adds half as much: nearly what it computed before.

    A little noise lets the two become different.
    """
    noise = torch.Generator().manual_seed(0)
    grown: dict[str, Tensor] = {}
    for name, weight in state.items():
        before, layers, rest = name.partition(".layers.")
        if not layers:
            grown[name] = weight
            continue
        number, _, place = rest.partition(".")
        share = 0.5 if place.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        for at in (2 * int(number), 2 * int(number) + 1):
            moved = share * weight.float()
            if weight.dim() > 1:
                moved += 0.02 * moved.std() * torch.randn(weight.shape, generator=noise)
            grown[f"{before}{layers}{at}.{place}"] = moved
    return grown


def training_documents(sources: list[str]) -> list[str]:
    """The training part of `builtin`, files of folders, and text files, split into a few hundred lines each."""
    texts: list[str] = []
    for source in sources:
        if source == "builtin":
            texts += [document.text for document in documents("train")]
        elif (folder := Path(source)).is_dir():
            files = sorted(f for f in folder.rglob("*") if f.suffix in _READ and f.is_file())
            texts += [text for f in files if (text := f.read_text("utf-8", errors="replace"))]
        else:
            for text in load_documents(source, "calibration"):
                lines = text.splitlines(keepends=True)
                texts += ["".join(lines[at : at + 200]) for at in range(0, len(lines), 200)]
    return texts


def _grown(make: Callable[[int], PreTrainedModel], smaller: Path, end: int) -> PreTrainedModel:
    """The model of `make` with the weights of one of half its blocks."""
    model = make(end)
    state = AutoModelForCausalLM.from_pretrained(smaller, dtype=torch.float32).state_dict()
    model.load_state_dict(doubled(state))
    return model


def train(
    name: str,
    out: Path,
    sources: list[str],
    seed: int,
    steps: int,
    minutes: float | None = None,
    **changes: Any,
) -> None:
    """Train a design into the folder `out`, and measure it on the test part of the builtin text.

    `changes` are fields of its recipe; with `minutes` it makes as many of the `steps` as fit in.
    """
    design, make, tokenizer = DESIGNS[name], DESIGNS[name].make, None
    if design.grown_from:
        smaller = out.parent / design.grown_from
        if not smaller.is_dir():
            raise SystemExit(f"{name} grows from {smaller}: train {design.grown_from} there first")
        tokenizer = AutoTokenizer.from_pretrained(smaller)
        make = partial(_grown, design.make, smaller)
    recipe = replace(design.recipe, **changes)
    heldout = [document.text for document in documents("calibration")]
    texts = training_documents(sources)
    model, tokenizer = train_model(
        make,
        texts,
        heldout,
        seed=seed,
        steps=steps,
        recipe=recipe,
        minutes=minutes,
        tokenizer=tokenizer,
    )
    test = [document.text for document in documents("test")]
    windows = evaluation_windows(tokenizer, test, recipe.length)
    report: dict[str, Any] = {
        "design": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "text": [source if source == "builtin" else Path(source).name for source in sources],
        "characters": sum(map(len, texts)),
        "seed": seed,
        "steps": steps,
        "minutes": minutes,
        "recipe": asdict(recipe),
        "builtin_test_perplexity": perplexity(model, windows, device=recipe.device),
        "builtin_unigram_perplexity": unigram_perplexity(tokenizer, windows),
    }
    save(model, tokenizer, out)
    assert math.isfinite(report["builtin_test_perplexity"])
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the models' folders")
    parser.add_argument("--only", choices=tuple(DESIGNS), help="train this one alone")
    parser.add_argument(
        "--text", nargs="+", default=["builtin"], help="builtin (default), text files and folders"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="instead of the design's own number")
    parser.add_argument("--threads", type=int, default=2, help="2 by default")
    parser.add_argument("--batch", type=int, default=4, help="windows per step (4)")
    parser.add_argument("--minutes", type=float, help="fewer steps, if they would take longer")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--roots",
        action="store_true",
        help="learn the signed roots of weights, which gives them heavy tails like the demo's",
    )
    options = parser.parse_args()
    for name in [options.only] if options.only else SMALL:
        changes = {
            "threads": options.threads,
            "squared": options.roots,
            "device": options.device,
            "batch": options.batch,
        }
        steps = options.steps or DESIGNS[name].steps
        folder = options.out / name
        train(name, folder, options.text, options.seed, steps, options.minutes, **changes)


if __name__ == "__main__":
    main()
