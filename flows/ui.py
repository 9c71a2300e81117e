"""What the Prefect UI shows of a run besides its tasks: artifacts on the run's page."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact


def show_summary(summary: dict[str, Any]) -> None:
    """Put what ran, why, and the report among the flow run's artifacts."""
    stages = [
        {key: stage[key] for key in ("name", "state", "reason", "seconds")}
        for stage in summary["stages"]
    ]
    create_table_artifact(stages, key="stages", description="What ran, and why")
    report = Path(summary["report"]).with_suffix(".md")
    markdown = re.sub(
        r"\]\((figures/[^)]+\.png)\)",
        lambda found: f"](data:image/png;base64,{_base64(report.parent / found[1])})",
        report.read_text(encoding="utf-8"),
    )
    create_markdown_artifact(markdown, key="report", description="Report")


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
