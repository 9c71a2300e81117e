"""The command `alphaquant`: verbs, and what their endings mean.

Exit status 0: done. 2: the input is wrong, said in one message. 1: anything else. 130: interrupted by
Ctrl-C, 143: ended by SIGTERM; both stop at a point from which the same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from alphaquant.errors import AlphaQuantError, UserError, described
from flows.commands import VERBS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    options = build_parser(given).parse_args(given)
    try:
        with _stoppable():
            options.execute(options)
    except UserError as error:
        print(f"alphaquant: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        print(
            f"alphaquant: {'terminated' if terminated else 'interrupted'}. Finished stages and blocks are "
            "kept: the same command resumes.",
            file=sys.stderr,
        )
        return 143 if terminated else 130
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001
        print(f"alphaquant: {described(error)}", file=sys.stderr)
        if options.debug or not isinstance(error, AlphaQuantError):
            print(_where_to_look(error, options), file=sys.stderr)
        return 1
    return 0


class Terminated(KeyboardInterrupt):
    """The process was sent SIGTERM."""


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM stop the command as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Every verb; the one that `arguments` ask for with its options, whose module alone is imported."""
    parser = argparse.ArgumentParser(
        prog="alphaquant",
        description="Compress a language model to mixed precision and show what that cost.",
        epilog="Try `alphaquant run`: it compresses the shipped demo model, offline.",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb, text in VERBS.items():
        if verb in arguments[:1]:
            importlib.import_module(f"flows.commands.{verb}").add_to(verbs)
        else:
            verbs.add_parser(verb, help=text)
    return parser


def _where_to_look(error: Exception, options: argparse.Namespace) -> str:
    from flows.logs import keep_traceback
    from flows.preflight import open_store

    if options.debug:
        return "".join(traceback.format_exception(error))
    log = keep_traceback(error, open_store(getattr(options, "store", None)).root)
    return f"The traceback is in {log}." if log else "Run it again with --debug for the traceback."


if __name__ == "__main__":
    sys.exit(main())
