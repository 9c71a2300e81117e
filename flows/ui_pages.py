"""What the Prefect UI shows of a finished run, as Markdown pages: stages, plan, scores, figures, report."""

from __future__ import annotations

import base64
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.display import duration

if TYPE_CHECKING:
    import pandas as pd

_MOST_BYTES = 1_500_000
"""Size of all figures of a run together: a page is stored in the server's database."""
_MOST_FORMATS = 3


@dataclass(frozen=True)
class Page:
    """One artifact: `headline` stands on its card, where it may be all that is read."""

    key: str
    headline: str
    markdown: str


def pages(summary: dict[str, Any]) -> Iterator[Page]:
    """Every page that the products of a run allow."""
    out = Path(summary["report"]).absolute().parent
    yield stages_page(summary)
    yield plan_page(summary, out / "plan.parquet")
    if (scores := out / "scores.parquet").is_file():
        yield scores_page(scores, out / "rivals.parquet")
    yield figures_page(out / "report.md")
    yield report_page(summary, out)


def stages_page(summary: dict[str, Any]) -> Page:
    """What ran, what was cached, why, how long it took and where."""
    stages, blocks = summary["stages"], summary["blocks"]
    states = [stage["state"] for stage in stages]
    counts = [f"{states.count(state)} {state}" for state in ("ran", "cached", "skipped")]
    spent = duration(sum(stage["seconds"] for stage in stages))
    rows = [
        [stage["name"], stage["state"], _spent(stage), _where(stage), stage["reason"]]
        for stage in stages
    ]
    parts = [
        _table(["stage", "state", "time", "where", "why"], rows, numeric=(2,)),
        f"Blocks: {blocks['ran']} ran, {blocks['cached']} cached.",
        "`alphaquant why STAGE` tells more about the last decision on a stage.",
    ]
    return _page("stages", f"{', '.join(counts)}, {spent} in all", "Stages", parts)


def plan_page(summary: dict[str, Any], table: Path) -> Page:
    """Bits per weight, and which formats the roles and the blocks got."""
    import pandas as pd

    plan = pd.read_parquet(table)
    plan["size"] = plan["rows"] * plan["cols"]
    plan["scheme"] = [_scheme(row) for row in plan.to_dict("records")]
    bits = f"{summary['bits_per_weight']:.3f} bits per weight"
    by_role = [
        [str(role), f"{len(part):,}", _bits(part), _mix(part)]
        for role, part in plan.groupby("role", sort=False)
    ]
    by_block = [
        (str(block), _bits(part), _mix(part)) for block, part in plan.groupby("block", sort=True)
    ]
    alike = [list(group) for _, group in groupby(by_block, key=lambda row: row[1:])]
    spans = [[_span(group[0][0], group[-1][0]), *group[0][1:]] for group in alike]
    parts = [
        f"**{bits}** over {len(plan):,} linears, scales and zero points included.",
        f"Formats by share of weights: {_mix(plan)}.",
        "## By role",
        _table(["role", "linears", "bits per weight", "formats"], by_role, (1, 2)),
        "## By block",
        _table(["block", "bits per weight", "formats"], spans, (1,)),
    ]
    return _page("plan", f"{bits}: {_mix(plan)}", "Plan", parts)


def scores_page(table: Path, rivals: Path) -> Page:
    """The original against the quantized model in every metric, and other plans if any were measured."""
    import pandas as pd

    from alphaquant.reporting.notation import change_text, number, shown, shown_change
    from alphaquant.reporting.scores import Scores

    scores = Scores.of(pd.read_parquet(table))
    rows = [
        [
            score.task,
            score.name,
            shown(before) if before else "–",
            shown(score),
            change_text(before, score, scores.change(score)) or "–",
            "lower" if score.lower_is_better else "higher",
        ]
        for before, score in scores.pairs()
    ]
    header = ["task", "metric", "original", "quantized", "change", "better"]
    parts = [
        _table(header, rows, numeric=(2, 3, 4)),
        "In brackets the 95 % interval of a change, paired by question or window.",
    ]
    if rivals.is_file() and (others := Scores.of(pd.read_parquet(rivals)).rivals()):
        found = [[rival.text, number(rival.median)] for rival in others]
        parts += ["## Other plans", _table(["plan", "KL to the original"], found, (1,))]
    said = []
    if (after := scores.find("perplexity")) is not None:
        said.append(f"perplexity {shown_change(scores.find('perplexity', 'original'), after)}")
    if (kl := scores.find("kl_mean")) is not None:
        said.append(f"KL {number(kl.value)}")
    said += [f"{after.task} {shown_change(before, after)}" for before, after in scores.tasks()[:2]]
    return _page("scores", ", ".join(said) or "nothing was measured", "Scores", parts)


