"""The real pipeline with stages that need no torch: each writes small tables of the right form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import flows.dag
from alphaquant.store.stage import Skipped, Stage, Workbench

LINEARS = [
    f"model.layers.{block}.self_attn.{role}_proj" for block in range(2) for role in ("q", "k")
]


def make_model_folder(folder: Path) -> Path:
    """A llama of two blocks with weights nobody will look at."""
    folder.mkdir()
    shapes = {"model.embed_tokens": (8, 16), "lm_head": (8, 16), "model.norm": (16,)}
    for block in range(2):
        root = f"model.layers.{block}"
        shapes |= {f"{root}.self_attn.{role}_proj": (16, 16) for role in ("q", "k", "v", "o")}
        shapes |= {f"{root}.mlp.{role}_proj": (32, 16) for role in ("gate", "up")}
        shapes |= {f"{root}.mlp.down_proj": (16, 32)}
        shapes |= {f"{root}.{norm}_layernorm": (16,) for norm in ("input", "post_attention")}
    tensors = {f"{name}.weight": np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 8,
        "max_position_embeddings": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _calibration(out: Path, store: Workbench, **inputs: Any) -> None:
    save_file({"tokens": np.zeros((2, 4), np.int64)}, out / "tokens.safetensors")


def _baseline(out: Path, store: Workbench, **inputs: Any) -> None:
    save_file({"hidden": np.zeros((2, 4, 16), np.float32)}, out / "hidden.safetensors")


def _answers(out: Path, store: Workbench, *, tasks: Any, **inputs: Any) -> None:
    pd.DataFrame({"task": [*tasks], "value": 1.0}).to_parquet(out / "answers.parquet")


def _alpha(out: Path, store: Workbench, **inputs: Any) -> None:
    pd.DataFrame({"linear": LINEARS, "alpha": 3.0}).to_parquet(out / "alpha.parquet")


def _rotate(out: Path, store: Workbench, **inputs: Any) -> None:
    (out / "model").mkdir()
    save_file({"w": np.zeros(4, np.float32)}, out / "model" / "model.safetensors")


def _sensitivity(out: Path, store: Workbench, **inputs: Any) -> None:
    pd.DataFrame({"linear": LINEARS, "predicted_loss": 0.1}).to_parquet(out / "sensitivity.parquet")


def _allocate(out: Path, store: Workbench, *, allocation: Any, **inputs: Any) -> None:
    bits = allocation.target_bits
    columns = {"role": "q", "block": 0, "format": "int4", "group_size": 16, "symmetric": True}
    columns |= {"linear": LINEARS, "rows": 16, "cols": 16, "bits_per_weight": bits}
    table = pd.DataFrame(columns).assign(expert=pd.array([None] * len(LINEARS), "Int64"))
    table.to_parquet(out / "plan.parquet")
    (out / "plan.json").write_text(json.dumps({"bits": bits}))


def _quantize(out: Path, store: Workbench, *, plan: Any, tokens: Any, **inputs: Any) -> None:
    cache = store.block_cache(tokens=tokens)
    bits = json.loads((store.path(plan) / "plan.json").read_text())["bits"]

    def write(folder: Path) -> None:
        (folder / "block").write_text(f"{len(cache.refs)} at {bits}")

    for index in range(2):
        if cache.get(index, {"bits": bits}) is None:
            cache.put(index, {"bits": bits}, write)
    pd.DataFrame({"linear": LINEARS, "error": 0.1}).to_parquet(out / "errors.parquet")
    (out / "refs.json").write_text(json.dumps(cache.as_refs()))


def _tune(out: Path, store: Workbench, *, blocks: Any, **inputs: Any) -> None:
    refs = {}
    for index, before in enumerate(store.block_paths(blocks)):
        with store.artifacts.draft("tune-block") as draft:
            (draft.path / "block").write_text((before / "block").read_text() + " tuned")
        assert draft.ref is not None
        refs[f"block-{index:04d}"] = draft.ref.model_dump()
    (out / "refs.json").write_text(json.dumps(refs))


def _router(out: Path, store: Workbench, **inputs: Any) -> Skipped:
    return Skipped("the model is dense: it has no routers")


def _export(out: Path, store: Workbench, *, blocks: Any, **inputs: Any) -> None:
    text = "".join((path / "block").read_text() for path in store.block_paths(blocks))
    save_file({"w": np.full(4, len(text), np.float32)}, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps({"made_of": text}))


def _evaluate(out: Path, store: Workbench, *, evaluation: Any, **inputs: Any) -> None:
    rows = [
        ("heldout", "perplexity", 10.0, "original"),
        ("heldout", "perplexity", 11.0, "quantized"),
        ("heldout", "kl_mean", 0.01, "quantized"),
        ("heldout", "top1_agreement", 0.9, "quantized"),
        *(
            (task, "acc", 0.5, model)
            for task in evaluation.tasks
            for model in ("original", "quantized")
        ),
    ]
    table = pd.DataFrame(rows, columns=["task", "metric", "value", "model"])
    table.to_parquet(out / "scores.parquet")


def _compare(out: Path, store: Workbench, **inputs: Any) -> None:
    pd.DataFrame({"task": ["heldout"], "model": ["random 1"]}).to_parquet(out / "rivals.parquet")


def _analyze(out: Path, store: Workbench, *, name: str, **inputs: Any) -> None:
    (out / "figures").mkdir()
    (out / "figures" / "alpha.png").write_bytes(b"png")
    (out / "report.md").write_text(f"# {name}\n![alpha](figures/alpha.png)\n")
    (out / "report.html").write_text(f"<h1>{name}</h1>")


GPU_STAGES = (
    "generate", "balance", "baseline", "answers", "sensitivity", "quantize", "tune", "router", "evaluate", "compare"
)  # fmt: skip
BODIES: dict[str, Callable[..., Any]] = {
    "calibration": _calibration,
    "generate": _calibration,
    "balance": _calibration,
    "baseline": _baseline,
    "answers": _answers,
    "alpha": _alpha,
    "rotate": _rotate,
    "sensitivity": _sensitivity,
    "allocate": _allocate,
    "quantize": _quantize,
    "tune": _tune,
    "router": _router,
    "export": _export,
    "evaluate": _evaluate,
    "compare": _compare,
    "analyze": _analyze,
}


def use_fake_stages(monkeypatch: pytest.MonkeyPatch, **changes: Callable[..., Any]) -> None:
    """Put the fakes (and `changes` by stage) in the place of the real stages."""
    for name, body in (BODIES | changes).items():
        stage = Stage(name, body, __name__, gpu=name in GPU_STAGES)
        monkeypatch.setattr(flows.dag, name, stage)
