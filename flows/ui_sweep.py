"""What the Prefect UI shows of a sweep: its table, its picture, and links to the runs."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact


def show_sweep(summary: dict[str, Any]) -> None:
    """Put the comparison of all points among the flow run's artifacts."""
    page = Path(summary["page"])
    text = re.sub(
        r"\]\(([^)]+\.png)\)",
        lambda found: f"](data:image/png;base64,{_base64(page.parent / found[1])})",
        page.read_text(encoding="utf-8"),
    )
    create_markdown_artifact(text, key="sweep", description="Points side by side")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
