"""A comparison of rounding methods: the same model, plan and text for each, and what it leaves behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from alphaquant.config import Method, RunConfig
from alphaquant.config.file import parse_config
from alphaquant.errors import AlphaQuantError, ConfigError, described, nearest
from alphaquant.formats.scheme import Scheme
from alphaquant.progress import reporter
from alphaquant.store.artifacts import ArtifactStore
from alphaquant.store.records import load_record
from alphaquant.store.runs import new_run_id
from alphaquant.store.stage import StageResult
from flows.dag import Products, quantize_and_measure
from flows.preflight import find_model, prepare
from flows.publish import SUMMARY, check_target, whole_folder, write_summary
from flows.runner import Request
from flows.summary import bits_per_weight

METHODS: tuple[Method, ...] = get_args(Method)
TABLE, FIGURE, PAGE = "comparison.parquet", "comparison.png", "comparison.md"
_TIMED = ("quantize", "tune")


class ComparisonIncomplete(AlphaQuantError):
    """Some methods failed; the others are there."""


@dataclass(frozen=True)
class Entry:
    """A method at a format."""

    method: str
    scheme: str
    request: Request


def entries_of(
    config: RunConfig,
    methods: Sequence[str],
    formats: Sequence[str],
    store: ArtifactStore,
    out: Path | None,
    force: tuple[str, ...] = (),
) -> tuple[list[Entry], Path]:
    """Every method at every format, checked as a run of its own, and the folder for the result.

    nf4 is a format of its own and stands once, beside formats of 4 bits. Raises UserError.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(
            f"--methods {unknown[0]!r} is not a method; nearest: {nearest(unknown[0], METHODS, 1)}; "
            f"allowed: {', '.join(METHODS)}"
        )
    folder = out or Path("runs") / f"compare-{find_model(config, store).name}"
    check_target(folder)
    bits = {text: Scheme.parse(text).number_format.bits for text in formats}
    pairs = [
        (method, text)
        for text, method in itertools.product(dict.fromkeys(formats), dict.fromkeys(methods))
        if method != "nf4"
    ]
    if "nf4" in methods:
        if 4 not in bits.values():
            raise ConfigError(
                f"method nf4 has 4 bits, and none of the formats {', '.join(formats)} has. Leave nf4 out of "
                "--methods, or add a format such as --format int4."
            )
        pairs.append(("nf4", "nf4"))
    entries = []
    for method, text in pairs:
        plain = config.model_dump(mode="json")
        plain["allocation"] |= {"policy": "uniform"}
        plain["allocation"]["default"] |= {"wq": text}
        plain["quantization"] |= {"method": method}
        plain["comparison"] |= {"uniform": [], "random": 0}
        plain |= {"export": {}, "router": {}}  # nothing is handed over, and no router trained
        request = prepare(parse_config(plain), store, folder, force, quantize_and_measure)
        entries.append(Entry(method, text, request))
    return entries, folder


def compare_entries(
    entries: Sequence[Entry], folder: Path, run: Callable[[Request], dict[str, Any]]
) -> dict[str, Any]:
    """Do the entries one after the other and write table, picture, page and summary; returns the summary.

    One that fails does not keep the others from running: its row holds the error.
    """
    rows = [_row(entry, run) for entry in entries]
    return _hand_over(entries, rows, folder)


def measured(
    request: Request, results: Sequence[StageResult], products: Products
) -> dict[str, Any]:
    """What a finished entry tells; nothing is handed over yet."""
    import pandas as pd

    from alphaquant.reporting.scores import ROTATED

    table = pd.read_parquet(request.store.path(products.scores) / "rivals.parquet")
    rows = table[table["model"] != ROTATED].to_dict("records")
    found = {str(row["metric"]): row for row in rows}
    kl, perplexity = found["kl_mean"], float(found["perplexity"]["value"])
    quantized = next(result for result in results if result.name == "quantize")
    return {
        "status": "completed",
        "run_id": request.run_id,
        "bits_per_weight": bits_per_weight(request.store, products.plan),
        "kl": float(kl["value"]),
        "kl_low": _known(kl["low"]),
        "kl_high": _known(kl["high"]),
        "perplexity": perplexity,
        "perplexity_original": perplexity / float(found["perplexity_ratio"]["value"]),
        "top1_agreement": float(found["top1_agreement"]["value"]),
        "seconds": _seconds(request.store, results),
        "device": quantized.place.device.partition(":")[0] if quantized.place else None,
        "state": quantized.state,
    }


def _known(value: float) -> float | None:
    return None if value != value else float(value)  # JSON has no NaN


def _seconds(store: ArtifactStore, results: Sequence[StageResult]) -> float | None:
    """What quantization took when it was computed; None when an interruption cut it in two."""
    total = 0.0
    for result in results:
        if result.name in _TIMED and result.state != "skipped":
            record = load_record(store, result.name, result.key)
            if record is None or record.units_ran < record.units:
                return None
            total += record.seconds
    return round(total, 3)


def _row(entry: Entry, run: Callable[[Request], dict[str, Any]]) -> dict[str, Any]:
    start = {"method": entry.method, "format": entry.scheme, "error": None}
    reporter().note(f"{entry.method} at {entry.scheme}")
    try:
        return start | run(entry.request)
    except Exception as error:  # noqa: BLE001
        reporter().note(f"{entry.method} at {entry.scheme} failed: {described(error)}")
        return start | {"status": "failed", "error": described(error)}


def _hand_over(
    entries: Sequence[Entry], rows: list[dict[str, Any]], folder: Path
) -> dict[str, Any]:
    import pandas as pd

    from alphaquant.reporting.comparison import COLUMNS, comparison_markdown, comparison_png

    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    original = table["perplexity_original"].dropna()
    name = entries[0].request.model.name
    summary: dict[str, Any] = {
        "run_id": new_run_id(),
        "status": "failed" if table["error"].notna().any() else "completed",
        "model": name,
        "perplexity_original": float(original.iloc[0]) if len(original) else None,
        "methods": rows,
        "table": str(folder / TABLE),
        "page": str(folder / PAGE),
        "figure": None,
    }
    with whole_folder(folder) as draft:
        table.to_parquet(draft / TABLE, index=False)
        if picture := comparison_png(table):
            (draft / FIGURE).write_bytes(picture)
            summary["figure"] = str(folder / FIGURE)
        page = comparison_markdown(name, table, FIGURE if picture else None)
        (draft / PAGE).write_text(page, encoding="utf-8")
        write_summary(draft / SUMMARY, summary)
    return summary
