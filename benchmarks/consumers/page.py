"""The page that tells what consumers said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from benchmarks.consumers.asking import Asked
from benchmarks.consumers.catalogue import Reader
from benchmarks.consumers.foreign import Read

_SAID = 140


_INTRODUCTION = """\
Small random models, rounded to nearest and exported whatever our check said; `make consumers` makes this page.
vLLM's loader runs on a CPU that claims to be an H100: names, types, shapes and the choice of kernels are its own,
no kernel runs. GPTQModel's decoded weights and transformers' logits are compared with the dense checkpoint's."""


def page(reader: Reader, version: str, asked: Sequence[Asked]) -> str:
    """Markdown about one consumer: counts, then every plan that it refused or that is not as expected."""
    counted = Counter(one.answer for one in asked)
    odd = sum(not one.sound for one in asked)
    lines = [
        f"# What {reader.title} {version} makes of our checkpoints",
        "",
        _INTRODUCTION,
        "",
        "| plans | load, exactly | refused | loaded wrongly | our check disagrees |",
        "|---|---|---|---|---|",
        f"| {len(asked)} | {counted['loads']} | {counted['refuses']} | {counted['wrong']} | {odd} |",
    ]
    if told := [one for one in asked if one.answer != "loads" or not one.sound]:
        lines += ["", "| plan | our rule | the consumer | what it said |", "|---|---|---|---|"]
        lines += map(_row, told)
    return "\n".join(lines) + "\n"


def foreign_page(foreign: Sequence[Read]) -> str:
    """Markdown about checkpoints of other quantizers, read by ours."""
    lines = [
        "# What we make of other quantizers' checkpoints",
        "",
        "Tiny models, quantized by the packages that `benchmarks/rivals/requirements` pin, decoded by our reader and compared",
        "with the values that the quantizer itself names; `python -m benchmarks.consumers --only foreign` makes this page.",
        "",
        "| checkpoint | linears | largest difference |",
        "|---|---|---|",
        *(f"| {read.name} | {read.linears} | {_gap(read)} |" for read in foreign),
    ]
    return "\n".join(lines) + "\n"


def _row(one: Asked) -> str:
    rules = ", ".join(one.made.rules) or "accepted"
    mark = "" if one.sound else " **unexpected**"
    said = one.said.replace("|", "/")[:_SAID]
    return f"| {one.made.case.name} | {rules} | {one.answer}{mark} | {said} |"


def _gap(read: Read) -> str:
    return read.said.replace("|", "/")[:_SAID] if read.largest is None else f"{read.largest:g}"
