"""Hand over: a folder a person opens, made of the store's artifacts, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphaquant.errors import UserError
from alphaquant.models.resolve import FACTS
from alphaquant.store.artifacts import MANIFEST, REFS
from alphaquant.store.files import read_json
from alphaquant.store.profile import profiles
from alphaquant.store.stage import StageResult
from alphaquant.store.whole import check_writable, whole
from flows.dag import Products
from flows.planned import UNPUBLISHED
from flows.summary import summarize
from flows.time_spent import add_profile

if TYPE_CHECKING:
    from flows.runner import Request

SUMMARY = "summary.json"
_LINKED = ".safetensors"
_PLAN_FIGURE = "figures/formats_by_role.png"
"""Of the report; where there is none, it is drawn for the card."""


def check_target(out: Path) -> None:
    """Raise UserError unless `out` is new, empty or an earlier run's folder, and may be written."""
    if out.exists() and not _is_ours(out):
        raise UserError(
            f"{out} exists and was not made by alphaquant (it holds no summary of a run). Name "
            "another folder with --out, or remove it."
        )
    check_writable(out.parent, "--out")


def whole_folder(out: Path) -> contextlib.AbstractContextManager[Path]:
    """Fill a temporary folder beside `out`; leaving the context puts it in the place of `out`."""
    return whole(
        out,
        check_target,
        "Free some space or name another folder with --out; finished stages are kept, so the same command goes on "
        "from here.",
    )


def publish_run(
    request: Request, results: Sequence[StageResult], products: Products
) -> dict[str, Any]:
    """Write the checkpoint, every table, the report and `summary.json`; returns the summary."""
    store = request.store
    summary = summarize(request, results, products)
    out = request.out or Path("runs") / f"{request.model.name}-{summary['bits_per_weight']:.2f}"
    summary["checkpoint"] = str(out / "checkpoint")
    summary["report"] = str(out / "report.html")
    with whole_folder(out) as draft:
        copy_artifact(store.path(products.checkpoint), draft / "checkpoint")
        run = {"run_id": summary["run_id"]}
        _write_card(draft / "checkpoint", request, products, run, "checkpoint")
        for result in results:
            tables = result.name not in UNPUBLISHED and result.ref != products.checkpoint
            if result.ref and tables:
                copy_artifact(store.path(result.ref), draft, tensors=False)
        add_profile(draft, out, profiles(store, results))
        write_summary(draft / SUMMARY, summary)
    return summary


def publish_checkpoint(
    request: Request, results: Sequence[StageResult], products: Products
) -> dict[str, Any]:
    """Write the checkpoint alone, with the summary beside its weights; returns the summary."""
    assert request.out is not None
    summary = summarize(request, results, products)
    summary["checkpoint"] = str(request.out)
    with whole_folder(request.out) as draft:
        copy_artifact(request.store.path(products.checkpoint), draft)
        _write_card(draft, request, products, summary, request.out.name)
    return summary


def _write_card(
    checkpoint: Path, request: Request, products: Products, run: dict[str, Any], name: str
) -> None:
    """README.md, the figure and alphaquant.json of a checkpoint; the original's README, copied before, is replaced."""
    import pandas as pd

    from alphaquant.export.model_card import facts_of, plan_figure, write_card

    store = request.store
    plan = pd.read_parquet(store.path(products.plan) / "plan.parquet")
    scores = products.scores and pd.read_parquet(store.path(products.scores) / "scores.parquet")
    facts = facts_of(Path(request.model.path), request.model.source, plan, scores)
    drawn = products.report and store.path(products.report) / _PLAN_FIGURE
    figure = drawn.read_bytes() if drawn and drawn.is_file() else plan_figure(plan)
    passed = request.config.export.consumers  # a run ends where a check of one fails
    write_card(checkpoint, facts, figure=figure, run=run, name=name, consumers=passed)


def copy_artifact(source: Path, target: Path, *, tensors: bool = True) -> None:
    """Copy an artifact's files; tensor files become hard links where the file system allows.

    A linked file is the store's own. The store keeps its files read-only and notices when one was changed.
    """
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if path.is_dir() or relative.as_posix() in (MANIFEST, REFS):
            continue
        is_tensor = path.suffix == _LINKED
        if is_tensor and not tensors:
            continue
        copy = target / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        if is_tensor:
            with contextlib.suppress(OSError):
                copy.hardlink_to(path)
                continue
        shutil.copyfile(path, copy)


def _is_ours(out: Path) -> bool:
    if not out.is_dir():
        return False
    if not any(out.iterdir()):
        return True
    found = read_json(out / SUMMARY) or read_json(out / FACTS)
    return isinstance(found, dict) and "run_id" in found


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write a summary into a folder that nobody sees yet."""
    path.write_text(f"{json.dumps(summary, indent=1)}\n", encoding="utf-8")
