"""Specs and tables of an imagined mixture-of-experts model, for tests that need no weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from alphaquant.algorithms.allocation_groups import menu
from alphaquant.config import AllocationConfig, QuantizationConfig
from alphaquant.models.linear import LinearSpec

EXPERT_SHAPES = {"gate": (24, 64), "up": (24, 64), "down": (64, 24)}


def moe_specs(blocks: int = 2, experts: int = 4, hidden: int = 64) -> list[LinearSpec]:
    """Attention, a router and experts per block, then lm_head."""
    specs = []
    for block in range(blocks):
        root = f"model.layers.{block}"
        for role in ("q", "k", "v", "o"):
            reads, fused = ("out", "o") if role == "o" else ("in", "qkv")
            specs.append(
                LinearSpec(
                    f"{root}.self_attn.{role}_proj",
                    role,  # type: ignore[arg-type]
                    block,
                    None,
                    hidden,
                    hidden,
                    f"{root}.attention.{reads}",
                    f"{root}.{fused}",
                )
            )
        specs.append(
            LinearSpec(
                f"{root}.mlp.gate",
                "router",
                block,
                None,
                experts,
                hidden,
                f"{root}.in",
                f"{root}.router",
            )
        )
        for expert in range(experts):
            for role, (rows, cols) in EXPERT_SHAPES.items():
                name = f"{root}.mlp.experts.{expert}"
                specs.append(
                    LinearSpec(
                        f"{name}.{role}_proj",
                        role,  # type: ignore[arg-type]
                        block,
                        expert,
                        rows,
                        cols,
                        f"{name}.{'out' if role == 'down' else 'in'}",
                        f"{root}.experts",
                    )
                )
    head = LinearSpec("lm_head", "lm_head", None, None, 256, hidden, "lm_head.in", "lm_head")
    return [*specs, head]


def alpha_frame(specs: Sequence[LinearSpec], seed: int = 0) -> pd.DataFrame:
    """An alpha table with random alphas and variances."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "linear": [spec.name for spec in specs],
            "alpha": random.uniform(2, 6, len(specs)),
            "alpha_null": 4.0,
            "log_variance": random.normal(-7, 0.5, len(specs)),
        }
    )


def sensitivity_frame(
    specs: Sequence[LinearSpec], config: AllocationConfig, seed: int = 0
) -> pd.DataFrame:
    """Predicted losses that fall with bits, differ by linear and are a little uneven."""
    random = np.random.default_rng(seed)
    rows = []
    for spec in specs:
        scale = random.lognormal(-9, 1.5)
        for scheme in menu(config, QuantizationConfig()):
            bits = scheme.bits_per_weight(spec.cols, rows=spec.rows)
            loss = scale * 4.0**-bits * random.uniform(0.7, 1.3) * spec.size
            rows.append((spec.name, str(scheme), bits, loss))
    return pd.DataFrame(rows, columns=["linear", "format", "bits_per_weight", "predicted_loss"])
