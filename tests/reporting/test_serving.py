from __future__ import annotations

from pathlib import Path
from typing import Any

from alphaquant.reporting.addition import add_to_report
from alphaquant.reporting.document import Document, Section
from alphaquant.reporting.markdown import to_markdown
from alphaquant.reporting.page import to_html
from alphaquant.reporting.sections_serving import serving_section


def span(low: float, median: float, high: float) -> dict[str, float]:
    return {"low": low, "median": median, "high": high}


def answer(decode: float) -> dict[str, Any]:
    row = {
        "model": "checkpoint",
        "consumer": "transformers",
        "bytes_on_disk": 3 << 20,
        "load_seconds": span(1.0, 1.25, 1.5),
        "peak_bytes": span(5 << 20, 6 << 20, 7 << 20),
        "device_peak_bytes": None,
        "prefill": span(2000.0, 2000.0, 2000.0),
        "decode": span(decode, decode, decode),
        "computed_with": "weights decoded to <bf16>",
    }
    return {
        "measured": "2026-11-26T10:00:00+00:00",
        "prompt_tokens": 512,
        "new_tokens": 64,
        "batch_size": 1,
        "cores": 2,
        "load_average": 0.5,
        "rows": [row],
        "not_measured": [{"model": "checkpoint", "consumer": "vllm", "reason": "not installed"}],
    }


def test_a_report_gets_the_section_once(tmp_path: Path) -> None:
    document = Document("Report", "", (), ("An answer.",), (Section("run", "The run", ["Words."]),))
    (tmp_path / "report.html").write_text(to_html(document), encoding="utf-8")
    (tmp_path / "report.md").write_text(to_markdown(document), encoding="utf-8")
    for decode in (11.5, 22.5):
        add_to_report(tmp_path, serving_section(answer(decode), b"png"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    words = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (page, words):
        assert "22.5" in text
        assert "11.5" not in text
        assert "1.25 (1 to 1.5)" in text
        assert "Words." in text
        assert "checkpoint with vllm: not installed" in text
    assert page.count('<section id="serving">') == page.count('href="#serving"') == 1
    assert page.index('id="run"') < page.index('id="serving"') < page.index("</main>")
    assert "decoded to &lt;bf16&gt;" in page
    assert words.count("## Serving") == 1
    assert (tmp_path / "figures" / "serving.png").read_bytes() == b"png"
