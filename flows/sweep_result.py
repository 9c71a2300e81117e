"""What a sweep leaves: a folder per point, one table, one picture, one summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alphaquant.config import RunConfig
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.files import write_json
from flows.points import Point, leaf, value_text
from flows.preflight import find_model
from flows.publish import SUMMARY, check_target

TABLE, FIGURE, PAGE = "sweep.parquet", "pareto.png", "sweep.md"


def open_sweep(out: str | None, config: RunConfig, store: ArtifactStore) -> Path:
    """The folder of a sweep; an earlier one's is used again. Raises UserError for any other."""
    folder = Path(out) if out else Path("runs") / f"sweep-{find_model(config, store).name}"
    check_target(folder)
    return folder


def mark_sweep(folder: Path, run_id: str) -> None:
    """Make the folder ours before the first point is in it, so that a killed sweep goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SUMMARY).exists():
        summary = {"run_id": run_id, "status": "running"}
        write_json(folder / SUMMARY, summary)


def hand_over_sweep(
    folder: Path, run_id: str, points: list[Point], endings: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write table, picture, page and summary of a sweep; returns the summary."""
    import pandas as pd

    from alphaquant.reporting.sweep import sweep_markdown, sweep_png

    rows = [_row(point, ending) for point, ending in zip(points, endings, strict=True)]
    table = pd.DataFrame(_with_series(rows))
    summary = {
        "run_id": run_id,
        "status": "failed" if any(row["error"] for row in rows) else "completed",
        "model": points[0].request.model.name,
        "points": rows,
        "table": str(folder / TABLE),
        "page": str(folder / PAGE),
        "figure": None,
    }
    table.drop(columns=["settings"]).to_parquet(folder / TABLE, index=False)
    if picture := sweep_png(table):
        (folder / FIGURE).write_bytes(picture)
        summary["figure"] = str(folder / FIGURE)
    title = f"{summary['model']}: {len(points)} points"
    page = sweep_markdown(title, table, FIGURE if picture else None)
    (folder / PAGE).write_text(page, encoding="utf-8")
    write_json(folder / SUMMARY, summary)
    return summary


def _row(point: Point, ending: dict[str, Any]) -> dict[str, Any]:
    scores = ending.get("scores") or {}
    return {
        "point": point.name,
        "settings": point.settings,
        **{key: value_text(value) for key, value in point.settings.items()},
        "status": ending["status"],
        "error": ending.get("error"),
        "bits_per_weight": ending.get("bits_per_weight"),
        "kl": scores.get("kl"),
        "perplexity": (scores.get("perplexity") or {}).get("quantized"),
        "top1_agreement": scores.get("top1_agreement"),
        "run_id": ending.get("run_id"),
        "stages_ran": _count(ending, "ran"),
        "stages_cached": _count(ending, "cached"),
        "blocks_ran": (ending.get("blocks") or {}).get("ran"),
        "blocks_cached": (ending.get("blocks") or {}).get("cached"),
        "checkpoint": ending.get("checkpoint"),
        "report": ending.get("report"),
    }


def _count(ending: dict[str, Any], state: str) -> int:
    return sum(stage["state"] == state for stage in ending.get("stages", []))


def _with_series(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what tells lines of the picture apart: all keys but the one with the most values."""
    keys = list(rows[0]["settings"])
    values = {key: {row[key] for row in rows} for key in keys}
    along = max(keys, key=lambda key: len(values[key]))
    return [
        row
        | {
            "short": row[along],
            "series": ", ".join(f"{leaf(key)} {row[key]}" for key in keys if key != along)
            or leaf(along),
        }
        for row in rows
    ]
