"""Where a run's time went, added to the report that is handed over; the cached report cannot know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from alphaquant.store.profile import StageProfile

PROFILE = "profile.json"


def add_profile(draft: Path, earlier: Path, found: Sequence[StageProfile]) -> None:
    """Write `profile.json` into `draft` and a section into its report, if it has one.

    The figure in the folder of the run before, `earlier`, is taken where it shows the same seconds: drawing takes
    longer than all else that a cached run does.
    """
    from alphaquant.reporting.addition import PAGE, WORDS, add_to_report
    from alphaquant.reporting.sections_time import FIGURE, time_section, told

    if not found:
        return
    text = json.dumps([told(profile) for profile in found], indent=1) + "\n"
    (draft / PROFILE).write_text(text, encoding="utf-8")
    if not all((draft / name).is_file() for name in (PAGE, WORDS)):
        return
    drawn, known = earlier / "figures" / f"{FIGURE}.png", earlier / PROFILE
    same = drawn.is_file() and known.is_file() and known.read_text(encoding="utf-8") == text
    add_to_report(draft, time_section(found, drawn.read_bytes() if same else _drawn(found)))


def _drawn(found: Sequence[StageProfile]) -> bytes:
    from alphaquant.reporting.figures_time import time_figure
    from alphaquant.reporting.style import drawing, png

    with drawing():
        return png(time_figure(found))
