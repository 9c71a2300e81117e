"""Page and picture of what `benchmarks.gpu` measured, in one run or in several.

python -m benchmarks.gpu_page benchmarks/results/h200/gpu.md one.json other.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from matplotlib.patches import Patch

from alphaquant.clock import Step
from alphaquant.reporting.figures_time import STEP_COLOUR
from alphaquant.reporting.style import drawing, new_figure, png
from benchmarks.steps import table

_REST = "#E8E8E8"
_SMALL = 0.01  # of the longest bar: less has no colour of its own


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the page, PAGE.md; the picture lies beside it")
    parser.add_argument("reports", type=Path, nargs="+")
    options = parser.parse_args()
    texts = (path.read_text(encoding="utf-8") for path in options.reports)
    publish(options.out, [json.loads(text) for text in texts])


def publish(path: Path, reports: Sequence[dict[str, Any]]) -> None:
    """Write the page, and the picture beside it where there is something to draw."""
    path.write_text(page(reports), encoding="utf-8")
    if rows := _models(reports):
        path.with_suffix(".png").write_bytes(_picture(rows))


def _models(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for report in reports for row in report["models"]]


def page(reports: Sequence[dict[str, Any]]) -> str:
    """Markdown of all that was measured; reports are told from each other by a number where there are several."""
    several = len(reports) > 1
    lines = ["# Quantizing on a GPU", ""]
    for number, report in enumerate(reports, start=1):
        lines += [_about(report, f"{number}. " if several else ""), ""]
    lines += [
        "Where not every block was quantized, the whole model is extrapolated: the first block and the mean of the others",
        "times the rest; alpha and the writing of half of the windows by the number of blocks. Weights and tokens are random.",
        "",
        "| model | setting | s, last block | s, whole model | blocks quantized | GiB | alpha, s | writing, s |"
        + (" run |" if several else ""),
        "|---|---|---:|---:|---:|---:|---:|---:|" + ("---:|" if several else ""),
    ]
    for number, report in enumerate(reports, start=1):
        for row in report["models"]:
            peak = "" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}"
            writing = f"{row['writing']:.0f}" if "writing" in row else ""
            lines.append(
                f"| {row['shape']} | {row['setting']} | {row['block']:.2f} | {row['model']:.0f} | "
                f"{row['measured_blocks']} of {row['model_blocks']} | {peak} | {row['alpha']:.0f} | {writing} |"
                + (f" {number} |" if several else "")
            )
    for shape in dict.fromkeys(row["shape"] for row in _models(reports)):
        rows = [row for row in _models(reports) if row["shape"] == shape]
        lines += ["", f"The last block of {shape}:", "", table(rows)]
    for report in reports:
        lines += _kernels(report["kernels"]) + _tiles(report["tiles"])
    return "\n".join(lines) + "\n"


def _about(report: dict[str, Any], number: str) -> str:
    rates = report["rates"]
    commit = f", commit {report['commit']}" if report.get("commit") else ""
    note = f" {report['note']}" if report.get("note") else ""
    return (
        f"{number}{report['device']}, torch {report['torch']}, {report['cores']} cores{commit}; measured: bf16 "
        f"{rates['tensor_flop'] / 1e12:.1f}, fp32 {rates['flop'] / 1e12:.1f} Tflop/s, {rates['moved'] / 1e9:.0f} GB/s. "
        f"{report['windows']} windows of {report['length']} tokens.{note}"
    )


def _kernels(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "GPTQ and refinement of 16 matrices of 512 x 1024 with our kernels, and with torch's in their place:",
        "",
        "| format | kernels, s | launch by launch, s | times faster | same codes | loss |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['format']} | {row['kernel']:.4f} | {row['torch']:.4f} | {row['torch'] / row['kernel']:.1f} | "
            f"{row['same_codes']:.4%} | {row['loss_ratio']:.6f} |"
        )
    return lines


def _tiles(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "",
        "A launch of the column kernel, of 128 columns, by the rows of a program and its warps:",
        "",
        "| matrices | rows each | rows of a program | warps | ms a launch |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['batch']} | {row['out']} | {row['rows']} | {row['warps']} | {row['s'] * 1e3:.3f} |"
        )
    return lines


def _picture(rows: Sequence[dict[str, Any]]) -> bytes:
    """PNG: the last block of every model, cut into its steps, and below each what its floor is."""
    longest = max(row["block"] for row in rows)
    steps = [
        step
        for step in get_args(Step)
        if max(row["seconds"].get(step, 0.0) for row in rows) >= _SMALL * longest
    ]
    places, labels = [], []
    with drawing():
        figure = new_figure(0.85 * len(rows) + 1.5)
        axis = figure.subplots()
        for number, row in enumerate(rows):
            for offset, seconds, words in (
                (0.0, row["seconds"], f"{row['shape']}, {row['setting']}"),
                (0.8, row["floor"], "its floor"),
            ):
                place, start = 2.2 * number + offset, 0.0
                places.append(place)
                labels.append(words)
                for step in steps:
                    width = seconds.get(step, 0.0)
                    axis.barh(
                        place,
                        width,
                        left=start,
                        height=0.72,
                        color=STEP_COLOUR[step],
                        edgecolor="white",
                        linewidth=0.5,
                    )
                    start += width
                if not offset:
                    axis.barh(
                        place, max(row["block"] - start, 0), left=start, height=0.72, color=_REST
                    )
                    start = max(start, row["block"])
                axis.annotate(
                    f"{start:.2f} s",
                    (start, place),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                )
        axis.set_yticks(places, labels)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.12 * longest)
        axis.set_xlabel("seconds of the last block that was quantized")
        handles: list[Any] = [Patch(color=STEP_COLOUR[step], label=step) for step in steps]
        handles.append(Patch(color=_REST, label="in no step"))
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
        return png(figure)


if __name__ == "__main__":
    main()
