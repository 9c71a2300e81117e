"""Measure what consumers make of checkpoints: every measurement in a fresh process. Imports no torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from alphaquant.errors import AlphaQuantError
from alphaquant.models.resolve import read_config
from alphaquant.models.stock import transformers_needs
from alphaquant.progress import reporter
from alphaquant.serving.consumers import CONSUMERS, DENSE, Consumer, obstacle

_DRIVER = Path(__file__).with_name("driver.py")
_SAID = 300
_LOG = "log.txt"
METRICS = {
    "load_seconds": "seconds to load",
    "peak_bytes": "peak memory of the process",
    "device_peak_bytes": "peak memory of the device",
    "prefill": "tokens per second, reading the prompt",
    "decode": "tokens per second, writing",
}


class MeasurementError(AlphaQuantError):
    """A consumer did not get through; the message is what it said last."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A checkpoint that is measured."""

    label: str
    """original or checkpoint."""
    folder: Path
    storage: str
    """dense, or the quant_method of its config."""
    dtype: str
    """Of its weights in memory."""
    bytes_on_disk: int
    context: int | None
    """Positions that it was made for, where config.json says so."""
    patched: bool
    """Whether plain transformers decodes it rightly only after `import alphaquant.hf`."""

    @classmethod
    def of(cls, label: str, folder: Path) -> Contender:
        """A model folder. Raises ModelError for one without a config.json."""
        raw = read_config(folder)
        packed = raw.get("quantization_config") or {}
        weights = [path.stat().st_size for path in folder.glob("*.safetensors")]
        return cls(
            label,
            folder,
            str(packed.get("quant_method", "unknown")) if packed else DENSE,
            str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"),
            sum(weights),
            raw.get("max_position_embeddings"),
            packed.get("quant_method") == "compressed-tensors"
            and transformers_needs(folder) == "alphaquant.hf",
        )


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of everybody."""

    prompt_tokens: int
    new_tokens: int
    batch_size: int
    device: str
    trust_remote_code: bool = False
    architecture: Literal["auto", "generic"] = "auto"
    """How AlphaQuant's own loader finds linears."""
    limit: int = 3600
    """Seconds after which a process is ended."""


def measure_all(
    contenders: Sequence[Contender],
    names: Sequence[str],
    load: Load,
    repeats: int,
    pythons: Mapping[str, Path],
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """One row per contender, consumer and repeat; and the pairs that were not measured, each with the reason.

    Repeats go round, so that a busy minute falls on everybody.
    """
    pairs = [(contender, CONSUMERS[name]) for contender in contenders for name in names]
    left_out: list[dict[str, str]] = []
    able = []
    for contender, consumer in pairs:
        if reason := obstacle(consumer, contender.storage, pythons.get(consumer.name)):
            left_out.append(_left_out(contender, consumer, reason))
        else:
            able.append((contender, consumer))
    rows: list[dict[str, Any]] = []
    for repeat in range(repeats):
        for contender, consumer in list(able):
            reporter().note(
                f"{contender.label} with {consumer.name}, {repeat + 1} of {repeats} times"
            )
            try:
                report = measure(contender, consumer, load, pythons.get(consumer.name))
            except MeasurementError as error:
                able.remove((contender, consumer))
                left_out.append(_left_out(contender, consumer, f"failed: {error}"))
                continue
            rows.append(_row(contender, consumer, load, repeat, report))
    return rows, left_out


def measure(
    contender: Contender, consumer: Consumer, load: Load, python: Path | None = None
) -> dict[str, Any]:
    """What the driver reports of one load, one prompt and its answer. Raises MeasurementError."""
    with tempfile.TemporaryDirectory(prefix="alphaquant-benchmark-") as name:
        folder = Path(name)
        job = asdict(load) | {
            "consumer": consumer.name,
            "checkpoint": str(contender.folder.absolute()),
            "storage": contender.storage,
            "dtype": contender.dtype,
            "patched": contender.patched,
            "report": str(folder / "report.json"),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [str(python or sys.executable), "-P", str(_DRIVER), str(folder / "job.json")]
        code = _ended(command, folder, _environment(python), load.limit)
        report = folder / "report.json"
        if code or not report.is_file():
            raise MeasurementError(_last_words(folder / _LOG, code))
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found


def _ended(command: Sequence[str], folder: Path, environment: Mapping[str, str], limit: int) -> int:
    """The exit status of a command. Raises MeasurementError when it is ended after `limit` seconds."""
    with (folder / _LOG).open("wb") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            start_new_session=True,  # processes that it starts are ended with it
        )
        try:
            return child.wait(limit)
        except subprocess.TimeoutExpired as error:
            raise MeasurementError(
                f"it took longer than {limit} s; give it more with --limit"
            ) from error
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _row(
    contender: Contender, consumer: Consumer, load: Load, repeat: int, report: Mapping[str, Any]
) -> dict[str, Any]:
    read, written = (load.batch_size * n for n in (load.prompt_tokens, load.new_tokens))
    return {
        "model": contender.label,
        "consumer": consumer.name,
        "storage": contender.storage,
        "computed_with": report["computed_with"],
        "device": report["device"],
        "repeat": repeat,
        "bytes_on_disk": contender.bytes_on_disk,
        "load_seconds": report["load_seconds"],
        "peak_bytes": report["peak_bytes"],
        "device_peak_bytes": report["device_peak_bytes"],
        "prefill": read / report["prefill_seconds"],
        "decode": written / report["decode_seconds"],
        "versions": json.dumps(report["versions"]),
    }


def summaries(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One entry per contender and consumer: of every metric the median, the lowest and the highest."""
    import statistics

    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["consumer"]), []).append(row)
    for members in groups.values():
        first = members[0]
        same = ("model", "consumer", "storage", "computed_with", "device", "bytes_on_disk")
        entry = {name: first[name] for name in same} | {"repeats": len(members)}
        for metric in METRICS:
            values = [row[metric] for row in members if row[metric] is not None]
            entry[metric] = (
                {"median": statistics.median(values), "low": min(values), "high": max(values)}
                if values
                else None
            )
        yield entry | {"versions": json.loads(first["versions"])}


def _left_out(contender: Contender, consumer: Consumer, reason: str) -> dict[str, str]:
    return {"model": contender.label, "consumer": consumer.name, "reason": reason}


def _environment(python: Path | None) -> dict[str, str]:
    """Ours and quiet; another environment must not find our packages, this one must."""
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if python is None:
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return kept | quiet


def _last_words(log: Path, code: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    errors = [line for line in said if "Error" in line.partition(":")[0]]
    return ((errors or said or [f"it ended with status {code} and said nothing"])[-1])[:_SAID]
