"""`alphaquant compare`: every method on the same terms, what it hands over, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alphaquant.errors import ModelError
from alphaquant.reporting.scores import ROTATED
from alphaquant.store.stage import Workbench
from tests.flows.conftest import Cli
from tests.flows.fakes import BODIES, use_fake_stages


def rivals(out: Path, store: Workbench, *, quantization: Any, **inputs: Any) -> None:
    """What stage compare writes of a plan that has no rivals."""
    rows = {
        "kl_mean": {"gptq": 0.01, "rtn": 0.03}.get(quantization.method, 0.02),
        "perplexity": 11.0,
        "perplexity_ratio": 1.1,
        "top1_agreement": 0.9,
        "bits_per_weight": 4.5,
    }
    table = pd.DataFrame({"metric": rows.keys(), "value": rows.values()})
    table["low"], table["high"] = table["value"] * 0.9, table["value"] * 1.1
    table = table.assign(task="heldout", model="own plan, routers untrained")
    rotated = table.assign(model=ROTATED, value=0.0)
    pd.concat([table, rotated]).to_parquet(out / "rivals.parquet")


def rounded(out: Path, store: Workbench, **inputs: Any) -> None:
    """What stage quantize writes of a model without blocks."""
    (out / "refs.json").write_text("{}")


@pytest.fixture(autouse=True)
def _measured(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_stages(monkeypatch, compare=rivals, quantize=rounded)


def test_every_method_stands_in_one_table_with_its_price(cli: Cli, tmp_path: Path) -> None:
    ending = cli("compare", "--model", "model", "--format", "int4,int3", "--json")
    assert ending.status == 0
    found = ending.json
    assert found["status"] == "completed"
    assert found["perplexity_original"] == pytest.approx(10)
    calibrated = ["gptq", "awq", "adaround"]
    pairs = [(row["method"], row["format"]) for row in found["methods"]]
    expected = [(m, f) for f in ("int4", "int3") for m in (*calibrated, "rtn")]
    assert pairs == [*expected, ("nf4", "nf4")]
    assert all(row["seconds"] >= 0 for row in found["methods"])
    folder = tmp_path / "runs" / "compare-model"
    names = {"comparison.parquet", "comparison.md", "comparison.png", "summary.json"}
    assert {path.name for path in folder.iterdir()} == names
    page = (folder / "comparison.md").read_text()
    assert "| gptq | int4 | 4.250 | **0.0100** |" in page
    assert page.count("**") == 4  # nf4 stands alone in its format
    assert len(pd.read_parquet(folder / "comparison.parquet")) == 9


def test_a_second_time_nothing_runs_and_the_seconds_are_those_of_the_first(cli: Cli) -> None:
    first, again = (
        cli("compare", "--model", "model", "--methods", "gptq,rtn", "--json").json for _ in range(2)
    )
    assert [row["state"] for row in first["methods"]] == ["ran", "ran"]
    assert [row["state"] for row in again["methods"]] == ["cached", "cached"]
    for one, other in zip(first["methods"], again["methods"], strict=True):
        assert one["seconds"] == other["seconds"]


def test_seconds_of_a_quantization_that_found_blocks_are_not_told(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_stages(monkeypatch, compare=rivals, quantize=BODIES["quantize"])
    # these blocks have one key for both methods, as after an interruption
    found = cli("compare", "--model", "model", "--methods", "gptq,awq", "--json").json["methods"]
    assert found[0]["seconds"] is not None
    assert found[1]["seconds"] is None


def test_the_table_is_shown_to_people(cli: Cli) -> None:
    ending = cli("compare", "--model", "model", "--methods", "gptq,nf4")
    assert ending.status == 0
    for text in ("gptq", "nf4", "0.0100", "90.0%", "seconds", "comparison.md"):
        assert text in ending.stdout


def test_what_would_be_handed_over_concerns_no_method(cli: Cli) -> None:
    settings = ("export.format=compressed-tensors", "router.method=kl", "calibration.samples=1")
    changes = [text for setting in settings for text in ("--set", setting)]
    ending = cli("compare", "--model", "model", "--methods", "gptq,nf4", *changes, "--json")
    assert ending.status == 0, ending.stderr
    assert [row["status"] for row in ending.json["methods"]] == ["completed", "completed"]
    assert {row["device"] for row in ending.json["methods"]} == {"cpu"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "gptq,awk"], ["'awk'", "nearest: awq", "adaround"]),
        (["--methods", "nf4", "--format", "int3"], ["nf4", "int3", "--format int4"]),
        (["--format", "int5"], ["int5", "nearest"]),
        (["--force", "quantise"], ["nearest: quantize"]),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(
    cli: Cli, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    ending = cli("compare", "--model", "model", *options)
    assert ending.status == 2
    assert all(word in ending.stderr for word in words)
    assert not (tmp_path / "artifacts").exists()


def test_a_method_that_fails_leaves_the_others_and_its_reason(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(out: Path, store: Workbench, *, quantization: Any, **inputs: Any) -> None:
        if quantization.method == "awq":
            raise ModelError("a weight is not finite")
        rounded(out, store)

    use_fake_stages(monkeypatch, compare=rivals, quantize=quantize)
    ending = cli("compare", "--model", "model", "--methods", "awq,gptq", "--json")
    assert ending.status == 1
    assert [row["status"] for row in ending.json["methods"]] == ["failed", "completed"]
    assert ending.json["methods"][0]["error"] == "a weight is not finite"
    assert "1 of 2 failed" in ending.stderr
    page = Path(ending.json["page"]).read_text()
    assert "failed: a weight is not finite" in page
