"""`alphaquant evaluate`: score any checkpoint against its original."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alphaquant.config import RunConfig
from alphaquant.config.file import load_config
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.runs import new_run_id
from alphaquant.store.stage import StageResult, run_stage
from flows.commands.options import Verbs, add_assignments, add_json, add_store, add_verb
from flows.contents import file_digests
from flows.display import current_display, showing_progress
from flows.logs import send_to_stderr, stdout_kept_clean
from flows.preflight import check_device, check_files, check_places, find_model, open_store
from flows.publish import copy_artifact, whole_folder
from flows.summary import scores_of
from tasks.evaluate import evaluate as stage

_EXAMPLE = """  alphaquant evaluate runs/demo-4.25/checkpoint --original demo-model
  alphaquant evaluate my-int4 --original Qwen/Qwen3-0.6B --set evaluation.dataset=wikitext2 --out scores"""


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    parser = add_verb(verbs, "evaluate", "Score a checkpoint against its original.", _EXAMPLE)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="folder or hub id of the model to score"
    )
    parser.add_argument(
        "--original", required=True, metavar="ID_OR_DIR", help="the model it was made from"
    )
    add_assignments(parser)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="put scores.parquet into this folder"
    )
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
        with showing_progress(console):
            result = _score(config, store, options.checkpoint, options.original)
        answer = _answer(store, result, options)
        if options.out:
            _hand_over(store, result, options.out, answer)
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
    else:
        Console().print(score_table(store, result))
        Console().print(f"scores: {answer['table']}", soft_wrap=True, markup=False)


def score_table(store: ArtifactStore, result: StageResult) -> Table:
    """Every score with its interval."""
    import pandas as pd

    assert result.ref is not None
    scores = pd.read_parquet(store.path(result.ref) / "scores.parquet")
    table = Table()
    for name in ("task", "metric", "model", "value", "low", "high"):
        table.add_column(
            name, justify="right" if name in ("value", "low", "high") else "left", overflow="fold"
        )
    for row in scores.to_dict("records"):
        numbers = (row["value"], row.get("low"), row.get("high"))
        shown = ("" if number is None or pd.isna(number) else f"{number:.5g}" for number in numbers)
        table.add_row(str(row["task"]), str(row["metric"]), str(row["model"]), *shown)
    return table


def _score(config: RunConfig, store: ArtifactStore, checkpoint: str, original: str) -> StageResult:
    models = [
        find_model(
            config.model_copy(update={"model": config.model.model_copy(update={"path": path})}),
            store,
            packed=packed,
        )
        for path, packed in ((original, False), (checkpoint, True))
    ]
    display = current_display()
    display.begin(stage.name)
    inputs: dict[str, Any] = {
        "model": models[0],
        "checkpoint": models[1],
        "plan": None,
        "evaluation": config.evaluation,
        "files": file_digests([config.evaluation.dataset, *config.evaluation.tasks]),
        "execution": config.execution,
    }
    result = run_stage(stage, store, inputs)
    display.end(result)
    return result


def _answer(
    store: ArtifactStore, result: StageResult, options: argparse.Namespace
) -> dict[str, Any]:
    assert result.ref is not None
    folder = options.out or store.path(result.ref)
    return {
        "run_id": new_run_id(),
        "checkpoint": options.checkpoint,
        "original": options.original,
        "state": result.state,
        "reason": result.reason,
        "seconds": round(result.seconds, 3),
        "scores": scores_of(store, result.ref),
        "table": str(folder / "scores.parquet"),
    }


def _hand_over(
    store: ArtifactStore, result: StageResult, out: Path, answer: dict[str, Any]
) -> None:
    assert result.ref is not None
    with whole_folder(out) as draft:
        copy_artifact(store.path(result.ref), draft)
        (draft / "summary.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
