"""Ask a consumer's own loader about checkpoints, and hold its answer against what was expected and what our check says."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.consumers.catalogue import Reader
from benchmarks.consumers.checkpoints import Made
from benchmarks.consumers.plans import Answer
from benchmarks.rivals.process import environment

_LIMIT = 3600


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of one checkpoint."""

    made: Made
    answer: Answer
    said: str

    @property
    def accepted(self) -> bool:
        """Whether our check lets it pass."""
        return not self.made.rules

    @property
    def sound(self) -> bool:
        """Whether our check and the consumer agree, and both as expected."""
        case, agree = self.made.case, self.accepted == (self.answer == "loads")
        if case.drawn:
            return agree
        rules = self.made.rules
        expected = not rules if case.rule is None else case.rule in rules
        return expected and agree and self.answer == case.answer


def ask(reader: Reader, python: Path, made: Sequence[Made], log: Path) -> list[Asked]:
    """The answers of a consumer, in the order of `made`. Raises RuntimeError when it answers nothing."""
    found: dict[str, dict[str, Any]] = {}
    for shares in sorted({one.case.tensor_parallel for one in made}):
        asked = [one for one in made if one.case.tensor_parallel == shares]
        if reader.name == "vllm":
            words = ["--tensor-parallel", str(shares), *(str(one.packed) for one in asked)]
        else:
            words = [f"{one.packed}={one.dense}" for one in asked]
        with log.open("ab") as errors:
            ended = subprocess.run(
                [str(python), str(reader.driver), *words],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(1),
                cwd=log.parent,
                timeout=_LIMIT,
                check=False,
            )
        lines = ended.stdout.decode(errors="replace").splitlines()
        told = [json.loads(line) for line in lines if line.startswith('{"folder"')]
        found |= {answer["folder"]: answer for answer in told}
    if silent := [one.case.name for one in made if str(one.packed) not in found]:
        raise RuntimeError(f"{reader.title} said nothing of {', '.join(silent)}; see {log}")
    return [Asked(one, *_answer(found[str(one.packed)], one.quantized)) for one in made]


def _answer(told: dict[str, Any], quantized: int) -> tuple[Answer, str]:
    """The driver's line as an answer, and what there is to say of it."""
    if not told["loads"]:
        return "refuses", str(told["said"])
    lost = [*told.get("missing", ()), *told.get("unwritten", ())]
    if lost:
        return "wrong", f"left as they were, in part: {', '.join(dict.fromkeys(lost))}"
    if (count := told.get("linears", quantized)) != quantized:
        return "wrong", f"decodes {count} of {quantized} linears"
    largest = float(told.get("largest", 0.0))
    return ("loads", "") if largest == 0 else ("wrong", f"differs by {largest:.3g}")
