"""Runs made up to look like real ones: tables of any size whose statistics are known by construction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from alphaquant.formats.scheme import Scheme
from alphaquant.reporting.tables import ReportInputs

MENU = ("int2", "int3", "int4", "int6", "int8", "mxfp4", "mxfp8")
MakeRun = Callable[..., ReportInputs]


def make_run(
    blocks: int = 4,
    experts: int = 16,
    *,
    hidden: int = 256,
    width: int = 128,
    method: str = "gptq",
    granularity: str = "fused",
    seed: int = 0,
) -> ReportInputs:
    """A whole run: `experts` 0 is a dense model; higher alpha is made to go with higher sensitivity."""
    generator = np.random.default_rng(seed)
    identity = _identity(blocks, experts, hidden, width)
    alpha = _alpha(identity, generator)
    sensitivity = _sensitivity(identity, alpha, generator)
    plan = _plan(identity, sensitivity, granularity)
    return ReportInputs(
        model="OLMoE-demo" if experts else "llama-tiny",
        model_type="olmoe" if experts else "llama",
        digest="8f3a1c9be0d44e6a9c0f2f6f3f1f9a41",
        parameters=int((identity["rows"] * identity["cols"]).sum()) + 2 * 1024 * hidden,
        config={
            "model": {"path": None, "trust_remote_code": False},
            "alpha": {"estimator": "hill", "tail_fraction": 0.1, "seed": 0},
            "allocation": {
                "policy": "budget",
                "target_bits": 4.25,
                "formats": list(MENU),
                "overrides": [],
            },
            "quantization": {"method": method, "group_size": 128, "act_order": True},
            "router": {"method": "kl" if experts else "none"},
            "export": {"format": "dense"},
        },
        alpha=alpha,
        sensitivity=sensitivity,
        plan=plan,
        errors=_errors(plan, alpha, method, generator),
        scores=_scores(generator),
        router=(
            {
                "method": "kl",
                "kl_before": 0.031,
                "kl_after": 0.024,
                "changed_before": 0.21,
                "changed_after": 0.17,
            }
            if experts
            else {"skipped": "llama has no routers"}
        ),
        router_blocks=_router_blocks(blocks, generator) if experts else None,
        router_history=_history(generator) if experts else None,
        stages=[
            {"name": "alpha", "state": "ran", "seconds": 3.21},
            {"name": "sensitivity", "state": "cached", "seconds": 0.04},
            {"name": "quantize", "state": "ran", "seconds": 41.7},
        ],
    )


def _identity(blocks: int, experts: int, hidden: int, width: int) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for block in range(blocks):
        stem = f"model.layers.{block}"
        shapes = {
            "q": (hidden, hidden),
            "k": (hidden // 2, hidden),
            "v": (hidden // 2, hidden),
            "o": (hidden, hidden),
        }
        for role, shape in shapes.items():
            rows.append(_row(f"{stem}.self_attn.{role}_proj", role, block, None, shape))
        if experts:
            rows.append(_row(f"{stem}.mlp.gate", "router", block, None, (experts, hidden)))
        for expert in range(experts) if experts else [None]:
            place = f"{stem}.mlp" if expert is None else f"{stem}.mlp.experts.{expert}"
            for role, shape in {
                "gate": (width, hidden),
                "up": (width, hidden),
                "down": (hidden, width),
            }.items():
                rows.append(_row(f"{place}.{role}_proj", role, block, expert, shape))
    table = pd.DataFrame(rows)
    return table.astype({"block": "Int64", "expert": "Int64"})


def _row(
    name: str, role: str, block: int, expert: int | None, shape: tuple[int, int]
) -> dict[str, Any]:
    return {
        "linear": name,
        "role": role,
        "block": block,
        "expert": expert,
        "rows": shape[0],
        "cols": shape[1],
    }


def _alpha(identity: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    centre = identity["role"].map(
        {
            "q": 2.6,
            "k": 2.9,
            "v": 3.6,
            "o": 3.2,
            "gate": 3.6,
            "up": 4.9,
            "down": 4.5,
            "router": 14.0,
        }
    )
    null = np.where(identity["rows"] == identity["cols"], 6.43, 8.16)
    null = np.where(identity["role"] == "router", 17.4, null)
    depth = identity["block"].astype(float) / max(1, int(identity["block"].max()))
    alpha = centre + 0.6 * depth + generator.normal(0, 0.45, len(identity))
    small = identity["role"] == "router"
    return identity.assign(
        alpha=alpha, tail_size=25, alpha_null=null, z=(alpha - null) / 0.1, ks=0.08, small=small,
        log_variance=generator.normal(-6, 0.3, len(identity)),
    )  # fmt: skip


def _sensitivity(
    identity: pd.DataFrame, alpha: pd.DataFrame, generator: np.random.Generator
) -> pd.DataFrame:
    size = (identity["rows"] * identity["cols"]).to_numpy(dtype=float)
    role = identity["role"].map(
        {
            "q": -0.4,
            "k": -0.2,
            "v": 1.2,
            "o": 0.7,
            "gate": 0.0,
            "up": 0.1,
            "down": 0.6,
            "router": 2.0,
        }
    )
    score = 0.5 * (alpha["alpha"] - 4) + role + generator.normal(0, 0.6, len(identity))
    tables = []
    for name in MENU:
        scheme = Scheme.parse(name, group_size=128)
        bits = np.array([scheme.bits_per_weight(int(cols)) for cols in identity["cols"]])
        loss = 2e-9 * size * np.exp(score.to_numpy(dtype=float)) * 4.0 ** (4 - bits)
        tables.append(
            pd.DataFrame(
                {
                    "linear": identity["linear"],
                    "format": str(scheme),
                    "bits_per_weight": bits,
                    "predicted_loss": loss,
                    "local_loss": 0.02 * 4.0 ** (4 - bits),
                }
            )
        )
    table = pd.concat(tables, ignore_index=True)
    return table[~table["linear"].str.endswith(".mlp.gate")]


def _plan(identity: pd.DataFrame, sensitivity: pd.DataFrame, granularity: str) -> pd.DataFrame:
    loss = sensitivity[sensitivity["format"] == "mxfp4"].set_index("linear")["predicted_loss"]
    weight = identity["linear"].map(loss) / (identity["rows"] * identity["cols"])
    if granularity == "fused":
        weight = weight.groupby([identity["block"], identity["role"]]).transform("mean")
    order = weight.rank(pct=True)
    names = np.select([order < 0.3, order < 0.6, order < 0.85], ["int3", "mxfp4", "int4"], "int6")
    names = np.where(identity["role"] == "router", "bf16", names)
    found = [Scheme.parse(str(name), group_size=128) for name in names]
    return identity.assign(
        format=[scheme.format for scheme in found],
        group_size=pd.array([scheme.group_size for scheme in found], dtype="Int64"),
        symmetric=True,
        bits_per_weight=[
            s.bits_per_weight(c) for s, c in zip(found, identity["cols"], strict=True)
        ],
        activation=pd.array([None] * len(identity), dtype="string"),
    )


def _errors(
    plan: pd.DataFrame, alpha: pd.DataFrame, method: str, generator: np.random.Generator
) -> pd.DataFrame:
    data = plan[plan["format"] != "bf16"].reset_index(drop=True)
    spread = np.exp(generator.normal(0, 0.5, len(data)))
    before = 0.4 * 4.0 ** (3 - data["bits_per_weight"].to_numpy(dtype=float)) * spread
    after = before if method == "rtn" else before * np.exp(generator.normal(-0.5, 0.25, len(data)))
    tokens = np.where(data["expert"].isna(), 32768, generator.integers(0, 9000, len(data)))
    return data[["linear", "role", "block", "expert", "format", "bits_per_weight"]].assign(
        tokens=tokens, error_rtn=before, error=after, weight_error=before * 1.1, damping=0.01
    )


def _scores(generator: np.random.Generator) -> pd.DataFrame:
    rows = [
        ("heldout", "perplexity", 5.43, 5.31, 5.56, "original"),
        ("heldout", "perplexity", 5.58, 5.45, 5.71, "quantized"),
        ("heldout", "perplexity", 5.63, 5.50, 5.77, "router-before"),
        ("heldout", "kl_mean", 0.024, 0.0225, 0.0257, "quantized"),
        ("heldout", "kl_mean", 0.031, 0.0290, 0.0333, "router-before"),
        ("heldout", "kl_p999", 0.91, 0.80, 1.10, "quantized"),
        ("heldout", "top1_agreement", 0.941, 0.935, 0.947, "quantized"),
        ("heldout", "flips", 0.059, 0.053, 0.065, "quantized"),
        ("builtin_cloze", "acc", 0.621, 0.580, 0.660, "original"),
        ("builtin_cloze", "acc", 0.604, 0.563, 0.645, "quantized"),
        ("heldout", "perplexity_ratio", 1.0276, 1.0201, 1.0349, "quantized"),
        ("builtin_cloze", "acc_change", -0.017, -0.033, -0.001, "quantized"),
        ("builtin_rolling", "bits_per_byte", 1.312, 1.290, 1.334, "original"),
        ("builtin_rolling", "bits_per_byte", 1.334, 1.312, 1.356, "quantized"),
        ("heldout", "kl_mean", 0.047, 0.044, 0.050, "uniform mxfp4"),
    ]
    columns = ["task", "metric", "value", "low", "high", "model"]
    random = [
        ("heldout", "kl_mean", float(value), np.nan, np.nan, f"random plan {number}")
        for number, value in enumerate(generator.normal(0.058, 0.008, 20), start=1)
    ]
    table = pd.DataFrame(rows + random, columns=columns)
    return table.assign(stderr=(table["high"] - table["low"]) / 3.92)


def _router_blocks(blocks: int, generator: np.random.Generator) -> pd.DataFrame:
    before = np.linspace(0.12, 0.3, blocks) + generator.normal(0, 0.01, blocks)
    after = before * 0.8
    return pd.DataFrame(
        {
            "stage": ["before"] * blocks + ["after"] * blocks,
            "block": [*range(blocks), *range(blocks)],
            "changed": [*before, *after],
        }
    )


def _history(generator: np.random.Generator) -> pd.DataFrame:
    step = np.arange(0, 33, 4)
    kl = 0.024 + 0.007 * np.exp(-step / 8)
    train = 0.022 + 0.01 * np.exp(-step / 10) + generator.normal(0, 3e-4, step.size)
    return pd.DataFrame(
        {"step": step.astype(float), "train_loss": [np.nan, *train[1:]], "heldout_kl": kl}
    )


@pytest.fixture(name="make_run", scope="session")
def _make_run() -> MakeRun:
    return make_run


@pytest.fixture(scope="session")
def moe_run() -> ReportInputs:
    """4 blocks of 16 experts, 212 linears."""
    return make_run(4, 16)


@pytest.fixture(scope="session")
def dense_run() -> ReportInputs:
    """2 blocks without experts, 14 linears."""
    return make_run(2, 0)
