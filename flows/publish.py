"""Hand over: a folder a person opens, made of the store's artifacts, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alphaquant.errors import StoreError, UserError
from alphaquant.store.artifacts import MANIFEST, REFS
from alphaquant.store.files import FULL, read_json, try_lock
from alphaquant.store.stage import StageResult
from flows.dag import Products
from flows.planned import UNPUBLISHED
from flows.summary import summarize

if TYPE_CHECKING:
    from flows.runner import Request

SUMMARY = "summary.json"
CHECKPOINT_SUMMARY = "alphaquant.json"
_LINKED = ".safetensors"
_DRAFT = re.compile("[0-9a-f]{8}")
_STALE_SECONDS = 10


def check_target(out: Path) -> None:
    """Raise UserError unless `out` is new, empty or an earlier run's folder, and may be written."""
    if out.exists() and not _is_ours(out):
        raise UserError(
            f"{out} exists and was not made by alphaquant (it holds no summary of a run). Name "
            "another folder with --out, or remove it."
        )
    check_writable(out.parent, "--out")


def check_writable(folder: Path, option: str) -> None:
    """Raise UserError unless files can be made in `folder`, or in what would become its parent."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{existing} is a file, so {folder} cannot be a folder. Change {option}.")
    try:
        # asking for permission is not enough: file systems may be read-only or virtual
        tempfile.TemporaryDirectory(dir=existing, prefix=".alphaquant-").cleanup()
    except OSError as error:
        hint = "no permission, or a read-only file system"
        if error.errno in FULL:
            hint = "free some space, and the same command goes on"
        raise UserError(
            f"cannot write in {existing} ({error.strerror}: {hint}). Name another folder with {option}."
        ) from error


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `out`; leaving the context puts it in the place of `out`."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    old = draft.with_name(f"{draft.name}.old")
    with _alone_in(out.parent):
        check_target(out)
        _sweep(out)
    claim = -1
    try:
        draft.mkdir()
        claim = os.open(draft, os.O_RDONLY)
        try_lock(claim)
        yield draft
        with _alone_in(out.parent):
            check_target(out)
            if out.exists():
                out.rename(old)
            draft.rename(out)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise StoreError(
            f"the disk of {out} is full ({error.strerror}). Free some space or name another folder with --out; "
            "finished stages are kept, so the same command goes on from here."
        ) from error
    finally:
        if old.exists() and not out.exists():  # the draft did not get there
            old.rename(out)
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        if claim >= 0:
            os.close(claim)


def _sweep(out: Path) -> None:
    """Remove what killed runs left beside `out`: drafts that nobody holds any more."""
    for draft in out.parent.glob(f".{out.name}.*"):
        if not _DRAFT.fullmatch(draft.name.removeprefix(f".{out.name}.")):
            continue
        with contextlib.suppress(OSError):
            claim = os.open(draft, os.O_RDONLY)
            try:
                # a folder made a moment ago may not be held yet
                if time.time() - draft.stat().st_mtime > _STALE_SECONDS and try_lock(claim):
                    shutil.rmtree(draft, ignore_errors=True)
            finally:
                os.close(claim)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs from replacing a folder in `folder` at the same moment."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
        for result in results:
            tables = result.name not in UNPUBLISHED and result.ref != products.checkpoint
            if result.ref and tables:
                copy_artifact(store.path(result.ref), draft, tensors=False)
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
        write_summary(draft / CHECKPOINT_SUMMARY, summary)
    return summary


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
    found = read_json(out / SUMMARY) or read_json(out / CHECKPOINT_SUMMARY)
    return isinstance(found, dict) and "run_id" in found


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write a summary into a folder that nobody sees yet."""
    path.write_text(f"{json.dumps(summary, indent=1)}\n", encoding="utf-8")
