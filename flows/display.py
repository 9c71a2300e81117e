"""What a person sees while a run works: live bars on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from alphaquant.progress import Reporter, reporter, reporting_to
from alphaquant.sizes import size_text
from alphaquant.store.place import Place
from alphaquant.store.stage import StageResult

_LOG = logging.getLogger("alphaquant.run")
_PLAIN_INTERVAL = 10.0
_MAIN_METRICS = ("acc_norm", "acc", "bits_per_byte")
_STYLES = {"ran": "bold green", "cached": "cyan", "skipped": "dim"}


class Display(Reporter, Protocol):
    """A reporter that also knows stages."""

    def begin(self, stage: str) -> None:
        """A stage starts."""

    def end(self, result: StageResult) -> None:
        """A stage is done."""


class PlainDisplay:
    """One log line per stage, and now and then one about what is going on inside."""

    def __init__(self, interval: float = _PLAIN_INTERVAL, prefix: str = "") -> None:
        self._interval = interval
        self._prefix = prefix
        self._started: dict[str, float] = {}
        self._said = time.monotonic()

    def begin(self, stage: str) -> None:
        """A stage starts."""
        self._started.clear()
        self._said = time.monotonic()
        _LOG.info("%s%s ...", self._prefix, stage)

    def end(self, result: StageResult) -> None:
        """A stage is done."""
        _LOG.info("%s%s", self._prefix, _sentence(result))

    def update(self, what: str, done: int, total: int) -> None:
        """Progress inside a stage; said at most every few seconds."""
        now = time.monotonic()
        if done == 0:  # work that begins anew, such as the steps of the next block
            self._started.pop(what, None)
        started = self._started.setdefault(what, now)
        if now - self._said < self._interval or done in (0, total):
            return
        self._said = now
        left = (now - started) / done * (total - done)
        _LOG.info("%s  %s %d/%d, about %s left", self._prefix, what, done, total, duration(left))

    def note(self, message: str) -> None:
        """One line the user should see."""
        _LOG.info("%s  %s", self._prefix, message)


class LiveDisplay:
    """Bars that move: one for the stage, one for each kind of work inside it."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._stage: TaskID | None = None
        self._inner: dict[str, TaskID] = {}

    def begin(self, stage: str) -> None:
        """A stage starts."""
        self._stage = self._progress.add_task(f"[bold]{stage}", total=None)

    def end(self, result: StageResult) -> None:
        """A stage is done: its bars give way to one line."""
        for task in (*self._inner.values(), *([] if self._stage is None else [self._stage])):
            self._progress.remove_task(task)
        self._inner.clear()
        self._stage = None
        style = _STYLES[result.state]
        self._console.print(_sentence(result), style=style, highlight=False, markup=False)

    def update(self, what: str, done: int, total: int) -> None:
        """Progress inside a stage."""
        task = self._inner.get(what)
        if task is None:
            task = self._inner[what] = self._progress.add_task(f"  {what}", total=total)
        self._progress.update(task, completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._inner.pop(what))

    def note(self, message: str) -> None:
        """One line the user should see."""
        self._console.print(f"  {message}", highlight=False, markup=False)


class _Count(MofNCompleteColumn):
    """`3/16`, and nothing for a stage whose parts are counted below it."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


@contextlib.contextmanager
def showing_progress(console: Console) -> Iterator[Display]:
    """Show progress on `console` (a live one when it is a terminal) while the context is open."""
    if not console.is_terminal:
        plain = PlainDisplay()
        with reporting_to(plain):
            yield plain
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        _Count(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        live = LiveDisplay(console, progress)
        with reporting_to(live):
            yield live


def current_display() -> Display:
    """The display in force; plain log lines when nobody set one (a Prefect worker)."""
    target = reporter()
    return target if hasattr(target, "begin") else PlainDisplay()  # type: ignore[return-value]


def duration(seconds: float) -> str:
    """Seconds for people: 3.2 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _sentence(result: StageResult) -> str:
    blocks = ""
    if result.state == "ran" and result.units_ran + result.units_cached:
        blocks = f", blocks: {result.units_ran} ran, {result.units_cached} cached"
    spent = ""
    if result.state == "ran":
        spent = f" in {duration(result.seconds)}{_memory(result.place)}"
    return f"{result.name:<12} {result.state:<8}{spent} ({result.reason}{blocks})"


def _memory(place: Place | None) -> str:
    """What a stage had in memory at most."""
    if place is None or place.memory is None:
        return ""
    text = f", {size_text(place.memory)} of memory"
    if place.device_memory is not None:
        text += f", {size_text(place.device_memory)} of the GPU's"
    return text


def stage_table(stages: list[dict[str, Any]], title: str) -> Table:
    """Stages, what happened (or would happen) to each, and why."""
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for name in ("stage", "state", "time", "why"):
        table.add_column(name, justify="right" if name == "time" else "left", overflow="fold")
    for stage in stages:
        seconds = stage.get("seconds")
        table.add_row(
            stage["name"],
            stage["state"],
            "" if seconds is None else duration(seconds),
            escape(stage["reason"]),
        )
    return table


def summary_table(summary: dict[str, Any]) -> Table:
    """The result of a run on one screen."""
    table = Table(title=escape(summary["model"]), title_justify="left", show_header=False)
    for name, value in _summary_rows(summary):
        table.add_row(escape(name), escape(value))
    return table


def _summary_rows(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    scores = summary["scores"]
    yield "bits per weight", f"{summary['bits_per_weight']:.3f}"
    perplexity = scores.get("perplexity") or {}
    if perplexity:
        yield (
            "perplexity",
            f"{perplexity['original']:#.4g} original, {perplexity['quantized']:#.4g} quantized",
        )
    if scores.get("kl") is not None:
        yield "KL to the original", f"{scores['kl']:#.3g} nats per token"
    if scores.get("top1_agreement") is not None:
        yield "same top token", f"{scores['top1_agreement']:.1%}"
    for task, metrics in scores.get("tasks", {}).items():
        if (metric := _main_metric(metrics)) is not None:
            shown = (f"{_score(metric, value)} {model}" for model, value in metrics[metric].items())
            yield f"{task} {metric}", ", ".join(shown)
    blocks = summary["blocks"]
    states = [stage["state"] for stage in summary["stages"]]
    counts = [f"{states.count(state)} {state}" for state in ("ran", "cached", "skipped")]
    yield "stages", ", ".join(counts)
    yield "blocks", f"{blocks['ran']} ran, {blocks['cached']} cached"
    yield "checkpoint", str(summary["checkpoint"])
    if (needs := summary.get("transformers_needs", "nothing")) != "nothing":
        yield "transformers", f"needs {needs} to load it"
    if summary.get("report"):
        yield "report", str(summary["report"])


def _main_metric(metrics: dict[str, dict[str, float]]) -> str | None:
    """The one metric of a task that a summary shows; None when the original has no score."""
    comparable = [metric for metric, values in metrics.items() if "original" in values]
    preferred = [metric for metric in _MAIN_METRICS if metric in comparable]
    return next(iter([*preferred, *comparable]), None)


def _score(metric: str, value: float) -> str:
    return f"{value:.1%}" if metric.startswith("acc") else f"{value:#.4g}"
