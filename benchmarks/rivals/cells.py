"""One cell of the comparison: a model, a contestant and a format; computed once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rivals import own
from benchmarks.rivals.catalogue import OWN, RIVALS, Contestant
from benchmarks.rivals.environments import pins_digest, python_of
from benchmarks.rivals.formats import Format
from benchmarks.rivals.inputs import SEED, Model, files_digest, load_tokens
from benchmarks.rivals.process import environment, last_words, measured

WEIGHTS, REPORT, SAVED = "weights.safetensors", "report.json", "saved"
_RESULT, _RUNNING = "cell.json", "running.pid"
_DRIVERS = Path(__file__).parent / "drivers"


@dataclass(frozen=True)
class Cell:
    """A checkpoint to be made and scored."""

    model: Model
    contestant: Contestant
    format: Format
    """With a group that fits the model."""
    tokens_file: Path
    """Calibration windows, as `calibration_file` makes them."""
    threads: int = 1
    device: str = "cpu"
    seed: int = SEED
    """That those windows were drawn with."""

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides the quantized values and what they cost."""
        rival = RIVALS.get(self.contestant.rival)
        code = (
            [own.source_digest(), files_digest([_DRIVERS / "with_alphaquant.py"])]
            if rival is None
            else [pins_digest(rival), files_digest([rival.driver, _DRIVERS / "job.py"])]
        )
        if self.contestant.policy in own.CHOOSING:
            code.append(str(own.equal_bits(self.model, self.format)))
        parts = [
            self.model.digest,
            files_digest([self.tokens_file]),
            self.contestant.rival,
            json.dumps(self.contestant.options, sort_keys=True),
            repr(self.format),
            str(self.threads),
            *([] if self.device == "cpu" else [self.device]),
            *code,
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def folder(self, cache: Path) -> Path:
        """Where the cell's files are."""
        name = f"{self.contestant.rival}-{self.contestant.setting}-{self.format.name}"
        return cache / "cells" / self.model.name / f"{name}-{self.digest[:12]}"

    def kept(self, cache: Path) -> dict[str, Any] | None:
        """What the cell took when it was computed, or why it failed; None when it was not."""
        try:
            kept: dict[str, Any] = json.loads((self.folder(cache) / _RESULT).read_text("utf-8"))
        except FileNotFoundError:
            return None
        return kept

    def busy(self, cache: Path) -> bool:
        """Whether another live process of this machine computes the cell."""
        try:
            os.kill(int((self.folder(cache) / _RUNNING).read_text(encoding="ascii")), 0)
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return False
        return True

    def compute(
        self, cache: Path, limit: float, pythons: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Quantize in a process of its own, for at most `limit` seconds; failures are kept as such.

        `pythons` by rival are used instead of environments made here.
        """
        folder = self.folder(cache)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / _RUNNING).write_text(str(os.getpid()), encoding="ascii")
        command, settings = self._command(folder, cache, pythons or {})
        log = folder / "log.txt"
        used = measured(command, log, environment=settings, limit=limit)
        result: dict[str, Any] = {
            "wall": used.wall,
            "cpu": used.cpu,
            "peak_bytes": used.peak_bytes,
            "device": self.device,
        }
        if used.code:
            ended = f"ended by signal {-used.code} after {used.wall:.0f} s"
            reason = ended if used.code < 0 else last_words(log)
            result |= {"state": "failed", "why": reason}
        else:
            try:
                result |= self._harvest(folder)
            except (OSError, ValueError) as error:
                result |= {"state": "failed", "why": str(error)}
        (folder / _RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (folder / _RUNNING).unlink()
        return result

    def _command(
        self, folder: Path, cache: Path, pythons: Mapping[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        if self.contestant.rival == OWN:
            samples = len(load_tokens(self.tokens_file))
            command = own.command(
                self.contestant, self.format, self.model, folder, samples, self.device, self.seed
            )
            return command, self._environment(PYTHONPATH=str(own.ROOT))
        rival = RIVALS[self.contestant.rival]
        job = {
            "model": str(self.model.path),
            "tokens_file": str(self.tokens_file.resolve()),
            "bits": self.format.bits,
            "group": self.format.group,
            "kind": self.format.kind,
            "settings": self.contestant.options,
            "out": str(folder.resolve()),
            "device": self.device,
        }
        file = folder / "job.json"
        file.write_text(json.dumps(job, indent=1), encoding="utf-8")
        python = pythons.get(rival.name) or python_of(rival, cache)
        return [str(python), str(rival.driver), str(file)], self._environment()

    def _environment(self, **more: str) -> dict[str, str]:
        if self.device == "cpu":
            more["CUDA_VISIBLE_DEVICES"] = ""  # some take a GPU unasked
        return environment(self.threads, **more)

    def _harvest(self, folder: Path) -> dict[str, Any]:
        if self.contestant.rival == OWN:
            report = own.harvest(folder, self.tokens_file)
        else:
            report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        files = [path for path in (folder / SAVED).rglob("*") if path.suffix == ".safetensors"]
        return {
            "state": "done",
            **report,
            "saved_bytes": sum(path.stat().st_size for path in files),
        }


def said(outcome: dict[str, Any]) -> str:
    """What became of a cell, in a line."""
    if outcome["state"] != "done":
        return f"failed: {outcome['why']}"
    return f"{outcome['seconds']:.1f} s, {outcome['wall']:.1f} s with start and end"


def weights_file(folder: Path) -> Path:
    """Values of a finished cell: what the driver dequantized, or the whole dense checkpoint."""
    plain = folder / WEIGHTS
    return plain if plain.is_file() else folder / SAVED / "model.safetensors"
