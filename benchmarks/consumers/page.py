"""The page that tells what consumers said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.consumers.asking import Asked
from benchmarks.consumers.catalogue import Reader
from benchmarks.consumers.foreign import Read

_SAID = 140


def page(
    answers: Mapping[Reader, Sequence[Asked]],
    versions: Mapping[str, str],
    foreign: Sequence[Read],
) -> str:
    """Markdown: a line per consumer, then every plan that was refused or is not as expected."""
    lines = [
        "# What consumers make of our checkpoints",
        "",
        "Small random models, rounded to nearest and exported whatever our check said; `make consumers` makes this page.",
        "vLLM's loader runs on a CPU that claims to be an H100: names, types, shapes and the choice of kernels are its own,",
        "no kernel runs. GPTQModel's decoded weights and transformers' logits are compared with the dense checkpoint's.",
        "",
        "| consumer | plans | load, exactly | refused | loaded wrongly | our check disagrees |",
        "|---|---|---|---|---|---|",
    ]
    for reader, asked in answers.items():
        counted = Counter(one.answer for one in asked)
        odd = sum(not one.sound for one in asked)
        lines.append(
            f"| {reader.title} {versions[reader.name]} | {len(asked)} | {counted['loads']} | "
            f"{counted['refuses']} | {counted['wrong']} | {odd} |"
        )
    for reader, asked in answers.items():
        told = [one for one in asked if one.answer != "loads" or not one.sound]
        if told:
            lines += ["", f"## {reader.title}", ""]
            lines += ["| plan | our rule | it | what it said |", "|---|---|---|---|"]
            lines += [_row(one) for one in told]
    if foreign:
        lines += ["", "## Checkpoints of others, read by us", ""]
        lines += ["| checkpoint | linears | largest difference |", "|---|---|---|"]
        lines += [f"| {r.name} | {r.linears} | {_gap(r)} |" for r in foreign]
    return "\n".join(lines) + "\n"


def _row(one: Asked) -> str:
    rules = ", ".join(dict.fromkeys(v.rule for v in one.made.violations)) or "accepted"
    mark = "" if one.sound else " **unexpected**"
    said = one.said.replace("|", "/")[:_SAID]
    return f"| {one.made.case.name} | {rules} | {one.answer}{mark} | {said} |"


def _gap(read: Read) -> str:
    return read.said.replace("|", "/")[:_SAID] if read.largest is None else f"{read.largest:g}"
