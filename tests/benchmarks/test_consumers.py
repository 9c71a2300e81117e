"""The harness that asks consumers: what their drivers print is held against what was expected."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from alphaquant.export.group_rules import Violation
from benchmarks.consumers.asking import Asked, ask
from benchmarks.consumers.catalogue import READERS
from benchmarks.consumers.checkpoints import Made
from benchmarks.consumers.exact_plans import GPTQMODEL, TRANSFORMERS
from benchmarks.consumers.foreign import Read
from benchmarks.consumers.page import foreign_page, page
from benchmarks.consumers.plans import Case, every
from benchmarks.consumers.vllm_plans import BROKEN, DRAWN, HEADS, OTHER_MODELS, SOUND

_DRIVER = """
import json, sys
print("some chatter")
for pair in sys.argv[1:]:
    folder, _, dense = pair.partition("=")
    if "lost" in folder:
        answer = {"loads": True, "missing": ["a.weight"]}
    elif "few" in folder:
        answer = {"loads": True, "linears": 13, "largest": 0.0}
    elif "odd" in folder:
        answer = {"loads": True, "largest": 0.5}
    elif "refused" in folder:
        answer = {"loads": False, "said": "ValueError: no"}
    else:
        answer = {"loads": True, "largest": 0.0}
    if "silent" not in folder:
        print(json.dumps({"folder": folder} | answer))
"""


@dataclass(frozen=True)
class FakeReader:
    name: str
    title: str
    driver: Path


@pytest.fixture
def reader(tmp_path: Path) -> FakeReader:
    driver = tmp_path / "driver.py"
    driver.write_text(_DRIVER, encoding="utf-8")
    return FakeReader("fake", "Fake", driver)


def made(name: str, **changes: object) -> Made:
    case = replace(Case(name, "llama", every("int4")), **changes)  # type: ignore[arg-type]
    return Made(case, Path(f"/{name}/packed"), Path(f"/{name}/dense"), (), 14)


def test_answers_are_what_the_driver_printed(reader: FakeReader, tmp_path: Path) -> None:
    asked = [made("fine"), made("lost"), made("odd"), made("few"), made("refused")]
    found = ask(reader, Path(sys.executable), asked, tmp_path / "log")  # type: ignore[arg-type]
    assert [one.answer for one in found] == ["loads", "wrong", "wrong", "wrong", "refuses"]
    assert found[3].said == "decodes 13 of 14 linears"
    assert found[1].said == "left as they were, in part: a.weight"
    assert [one.sound for one in found] == [True, False, False, False, False]
    assert "**unexpected**" in page(READERS["vllm"], "1", found)


def test_a_driver_that_says_nothing_of_a_checkpoint_is_an_error(
    reader: FakeReader, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="Fake said nothing of silent"):
        ask(reader, Path(sys.executable), [made("silent")], tmp_path / "log")  # type: ignore[arg-type]


def test_what_our_check_refuses_must_be_refused() -> None:
    refused = Violation("vllm", "fused", ("a",), "found b", "Use c.")
    for answer, sound in (("refuses", True), ("loads", False), ("wrong", False)):
        one = made("broken", rule="fused", answer="refuses")
        assert Asked(replace(one, violations=(refused,)), answer, "").sound is sound  # type: ignore[arg-type]
    drawn = made("drawn", drawn=True)
    assert Asked(drawn, "loads", "").sound
    assert Asked(replace(drawn, violations=(refused,)), "wrong", "").sound
    assert not Asked(drawn, "wrong", "").sound


def test_plans_have_names_of_their_own() -> None:
    for cases in (BROKEN + SOUND + OTHER_MODELS + HEADS + DRAWN, GPTQMODEL, TRANSFORMERS):
        names = [case.name for case in cases]
        assert len(names) == len(set(names))
    assert len(BROKEN) >= 20


def test_the_page_names_foreign_checkpoints() -> None:
    text = foreign_page([Read("one", 14, 0.0), Read("other", 0, None, "ModelError: no | such")])
    assert "| one | 14 | 0 |" in text
    assert "| other | 0 | ModelError: no / such |" in text
