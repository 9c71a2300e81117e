"""The errors a user can meet, each saying what was found, what is allowed and what to do next.

UserError                 exit status 2: the input is wrong, nothing was written
├── ConfigError           a config key, value or combination
├── FormatError           an unknown number format or an impossible scheme
├── PlanError             a pattern that matches nothing, a budget that cannot be met
├── ModelError            an unsupported architecture, a missing or damaged checkpoint, a bad weight
└── DataError             calibration or evaluation text that is missing or too short
StoreError                exit status 1: an artifact is missing or damaged, the disk is full
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AlphaQuantError(Exception):
    """Base of every error this project raises on purpose."""


class UserError(AlphaQuantError):
    """The user's input is wrong; the message alone must be enough to mend it."""


class ConfigError(UserError):
    """A config key, value or combination that is not allowed."""


class FormatError(UserError):
    """An unknown number format or an impossible scheme."""


class PlanError(UserError):
    """A pattern that matches nothing or a budget that cannot be met."""


class ModelError(UserError):
    """An unsupported architecture, a damaged checkpoint or a bad weight."""


class DataError(UserError):
    """Text that is missing, unreadable or too short."""


class StoreError(AlphaQuantError):
    """An artifact is missing or damaged, or the store cannot be written."""


def described(error: Exception) -> str:
    """What went wrong in one line for people; foreign errors with their type."""
    return str(error) if isinstance(error, AlphaQuantError) else f"{type(error).__name__}: {error}"


def first_line(error: BaseException) -> str:
    """What a foreign error says, in one line; its type when it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, KeyError):
        return f"unknown or missing {lines[0]}"
    # huggingface's validation puts the reason under a heading
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def nearest(name: str, allowed: Iterable[str], count: int = 3) -> str:
    """The allowed names closest to `name`, for the end of an error message."""
    names = sorted(set(allowed))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.3) or names[:count]
    return ", ".join(close)