def figures_page(report: Path) -> Page:
    """The report's figures with their captions, as many as are not too large together."""
    figures = list(_figures(report))
    parts: list[str] = []
    left, shown, last = _MOST_BYTES, 0, ""
    for section, name, alt, caption in figures:
        picture = inline_png(report.parent / name)
        if len(picture) > left:
            continue
        left -= len(picture)
        shown += 1
        parts += [f"## {section}"] if section != last else []
        parts += [f"![{alt}]({picture})", caption]
        last = section
    if shown < len(figures):
        parts.append(f"{len(figures) - shown} more are in the report.")
    return _page("figures", f"{shown} of the report's {len(figures)} figures", "Figures", parts)


def report_page(summary: dict[str, Any], out: Path) -> Page:
    """Where the report and the checkpoint are, and how to open them."""
    host = socket.gethostname()
    report, checkpoint = out / "report.html", Path(summary["checkpoint"]).absolute()
    text = f"""# Report and checkpoint

Everything is in `{out}` on `{host}`.

| what | where |
| --- | --- |
| report, one page with all figures | `{report}` |
| checkpoint | `{checkpoint}` |
| summary and tables | `{out / "summary.json"}`, `*.parquet` |

Open the report there in a browser (`xdg-open {report}`), or fetch it:

```
scp {host}:{report} .
```

Load the checkpoint (its README.md tells other ways):

```python
import alphaquant

model = alphaquant.load("{checkpoint}")
```
"""
    return Page("report", f"{report} on {host}", text)


def inline_png(path: Path) -> str:
    """A picture as an address that holds it whole: the UI cannot reach our files."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _figures(report: Path) -> Iterator[tuple[str, str, str, str]]:
    """(section, file, alt text, caption) of every figure of a report."""
    figure = re.compile(r"^!\[(.*)\]\((figures/[^)]+\.png)\)$(?:\n\n(\*.*))?", re.M)
    for section in re.split(r"^## ", report.read_text(encoding="utf-8"), flags=re.M):
        for found in figure.finditer(section):
            yield section.partition("\n")[0], found[2], found[1], found[3] or ""


def _spent(stage: dict[str, Any]) -> str:
    # a narrow column would break between a number and its unit
    return duration(stage["seconds"]).replace(" ", "&nbsp;") if stage["state"] == "ran" else ""


def _where(stage: dict[str, Any]) -> str:
    return " ".join(str(stage[key]) for key in ("host", "device") if stage.get(key))


def _scheme(row: dict[Any, Any]) -> str:
    """A row's scheme as the user would write it."""
    import pandas as pd

    from alphaquant.formats.scheme import Scheme

    group = None if pd.isna(row["group_size"]) else int(row["group_size"])
    return str(Scheme(str(row["format"]), group, bool(row["symmetric"])))


def _bits(plan: pd.DataFrame) -> str:
    return f"{(plan['bits_per_weight'] * plan['size']).sum() / plan['size'].sum():.3f}"


def _mix(plan: pd.DataFrame) -> str:
    """`int4-g128 96 %, int6-g128 3 %`: formats by share of weights, the most common ones."""
    from alphaquant.reporting.notation import share_text

    shares = plan.groupby("scheme")["size"].sum() / plan["size"].sum()
    most = shares.sort_index().sort_values(ascending=False, kind="stable")
    named = [f"{name} {share_text(share)}" for name, share in most.head(_MOST_FORMATS).items()]
    rest = most.iloc[_MOST_FORMATS:]
    if len(named) == 1:
        return str(most.index[0])
    others = [f"{len(rest)} more {share_text(float(rest.sum()))}"] if len(rest) else []
    return ", ".join([*named, *others])


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first} to {last}"


def _table(header: list[str], rows: list[list[str]], numeric: tuple[int, ...] = ()) -> str:
    from alphaquant.reporting.document import Grid
    from alphaquant.reporting.markdown import table

    return table(Grid("", header, rows, frozenset(numeric)))


def _page(key: str, headline: str, title: str, parts: list[str]) -> Page:
    return Page(key, headline, "\n\n".join([f"# {title}", *parts]) + "\n")
