"""Where text comes from: the builtin text, hub datasets by name, and the user's own files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from alphaquant.clock import timed
from alphaquant.errors import DataError, first_line
from alphaquant.text.builtin import documents

Part = Literal["calibration", "evaluation"]
FILE_TYPES = (".txt", ".jsonl", ".parquet")
COLUMN = "text"
MOST_ROWS = 20_000
"""Rows read from a streamed hub dataset; more than any number of windows needs."""


@dataclass(frozen=True, slots=True)
class HubSource:
    """A dataset on the Hugging Face hub and what of it serves calibration and evaluation."""

    path: str
    name: str | None = None
    calibration: tuple[str, ...] = ("train",)
    evaluation: tuple[str, ...] = ("test", "validation")
    """Names of splits; the first that exists is read."""
    files: dict[str, str] = field(default_factory=dict)
    """Split -> one data file that is enough, where the whole dataset is huge."""
    streamed: bool = True
    """Read the first rows without downloading the rest."""


HUB_SOURCES: dict[str, HubSource] = {
    "wikitext2": HubSource(
        "Salesforce/wikitext", "wikitext-2-raw-v1", evaluation=("test",), streamed=False
    ),
    "c4": HubSource(
        "allenai/c4",
        evaluation=("validation",),
        files={
            "train": "en/c4-train.00000-of-01024.json.gz",
            "validation": "en/c4-validation.00000-of-00008.json.gz",
        },
    ),
}


@timed("text")
def load_documents(dataset: str, part: Part) -> list[str]:
    """The texts of `dataset` for calibration or evaluation.

    `dataset` is builtin, wikitext2, c4, the path of a .txt, .jsonl or .parquet file, or a hub id
    such as `user/dataset` or `user/dataset:config`. A file serves both parts. Empty rows stay: they
    are part of wikitext's protocol. Raises DataError when it cannot be read or holds no text.
    """
    texts = _texts(dataset, part)
    if not any(text.strip() for text in texts):
        raise DataError(f"{dataset} holds no text for {part}; name a source that has some")
    return texts


def is_file(dataset: str) -> bool:
    """Whether `dataset` names a file rather than a known or hub dataset."""
    return Path(dataset).suffix.lower() in FILE_TYPES or Path(dataset).is_file()


def _texts(dataset: str, part: Part) -> list[str]:
    if dataset == "builtin":
        return [d.text for d in documents("calibration" if part == "calibration" else "test")]
    if is_file(dataset):
        return _read_file(Path(dataset).expanduser())
    if dataset in HUB_SOURCES:
        return _read_hub(dataset, HUB_SOURCES[dataset], part)
    if "/" in dataset and not dataset.startswith(("/", ".", "~")):
        path, _, name = dataset.partition(":")
        return _read_hub(dataset, HubSource(path, name or None), part)
    raise DataError(
        f"unknown text source {dataset!r}; allowed: builtin, {', '.join(HUB_SOURCES)}, a hub "
        f"dataset such as user/name, or a {', '.join(FILE_TYPES)} file"
    )


def _read_file(path: Path) -> list[str]:
    suffix = path.suffix.lower()
    if suffix not in FILE_TYPES:
        raise DataError(f"{path} is not a {', '.join(FILE_TYPES)} file; convert it to one of these")
    if not path.is_file():
        raise DataError(f"there is no text file {path}; check the path")
    try:
        if suffix == ".txt":
            return [path.read_text(encoding="utf-8")]
        if suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                return list(_json_lines(path, lines))
        return _read_parquet(path)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} cannot be decoded"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _json_lines(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg}") from error
        text = row.get(COLUMN) if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(
                f'{path}, line {number} has no string "{COLUMN}"; '
                f'each line must be an object such as {{"{COLUMN}": "..."}}'
            )
        yield text


def _read_parquet(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        names = pyarrow.parquet.read_schema(path).names
        if COLUMN not in names:
            raise DataError(f"{path} has no column {COLUMN!r}, only {', '.join(names) or 'none'}")
        values = pyarrow.parquet.read_table(path, columns=[COLUMN])[COLUMN].to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a readable parquet file: {error}") from error
    if wrong := next((value for value in values if not isinstance(value, str | None)), None):
        raise DataError(f"column {COLUMN!r} of {path} holds {type(wrong).__name__}, not strings")
    return [value for value in values if value is not None]


def _read_hub(label: str, source: HubSource, part: Part) -> list[str]:
    splits = source.calibration if part == "calibration" else source.evaluation
    for split in splits[:-1]:
        try:
            return _read_split(label, source, split)
        except _NoSplitError:
            continue
    try:
        return _read_split(label, source, splits[-1])
    except _NoSplitError as error:
        raise DataError(
            f"hub dataset {label} has no split {' or '.join(splits)} for {part}; "
            f"save the text as a {', '.join(FILE_TYPES)} file and name that"
        ) from error


class _NoSplitError(Exception):
    """The dataset was reached and lacks the split."""


def _read_split(label: str, source: HubSource, split: str) -> list[str]:
    import datasets

    file = source.files.get(split)
    try:
        rows: Any = datasets.load_dataset(
            source.path,
            source.name,
            split=split,
            data_files={split: file} if file else None,
            streaming=source.streamed,
        )
        read = list(islice(rows, MOST_ROWS)) if source.streamed else list(rows)
    except Exception as error:  # hub, network and parser errors share no base class
        if "split" in str(error).lower() and isinstance(error, ValueError):
            raise _NoSplitError from error
        raise DataError(_unreachable(label, source, split, error)) from error
    if read and not isinstance(read[0].get(COLUMN), str):
        raise DataError(
            f"hub dataset {label} has no string column {COLUMN!r}, only {', '.join(read[0])}; "
            f"save its text as a {', '.join(FILE_TYPES)} file and name that"
        )
    return [row[COLUMN] for row in read]


def _unreachable(label: str, source: HubSource, split: str, error: Exception) -> str:
    reason = first_line(error)
    return (
        f"cannot load split {split!r} of {source.path} from the hub for {label!r}: {reason}. "
        f"Without a network (or with HF_HUB_OFFLINE=1) name a local {', '.join(FILE_TYPES)} file, "
        "or use builtin"
    )
