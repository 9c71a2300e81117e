"""What a run says at the end: the JSON of `--json` and `summary.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from alphaquant.models.stock import transformers_needs
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.stage import StageResult
from flows.dag import Products

if TYPE_CHECKING:
    import pandas as pd

    from flows.runner import Request

_MODELS = ("original", "quantized")
_HELDOUT = "heldout"
_FIDELITY = {"kl_mean": "kl", "top1_agreement": "top1_agreement"}


def stage_entries(store: ArtifactStore, results: Sequence[StageResult]) -> list[dict[str, Any]]:
    """Stages as they stand in summaries and manifests."""
    return [
        {
            "name": result.name,
            "state": result.state,
            "reason": result.reason,
            "seconds": round(result.seconds, 3),
            "key": result.key,
            **_place(result),
            "artifact": str(store.place(result.ref)) if result.ref else None,
        }
        for result in results
    ]


def _place(result: StageResult) -> dict[str, Any]:
    """Where and when a stage was computed, for stages that were."""
    if result.state != "ran" or result.place is None:
        return {}
    shown = {"host", "device", "started", "ended", "memory", "device_memory"}
    return result.place.model_dump(include=shown, exclude_none=True)


def block_counts(results: Sequence[StageResult]) -> dict[str, int]:
    """Decoder blocks that were computed, and that were found."""
    return {
        "ran": sum(result.units_ran for result in results),
        "cached": sum(result.units_cached for result in results),
    }


def bits_per_weight(store: ArtifactStore, plan: ArtifactRef) -> float:
    """Stored bits per weight of a plan, over all its linears."""
    import pandas as pd

    table = pd.read_parquet(store.path(plan) / "plan.parquet")
    sizes = table["rows"] * table["cols"]
    return float((table["bits_per_weight"] * sizes).sum() / sizes.sum())


def scores_of(store: ArtifactStore, scores: ArtifactRef | None) -> dict[str, Any]:
    """The scores a summary shows, out of `scores.parquet`."""
    import pandas as pd

    if scores is None:
        return {"perplexity": None, "kl": None, "top1_agreement": None, "tasks": {}}
    return summarize_scores(pd.read_parquet(store.path(scores) / "scores.parquet"))


def summarize_scores(table: pd.DataFrame) -> dict[str, Any]:
    """Perplexity of both models and fidelity on held-out text; every task's metrics by model."""
    shown: dict[str, Any] = {"perplexity": None, "kl": None, "top1_agreement": None, "tasks": {}}
    for row in table.to_dict("records"):
        task, metric, model = str(row["task"]), str(row["metric"]), str(row["model"])
        if model not in _MODELS:
            continue
        if task != _HELDOUT:
            shown["tasks"].setdefault(task, {}).setdefault(metric, {})[model] = float(row["value"])
        elif metric == "perplexity":
            shown["perplexity"] = (shown["perplexity"] or {}) | {model: float(row["value"])}
        elif metric in _FIDELITY:
            shown[_FIDELITY[metric]] = float(row["value"])
    return shown


def summarize(
    request: Request, results: Sequence[StageResult], products: Products
) -> dict[str, Any]:
    """The summary of a completed run; its products have no place yet."""
    store = request.store
    return {
        "run_id": request.run_id,
        "status": "completed",
        "model": request.model.name,
        "original": request.model.source.path or request.model.path,
        "bits_per_weight": bits_per_weight(store, products.plan),
        "stages": stage_entries(store, results),
        "blocks": block_counts(results),
        "scores": scores_of(store, products.scores),
        "transformers_needs": transformers_needs(store.path(products.checkpoint)),
        "checkpoint": None,
        "report": None,
    }
