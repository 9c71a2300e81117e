"""`accept`, `diff`, `why` and forcing, on fake stages: what is said, what is kept, what runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alphaquant.store.stage import Stage
from tests.flows.conftest import Cli, Ending
from tests.flows.fakes import make_model_folder

MODEL = ("--model", "model")
RUN = ("run", *MODEL, "--no-prefect")


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Edit:
    """`edit("quantize")` changes the code of a stage."""
    return Edit(monkeypatch)


class Edit:
    """Stands for a developer who edits the module `helper_of.STAGE`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        versions: dict[str, int] = {}
        self._versions = versions

        def code(stage: Stage) -> dict[str, str]:
            return {f"helper_of.{stage.name}": str(versions.get(stage.name, 0))}

        monkeypatch.setattr(Stage, "code", code)

    def __call__(self, *stages: str) -> None:
        for stage in stages:
            self._versions[stage] = self._versions.get(stage, 0) + 1


def _ran(ending: Ending) -> list[str]:
    return [name for name, state in ending.states.items() if state == "ran"]


def _words(ending: Ending) -> str:
    """Output without the frames of tables and the breaks of lines."""
    return " ".join(ending.stdout.translate(str.maketrans("│┃", "  ")).split())


def test_after_an_edit_accept_keeps_the_result_and_its_blocks(cli: Cli, edit: Edit) -> None:
    cli(*RUN)
    edit("quantize")
    assert cli("plan", *MODEL, "--json").states["quantize"] == "run"
    accepted = cli("accept", "quantize", *MODEL)
    assert accepted.status == 0
    assert "and 2 blocks" in _words(accepted)
    assert "helper_of.quantize" in accepted.stdout
    ending = cli(*RUN, "--json")
    assert _ran(ending) == []
    assert ending.json["blocks"] == {"ran": 0, "cached": 2}
    reason = next(s["reason"] for s in ending.json["stages"] if s["name"] == "quantize")
    assert reason.startswith("accepted on ")
    assert reason.endswith("although code changed: helper_of.quantize")
    for what in ("last", "quantize"):
        assert "although code changed: helper_of.quantize" in _words(cli("why", what))


def test_accept_all_takes_every_stage_of_which_only_code_changed(cli: Cli, edit: Edit) -> None:
    cli(*RUN)
    edit("calibration", "quantize", "analyze")
    ending = cli("accept", "--all", *MODEL, "--json")
    states = dict.fromkeys(("calibration", "quantize", "analyze"), "accepted")
    names = "baseline answers alpha sensitivity allocate export evaluate"
    cached = dict.fromkeys(names.split(), "cached")
    assert ending.states == states | cached | dict.fromkeys(
        ("generate", "balance", "rotate", "tune", "router", "compare"), "nothing"
    )
    assert _ran(cli(*RUN, "--json")) == []
    again = cli("accept", "--all", *MODEL, "--json")
    assert "accepted" not in again.states.values()


def test_accept_all_leaves_alone_what_has_other_inputs(cli: Cli, edit: Edit) -> None:
    cli(*RUN)
    edit("alpha", "evaluate")
    changed = ("--set", "evaluation.tasks=[boolq]")
    ending = cli("accept", "--all", *MODEL, *changed, "--json")
    assert ending.states["alpha"] == "accepted"
    assert ending.states["evaluate"] == "nothing"
    assert _ran(cli(*RUN, "--json", *changed)) == ["answers", "evaluate", "analyze"]


