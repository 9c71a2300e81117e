"""What the Prefect UI shows of a sweep, as a Markdown page: its table, its picture, and links to the runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.ui_pages import Page, inline_png


def sweep_pages(summary: dict[str, Any]) -> Iterator[Page]:
    """The comparison of all points, as it stands in the sweep's folder, with its picture inside."""
    page = Path(summary["page"])
    text = re.sub(
        r"\]\(([^)]+\.png)\)",
        lambda found: f"]({inline_png(page.parent / found[1])})",
        page.read_text(encoding="utf-8"),
    )
    yield Page("sweep", "Points side by side", text)
