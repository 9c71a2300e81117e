"""What the Prefect UI says of a run that failed: the message first, then what to do, details last."""

from __future__ import annotations

import traceback

from alphaquant.errors import AlphaQuantError, UserError
from alphaquant.reporting.markdown import plain
from flows.ui_pages import Page

_STAGE = "in stage "
_KEPT = "Stages and blocks that finished are kept: it goes on where it stopped."


def note_stage(error: BaseException, stage: str) -> None:
    """Write down in which stage an error was raised, for `failed_stage`."""
    if failed_stage(error) is None:
        error.add_note(f"{_STAGE}{stage}")


def failed_stage(error: BaseException) -> str | None:
    """The stage that raised an error; None when no stage did."""
    notes = getattr(error, "__notes__", [])
    return next((note.removeprefix(_STAGE) for note in notes if note.startswith(_STAGE)), None)


def failure_sentence(error: BaseException) -> str:
    """What failed and why, as the state of the run says it."""
    stage = failed_stage(error)
    failed = f"Stage {stage} failed" if stage else "The run failed"
    if isinstance(error, UserError) and stage is None:
        failed = "The run was refused"
    return f"{failed}: {_message(error)}"


def failure_page(error: BaseException) -> Page:
    """The message, what to do next, and for errors nobody foresaw the traceback."""
    stage = failed_stage(error)
    if isinstance(error, UserError):
        title = f"Stage {stage} refused its input" if stage else "The run was refused"
        advice = f"Mend what the message names, in the form or on the worker's machine, and start a run again. {_KEPT}"
    elif isinstance(error, AlphaQuantError):
        title = f"Stage {stage} failed" if stage else "The run failed"
        advice = f"When what the message names is mended, choose Retry in the menu of the run's page. {_KEPT}"
    else:
        title = f"Stage {stage} failed" if stage else "The run failed"
        advice = (
            f"AlphaQuant did not foresee this error. Choose Retry in the menu of the run's page. {_KEPT} If it fails in the "
            "same way again, the traceback below tells where."
        )
    parts = [f"# {title}", _quoted(_message(error)), f"**What to do.** {advice}"]
    if not isinstance(error, AlphaQuantError):
        lines = "".join(traceback.format_exception(error)).rstrip()
        parts += ["## Traceback", f"```\n{lines}\n```"]
    return Page("failure", failure_sentence(error), "\n\n".join(parts) + "\n")


def _message(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, AlphaQuantError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _quoted(message: str) -> str:
    """A message as a block that wraps; its own marks stay text."""
    return "\n>\n".join(f"> {plain(line)}" for line in message.splitlines() if line.strip())