def test_accept_takes_a_config_file_as_run_does(cli: Cli, edit: Edit, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("allocation: {target_bits: 5}\n")
    cli("run", "run.yaml", *MODEL, "--no-prefect")
    edit("alpha")
    assert cli("accept", "alpha", "run.yaml", *MODEL, "--json").states == {"alpha": "accepted"}
    assert _ran(cli("run", "run.yaml", *MODEL, "--no-prefect", "--json")) == []


def _keys(folder: Path) -> list[Path]:
    return sorted((folder / "artifacts" / "keys").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["quantize", "answers", "--set", "evaluation.tasks=[boolq]"],
            ["answers cannot be accepted", 'tasks ["builtin', '["boolq"]', "must run"],
        ),
        (
            ["quantize", "--set", "allocation.target_bits=5"],
            ["allocate (changed: allocation.target_bits 4.25 -> 5.0", "accept allocate quantize"],
        ),
        (["quantise"], ["neither a stage nor a config", "nearest: quantize"]),
        (
            [],
            [
                "name the stages",
                "--all",
                "calibration, generate, balance, baseline, answers, rotate",
            ],
        ),
        (["quantize", "--all"], ["not both"]),
        (["quantize", "a.yaml", "b.yaml"], ["one run config", "a.yaml, b.yaml"]),
    ],
)
def test_what_cannot_be_accepted_is_the_users_error_and_writes_nothing(
    cli: Cli, edit: Edit, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    cli(*RUN)
    edit("quantize", "evaluate")
    before = _keys(tmp_path)
    ending = cli("accept", *arguments, *MODEL)
    assert ending.status == 2
    assert len(ending.stderr.splitlines()) == 1
    for words in said:
        assert words in ending.stderr
    assert _keys(tmp_path) == before


def test_accept_before_the_first_run_finds_nothing(cli: Cli) -> None:
    ending = cli("accept", "alpha", *MODEL)
    assert ending.status == 0
    assert "it never ran" in ending.stdout


def test_forcing_from_a_stage_runs_it_and_all_that_follow(cli: Cli) -> None:
    cli(*RUN)
    planned = cli("plan", *MODEL, "--force-from", "quantize", "--json").states
    assert [name for name, state in planned.items() if state == "run"] == [
        "quantize",
        "export",
        "evaluate",
        "analyze",
    ]
    ending = cli(*RUN, "--json", "--force-from", "quantize")
    assert _ran(ending) == ["quantize", "export", "evaluate", "analyze"]
    assert {s["reason"] for s in ending.json["stages"] if s["state"] == "ran"} == {"forced"}


def test_forcing_from_alpha_leaves_calibration_alone(cli: Cli) -> None:
    cli(*RUN)
    ending = cli(*RUN, "--json", "--force-from", "alpha", "--force", "sensitivity")
    before = {"calibration", "baseline", "answers"}
    assert before == {n for n, state in ending.states.items() if state == "cached"}


def test_forcing_from_an_unknown_stage_names_the_option(cli: Cli) -> None:
    ending = cli("plan", *MODEL, "--force-from", "quantise")
    assert ending.status == 2
    assert "--force-from 'quantise' is not a stage; nearest: quantize" in ending.stderr


def test_other_weights_at_the_same_path_run_everything(cli: Cli, tmp_path: Path) -> None:
    cli(*RUN)
    weights = tmp_path / "model" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    ending = cli(*RUN, "--json")
    assert "cached" not in ending.states.values()
    reason = next(s["reason"] for s in ending.json["stages"] if s["name"] == "alpha")
    assert reason.startswith("changed: model ")


def test_the_same_model_at_another_path_runs_nothing_but_the_report(
    cli: Cli, tmp_path: Path
) -> None:
    cli(*RUN)
    make_model_folder(tmp_path / "elsewhere")
    ending = cli("run", "--model", "elsewhere", "--no-prefect", "--json")
    assert _ran(ending) == ["analyze"]


def test_a_moved_store_keeps_its_hits(cli: Cli, tmp_path: Path) -> None:
    cli(*RUN)
    (tmp_path / "artifacts").rename(tmp_path / "moved")
    assert _ran(cli(*RUN, "--json", "--store", "moved")) == []


def test_diff_shows_what_two_runs_were_told_and_what_came_out(cli: Cli, edit: Edit) -> None:
    cli(*RUN)
    edit("evaluate")
    cli(*RUN, "--set", "allocation.target_bits=5")
    shown = _words(cli("diff", "last~1", "last"))
    assert "allocation.target_bits 4.25 5" in shown
    assert "bits per weight 4.25 5" in shown
    assert "code: helper_of.evaluate" in shown
    assert "calibration" not in shown
    found = cli("diff", "last~1", "last", "--json").json
    assert found["config"] == {"allocation.target_bits": [4.25, 5.0]}
    assert found["stages"]["evaluate"]["code"] == ["helper_of.evaluate"]
    assert set(found["stages"]["allocate"]["inputs"]) == {"allocation.target_bits"}
    assert found["scores"] == {}


def test_diff_tells_scores_with_their_difference(cli: Cli, tmp_path: Path) -> None:
    first = cli(*RUN, "--json").json["run_id"]
    second = cli(*RUN, "--json").json["run_id"]
    path = tmp_path / "artifacts" / "runs" / f"{second}.json"
    manifest = json.loads(path.read_text())
    manifest["scores"]["perplexity"]["quantized"] = 10.5
    path.write_text(json.dumps(manifest))
    scores = cli("diff", first, second, "--json").json["scores"]
    assert scores == {"perplexity.quantized": {"a": 11.0, "b": 10.5, "difference": -0.5}}
    assert "perplexity.quantized 11 10.5 -0.5" in _words(cli("diff", first, second))
    everything = cli("diff", first, second, "--json", "--all").json
    assert everything["scores"]["kl"]["difference"] == 0
    assert set(everything["stages"]) >= {"alpha", "quantize"}


def test_diff_of_a_run_with_itself_says_so(cli: Cli) -> None:
    cli(*RUN)
    assert "They do not differ" in cli("diff", "last", "last").stdout


def test_diff_of_an_unknown_run_is_the_users_error(cli: Cli) -> None:
    cli(*RUN)
    ending = cli("diff", "last~5", "last")
    assert ending.status == 2
    assert "'last~5' names no run" in ending.stderr


def test_why_tells_parameters_code_and_damage(cli: Cli, edit: Edit, tmp_path: Path) -> None:
    cli(*RUN)
    edit("allocate")
    ending = cli(*RUN, "--json", "--set", "allocation.target_bits=5")
    folder = next(s["artifact"] for s in ending.json["stages"] if s["name"] == "allocate")
    shown = _words(cli("why", "allocate"))
    assert "input allocation.target_bits 4.25 5.0" in shown
    assert "code helper_of.allocate 0 1" in shown
    (Path(folder) / "plan.json").unlink()
    assert "is now damaged: plan.json is missing" in _words(cli("why", "allocate"))


def test_why_tells_where_a_stage_ran(cli: Cli) -> None:
    cli(*RUN)
    assert "cpu on " in _words(cli("why", "last"))
    assert "(cpu)" in _words(cli("why", "alpha"))


@pytest.mark.parametrize("text", ["{", "[1]", '{"run_id": "x", "stages": 3}'])
def test_why_leaves_out_a_damaged_manifest_and_says_so(cli: Cli, tmp_path: Path, text: str) -> None:
    cli(*RUN)
    (tmp_path / "artifacts" / "runs" / "29990101-torn.json").write_text(text)
    stage = cli("why", "alpha")
    assert stage.status == 0
    assert "first run" in stage.stdout
    assert "run 29990101-torn is damaged" in _words(stage)
    run = cli("why", "29990101-torn")
    assert run.status == 2
    assert "manifest of run" in run.stderr


def test_why_of_a_stage_that_never_ran_says_so(cli: Cli) -> None:
    assert "alpha never ran" in _words(cli("why", "alpha"))
