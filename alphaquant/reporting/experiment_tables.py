"""What an experiment measured, in one form: a row per plan, values per window, and alpha beside sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from alphaquant.algorithms.arms import ARM_NAMES, ARMS, ArmName
from alphaquant.evaluation.paired import Comparison
from alphaquant.models.linear import ATTENTION_ROLES
from alphaquant.reporting.statistics import (
    Correlation,
    Floats,
    indicator_columns,
    rank_correlation,
    ranks,
)


@dataclass(frozen=True)
class Measured:
    """One arm at one calibration seed, or one point of the front."""

    label: str
    """`low, seed 0`, `front int4`, `front fisher at 3.5`."""
    plans: Sequence[Mapping[str, Any]]
    """Per draw: bits_per_weight, predicted_loss, variant, tried."""
    windows: pd.DataFrame
    """draw, window, kl, loss."""

    @property
    def arm(self) -> str:
        """Name of the arm, or of the format."""
        return self.label.removeprefix("front ").split(", seed ")[0].split(" at ")[0]

    @property
    def on_front(self) -> bool:
        """Whether it was measured for the Pareto front alone."""
        return self.label.startswith("front ")


@dataclass(frozen=True)
class ExperimentInputs:
    """All that one experiment knows."""

    model: str
    config: Mapping[str, Any]
    measured: Sequence[Measured]
    original_loss: Floats  # [windows]
    alphas: Mapping[str, pd.DataFrame]
    """Alpha tables by estimator."""
    losses: Sequence[pd.DataFrame]
    """Sensitivity tables by seed."""
    oracles: Sequence[pd.DataFrame]
    """What groups cost alone, by seed; empty where it was not measured."""
    rivals: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """scores.parquet of other software's checkpoints, by FOLDER@BITS."""

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """One value of the config, or `default`."""
        found = self.config.get(section)
        return found.get(key, default) if isinstance(found, Mapping) else default

    def of_arm(self, name: str) -> list[Measured]:
        """An arm's measurements at the experiment's budget, by seed."""
        return [one for one in self.measured if one.arm == name and not one.on_front]

    def arms(self) -> list[ArmName]:
        """The arms that were measured, in their order."""
        return [name for name in ARM_NAMES if self.of_arm(name)]


def results_table(inputs: ExperimentInputs) -> pd.DataFrame:
    """One row per plan: label, arm, front, draw, bits, predicted and measured losses."""
    rows = []
    for one in inputs.measured:
        means = one.windows.groupby("draw")[["kl", "loss"]].mean()
        for draw, plan in enumerate(one.plans):
            rows.append(
                {
                    "label": one.label,
                    "arm": one.arm,
                    "front": one.on_front,
                    "draw": draw,
                    "variant": plan["variant"],
                    "bits_per_weight": float(plan["bits_per_weight"]),
                    "predicted_loss": plan["predicted_loss"],
                    "kl": float(means["kl"][draw]),
                    "perplexity": float(np.exp(means["loss"][draw])),
                }
            )
    return pd.DataFrame(rows).astype({"predicted_loss": "float64"})


def compare_arms(inputs: ExperimentInputs) -> Comparison:
    """Every arm's divergence per window, draw and seed."""
    return Comparison(
        {
            name: [
                one.windows.pivot_table(index="draw", columns="window", values="kl").to_numpy()
                for one in inputs.of_arm(name)
            ]
            for name in inputs.arms()
        }
    )


def comparison_table(changes: Mapping[tuple[ArmName, ArmName], Any]) -> pd.DataFrame:
    """One row per compared pair: arm, against, change with its interval, as shares."""
    rows = [
        (one, other, found.value, found.low, found.high) for (one, other), found in changes.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "against", "change", "low", "high"])


@dataclass(frozen=True)
class AlphaRelation:
    """How one alpha ranks the linears against one measure of how sensitive they are."""

    guide: str
    against: str
    plain: Correlation
    partial: Correlation


GIVEN = "type, block, size, log variance and kurtosis"


def alpha_relations(inputs: ExperimentInputs) -> list[AlphaRelation]:
    """Rank correlations over the linears other than routers, plain and given what else is known."""
    data = _linears(inputs)
    controls = np.column_stack(
        [
            indicator_columns(data["role"].to_numpy(dtype=str)),
            indicator_columns(data["block"].to_numpy(dtype=str)),
            *(
                ranks(data[name].fillna(data[name].median()).to_numpy(dtype="float64"))
                for name in ("size", "log_variance", "kurtosis")
            ),
        ]
    )
    attention = data["role"].isin(list(ATTENTION_ROLES))
    expert = data["expert"].fillna(-1).astype("float64").where(~attention, -2.0)
    pairs = np.column_stack([data["block"].to_numpy(dtype="float64"), expert.to_numpy()])
    groups = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    targets = {
        "oracle": "measured loss of a linear alone, per weight",
        "loss": "predicted loss, per weight",
        "weight": "end-loss weight (predicted loss per output change)",
    }
    return [
        AlphaRelation(
            guide,
            text,
            rank_correlation(data[guide], data[column], groups=groups),
            rank_correlation(data[guide], data[column], controls=controls, groups=groups),
        )
        for column, text in targets.items()
        if column in data.columns
        for guide in ("hill", "hill / null", "farms")
    ]


def _linears(inputs: ExperimentInputs) -> pd.DataFrame:
    """One row per linear of the blocks other than routers: guides, moments, and means over seeds of losses."""
    hill, farms = (inputs.alphas[name].set_index("linear") for name in ("hill", "farms"))
    data = hill[hill["block"].notna() & (hill["role"] != "router")].copy()
    data["size"] = data["rows"] * data["cols"]
    data = data.assign(hill=data["alpha"], farms=farms["alpha"].reindex(data.index))
    data["hill / null"] = data["alpha"] / data["alpha_null"]
    cheapest = inputs.losses[0].groupby("format")["bits_per_weight"].mean().idxmin()
    tables = [
        table[table["format"] == cheapest].set_index("linear").reindex(data.index)
        for table in inputs.losses
    ]
    data["loss"] = sum(table["predicted_loss"] for table in tables) / data["size"]
    data["weight"] = sum(table["predicted_loss"] / table["output_change"] for table in tables)
    if inputs.oracles:
        alone = [table.set_index("linear")["kl"].reindex(data.index) for table in inputs.oracles]
        data["oracle"] = sum(alone) / data["size"]
    return data.reset_index()


def title_of(arm: str) -> str:
    """An arm's title; a format is its own."""
    return ARMS[arm].title if arm in ARMS else arm
