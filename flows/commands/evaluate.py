"""`alphaquant evaluate`: score checkpoints against their original, which is evaluated once."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from alphaquant.config import RunConfig
from alphaquant.config.file import load_config
from alphaquant.models.resolve import ModelRef
from alphaquant.store.artifacts import ArtifactRef, ArtifactStore
from alphaquant.store.runs import new_run_id
from alphaquant.store.stage import Stage, StageResult, run_stage
from flows.commands.options import Verbs, add_assignments, add_json, add_store, add_verb
from flows.dag import evaluate_checkpoints
from flows.display import current_display, showing_progress
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import check_device, check_files, check_places, find_model, open_store
from flows.publish import SUMMARY, whole_folder, write_summary
from flows.summary import summarize_scores

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLE = """  alphaquant evaluate runs/demo-4.25/checkpoint --original demo-model
  alphaquant evaluate my-int4 my-int3 --original Qwen/Qwen3-0.6B --set evaluation.dataset=wikitext2 --out scores"""
_TABLE = "scores.parquet"


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "evaluate", _EXAMPLE)
    parser.add_argument(
        "checkpoints",
        metavar="CHECKPOINT",
        nargs="+",
        help="folder or hub id of a model to score; the original is evaluated once for all",
    )
    parser.add_argument(
        "--original", required=True, metavar="ID_OR_DIR", help="the model they were made from"
    )
    add_assignments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"put {_TABLE} into this folder")
    add_store(parser)
    add_json(parser)
    parser.set_defaults(execute=execute)


def execute(options: argparse.Namespace) -> None:
    """Score, keep the table, show it."""
    console = Console(stderr=True)
    send_to_stderr(console)
    store = open_store(options.store)
    with stdout_kept_clean(options.json):
        config = load_config(None, options.assignments)
        check_places(store, options.out)
        check_files(config)
        check_device(config.execution.device)
        original, *checkpoints = _models(config, store, options)
        with showing_progress(console):
            calls = _Calls(store)
            evaluate_checkpoints(config, original, checkpoints, calls)
        tables = [_scores(store, result) for result in calls.scored]
        answer = _answer(calls, tables, options)
        if options.out:
            with whole_folder(options.out) as draft:
                _together(tables, options.checkpoints).to_parquet(draft / _TABLE, index=False)
                write_summary(draft / SUMMARY, answer)
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
        return
    for checkpoint, table in zip(options.checkpoints, tables, strict=True):
        Console().print(score_table(table, checkpoint if len(tables) > 1 else None))
    entries = answer.get("checkpoints", [answer])
    for file in dict.fromkeys(entry["table"] for entry in entries):
        Console().print(f"scores: {file}", soft_wrap=True, markup=False)


def score_table(scores: pd.DataFrame, title: str | None = None) -> Table:
    """Every score with its interval."""
    import pandas as pd

    table = Table(title=title)
    for name in ("task", "metric", "model", "value", "low", "high"):
        table.add_column(
            name, justify="right" if name in ("value", "low", "high") else "left", overflow="fold"
        )
    for row in scores.to_dict("records"):
        numbers = (row["value"], row.get("low"), row.get("high"))
        shown = ("" if number is None or pd.isna(number) else f"{number:.5g}" for number in numbers)
        table.add_row(str(row["task"]), str(row["metric"]), str(row["model"]), *shown)
    return table


class _Calls:
    """Runs each stage here, and keeps what became of those that score a checkpoint."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self.scored: list[StageResult] = []

    def __call__(self, stage: Stage, **inputs: Any) -> ArtifactRef | None:
        display = current_display()
        display.begin(stage.name)
        result = run_stage(stage, self.store, inputs)
        display.end(result)
        if "checkpoint" in inputs:
            self.scored.append(result)
        return result.ref

    def skip(self, stage: Stage, reason: str, **inputs: Any) -> None:
        """Say so."""
        current_display().end(StageResult(stage.name, "skipped", reason, 0.0, "", None))


def _models(config: RunConfig, store: ArtifactStore, options: argparse.Namespace) -> list[ModelRef]:
    """The original, which may not be packed, and the checkpoints."""
    return [
        find_model(
            config.model_copy(update={"model": config.model.model_copy(update={"path": path})}),
            store,
            packed=packed,
        )
        for path, packed in (
            (options.original, False),
            *((checkpoint, True) for checkpoint in options.checkpoints),
        )
    ]


def _file(store: ArtifactStore, result: StageResult) -> Path:
    assert result.ref is not None
    return store.path(result.ref) / _TABLE


def _scores(store: ArtifactStore, result: StageResult) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(_file(store, result))


def _together(tables: list[pd.DataFrame], checkpoints: list[str]) -> pd.DataFrame:
    """One checkpoint's table as it is; several below each other, with a column `checkpoint`."""
    import pandas as pd

    if len(tables) == 1:
        return tables[0]
    return pd.concat(
        [table.assign(checkpoint=name) for table, name in zip(tables, checkpoints, strict=True)],
        ignore_index=True,
    )


def _answer(
    calls: _Calls, tables: list[pd.DataFrame], options: argparse.Namespace
) -> dict[str, Any]:
    """What is known of the checkpoint, or of each under `checkpoints` where there are several."""
    entries = []
    for checkpoint, result, table in zip(options.checkpoints, calls.scored, tables, strict=True):
        file = options.out / _TABLE if options.out else _file(calls.store, result)
        entries.append(
            {
                "checkpoint": checkpoint,
                "original": options.original,
                "state": result.state,
                "reason": result.reason,
                "seconds": round(result.seconds, 3),
                "scores": summarize_scores(table),
                "table": str(file),
            }
        )
    told = entries[0] if len(entries) == 1 else {"checkpoints": entries}
    return {"run_id": new_run_id(), **told}
