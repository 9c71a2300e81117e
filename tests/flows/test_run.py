"""`alphaquant run`, `plan` and `why` on fake stages: products, exit statuses, what is said and where."""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alphaquant.errors import ModelError
from alphaquant.evaluation.room import Room
from alphaquant.models.resolve import ModelRef
from flows.commands import VERBS
from tests.flows.conftest import Cli
from tests.flows.fakes import BODIES, make_model_folder, use_fake_stages
from tests.tiny import make_model

RUN = ("run", "--model", "model", "--no-prefect")
ALL = [
    "calibration",
    "generate",
    "balance",
    "baseline",
    "answers",
    "alpha",
    "rotate",
    "sensitivity",
    "allocate",
    "quantize",
    "tune",
    "router",
    "export",
    "evaluate",
]
ALL += ["compare", "analyze"]
SKIPPED = dict.fromkeys(("generate", "balance", "rotate", "tune", "router", "compare"), "skipped")


def test_a_run_leaves_the_promised_folder(cli: Cli, tmp_path: Path) -> None:
    ending = cli(*RUN)
    assert ending.status == 0
    out = tmp_path / "runs" / "model-4.25"
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        "checkpoint/README.md",
        "checkpoint/alphaquant.json",
        "checkpoint/config.json",
        "checkpoint/model.safetensors",
        "checkpoint/plan.png",
        "alpha.parquet",
        "answers.parquet",
        "errors.parquet",
        "figures/alpha.png",
        "figures/time_by_step.png",
        "plan.json",
        "plan.parquet",
        "profile.json",
        "report.html",
        "report.md",
        "scores.parquet",
        "sensitivity.parquet",
        "summary.json",
    }
    assert "runs/model-4.25/checkpoint" in ending.stdout
    assert "10.00 original, 11.00 quantized" in ending.stdout
    card = (out / "checkpoint" / "README.md").read_text()
    assert "# model in 4.25 bits per weight" in card
    assert 'alphaquant.load("checkpoint")' in card
    assert "| perplexity, held-out text | 10 | 11 |" in card


def test_json_is_exactly_the_summary(cli: Cli, tmp_path: Path) -> None:
    ending = cli(*RUN, "--json", "--out", "out")
    assert ending.json == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {"run_id", "status", "model", "bits_per_weight", "stages"} <= set(ending.json)
    assert ending.json["status"] == "completed"
    assert ending.json["bits_per_weight"] == 4.25
    assert ending.json["blocks"] == {"ran": 2, "cached": 0}
    assert ending.json["scores"] == {
        "perplexity": {"original": 10.0, "quantized": 11.0},
        "kl": 0.01,
        "top1_agreement": 0.9,
        "tasks": {
            task: {"acc": {"original": 0.5, "quantized": 0.5}}
            for task in ("builtin_rolling", "builtin_cloze")
        },
    }
    assert ending.json["checkpoint"] == "out/checkpoint"
    assert ending.json["transformers_needs"] == "nothing"
    assert ending.json["report"] == "out/report.html"
    stage = next(stage for stage in ending.json["stages"] if stage["name"] == "alpha")
    assert {"name", "state", "reason", "seconds", "key", "artifact"} <= set(stage)
    assert stage["device"] == "cpu"
    assert stage["started"] <= stage["ended"]
    assert (Path(stage["artifact"]) / "alpha.parquet").is_file()


def test_what_stages_print_does_not_reach_stdout(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(out: Path, store: Any, **inputs: Any) -> None:
        print("from Python")  # noqa: T201
        os.write(1, b"from C\n")
        BODIES["alpha"](out, store, **inputs)

    use_fake_stages(monkeypatch, alpha=noisy)
    ending = cli(*RUN, "--json")
    assert ending.json["status"] == "completed"
    assert "from Python" in ending.stderr
    assert "from C" in ending.stderr


def test_a_second_run_runs_nothing(cli: Cli) -> None:
    first = cli(*RUN, "--json")
    assert first.states == dict.fromkeys(ALL, "ran") | SKIPPED
    second = cli(*RUN, "--json")
    assert second.states == dict.fromkeys(ALL, "cached") | SKIPPED
    assert second.json["blocks"] == {"ran": 0, "cached": 2}
    assert second.json["scores"] == first.json["scores"]


def test_other_tasks_run_scores_and_report_only(cli: Cli) -> None:
    cli(*RUN)
    ending = cli(*RUN, "--json", "--set", "evaluation.tasks=[boolq]")
    assert [name for name, state in ending.states.items() if state == "ran"] == [
        "answers",
        "evaluate",
        "analyze",
    ]
    reason = next(s["reason"] for s in ending.json["stages"] if s["name"] == "evaluate")
    assert reason.startswith("changed: answers")
    assert reason.endswith(', evaluation.tasks ["builtin_rolling", "builtin_cloze"] -> ["boolq"]')


def test_where_it_runs_is_in_no_key(cli: Cli) -> None:
    cli(*RUN)
    ending = cli(*RUN, "--json", "--set", "execution.batch_size=1", "--set", "execution.workers=1")
    assert "ran" not in ending.states.values()


def test_a_calibration_file_counts_by_content(cli: Cli, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one")
    command = (*RUN, "--json", "--set", f"calibration.dataset={text}")
    cli(*command)
    assert cli(*command).states["calibration"] == "cached"
    text.write_text("two")
    assert cli(*command).states["calibration"] == "ran"


def test_a_forced_stage_runs_alone(cli: Cli) -> None:
    cli(*RUN)
    ending = cli(*RUN, "--json", "--force", "quantize")
    assert [name for name, state in ending.states.items() if state == "ran"] == ["quantize"]
    assert ending.json["blocks"] == {"ran": 2, "cached": 0}


def test_an_older_folder_of_ours_is_replaced_whole(cli: Cli, tmp_path: Path) -> None:
    cli(*RUN, "--out", "out")
    (tmp_path / "out" / "left-over").write_text("")
    assert cli(*RUN, "--out", "out").status == 0
    assert not (tmp_path / "out" / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_edited_checkpoint_does_not_poison_the_store(cli: Cli, tmp_path: Path) -> None:
    cli(*RUN, "--out", "out")
    weights = tmp_path / "out" / "checkpoint" / "model.safetensors"
    good = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(b"x" * len(good))
    ending = cli(*RUN, "--json", "--out", "out")
    assert [name for name, state in ending.states.items() if state == "ran"] == ["export"]
    assert weights.read_bytes() == good


def test_an_interrupted_run_says_that_it_resumes_and_does(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(out: Path, store: Any, **inputs: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    use_fake_stages(monkeypatch, allocate=interrupted)
    # a shell that starts the tests in the background has them ignore the signal
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ending = cli(*RUN)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert ending.status == 130
    assert "the same command resumes" in ending.stderr
    assert not (tmp_path / "runs").exists()
    manifests = list((tmp_path / "artifacts" / "runs").iterdir())
    assert json.loads(manifests[0].read_text())["status"] == "interrupted"
    use_fake_stages(monkeypatch)
    states = cli(*RUN, "--json").states
    before = ("calibration", "alpha", "sensitivity")
    assert {name: states[name] for name in (*before, "allocate")} == dict.fromkeys(
        before, "cached"
    ) | {"allocate": "ran"}


def test_a_mistake_found_by_a_stage_is_the_users_error(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(out: Path, store: Any, **inputs: Any) -> None:
        (out / "half").write_text("")
        raise ModelError("weight model.layers.0.up holds NaN; train it again")

    use_fake_stages(monkeypatch, alpha=refuse)
    ending = cli(*RUN, "--out", "out")
    assert ending.status == 2
    assert "weight model.layers.0.up holds NaN; train it again" in ending.stderr
    assert "Traceback" not in ending.stderr
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "artifacts").rglob("half"))


def test_a_bug_is_exit_status_1_with_its_traceback_in_a_file(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(out: Path, store: Any, **inputs: Any) -> None:
        raise ZeroDivisionError("a bug")

    use_fake_stages(monkeypatch, alpha=bug)
    ending = cli(*RUN)
    assert ending.status == 1
    assert "ZeroDivisionError: a bug" in ending.stderr
    assert "Traceback" not in ending.stderr
    log = ending.stderr.split("The traceback is in ")[1].strip().removesuffix(".")
    assert "Traceback" in Path(log).read_text()
    assert "Traceback" in cli(*RUN, "--debug").stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--force", "quantise"],
            ["nearest: quantize", "calibration, generate, balance, baseline, answers, rotate"],
        ),
        (["--set", "quantization.foo=1"], ["unknown config key 'quantization.foo'", "damping"]),
        (["--set", "allocation.formats=[int5]"], ["unknown number format 'int5'", "mxfp4"]),
        (
            ["--set", "allocation.mxfp4_ratio=1.5"],
            ["allocation.mxfp4_ratio", "less than or equal to 1"],
        ),
        (["--set", "allocation.target_bits=1"], ["cannot be met", "Raise target_bits"]),
        (
            ["--set", "allocation.overrides=[{pattern: '*q_prj', wq: int8}]"],
            ["'*q_prj' matches no linear", "nearest names"],
        ),
        (["--set", "calibration.dataset=missing.txt"], ["missing.txt does not exist"]),
        (["--set", "evaluation.tasks=[missing.yaml]"], ["missing.yaml does not exist"]),
        (["--set", "nonsense"], ["section.key=value"]),
        (
            ["--set", "calibration.samples=1", "--set", "quantization.tune=block"],
            ["quantization.tune=block judges by", "calibration.samples is 1", "at least 2"],
        ),
        (["--set", "execution.device=cuda:99"], ["cuda:99", "auto"]),
        (
            ["--set", "execution.memory_limit=100MB"],
            ["memory_limit is 100 MB", "for what is there already", "Raise the limit"],
        ),
        (["--model", "nowhere"], ["'nowhere' does not exist"]),
        (["missing.yaml"], ["missing.yaml"]),
        (["--out", "model"], ["was not made by alphaquant"]),
        (["--out", "model/config.json/x"], ["is a file", "--out"]),
        (["--store", "model/config.json"], ["is a file", "--store"]),
    ],
)
def test_wrong_input_is_exit_status_2_one_message_and_nothing_written(
    cli: Cli, tmp_path: Path, arguments: list[str], said: list[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    ending = cli(*RUN, *arguments)
    assert ending.status == 2
    assert ending.stdout == ""
    assert len(ending.stderr.splitlines()) == 1
    for words in said:
        assert words in ending.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_cannot_write_within_the_limit_is_refused_before_work_begins(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Room, "_too_little", lambda self, *_: ("cpu", 5))
    limited = ("--set", "execution.memory_limit=9GB", "--set", "evaluation.tasks=[]")
    assert cli(*RUN, *limited).status == 0
    ending = cli(*RUN, *limited, "--set", "calibration.generated=0.5")
    assert ending.status == 2
    assert "calibration.generated needs the whole model" in ending.stderr
    assert "Set calibration.generated=0" in ending.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("calibration.balance=2", "calibration.balance needs"),
        ("router.method=block", "router.method=block needs"),
        ("quantization.tune=model", "quantization.tune=model needs"),
    ],
)
def test_a_stage_that_cannot_keep_to_the_limit_is_named_before_work_begins(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str, said: str
) -> None:
    """Quantizing itself may take what it asks for; nothing is left for what is asked for besides."""
    make_model(tmp_path / "mixture", "olmoe")
    monkeypatch.setattr("alphaquant.evaluation.room.free_within", lambda *_: 5)
    monkeypatch.setattr("alphaquant.algorithms.tuning_memory.free_within", lambda *_: 5)
    limited = ("--set", "execution.memory_limit=9GB", "--set", "evaluation.tasks=[]")
    limited += ("--set", "evaluation.perplexity=false", "--set", "allocation.policy=uniform")
    ending = cli(*RUN, *limited, "--model", "mixture", "--set", setting)
    assert ending.status == 2
    assert said in ending.stderr
    assert not (tmp_path / "artifacts").exists()
    if "tune" not in setting:  # the stage has nothing to do on a dense model
        assert cli(*RUN, *limited, "--set", setting).status == 0


def test_a_folder_without_write_permission_is_the_users_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **settings: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    ending = cli(*RUN)
    assert ending.status == 2
    assert "Permission denied: no permission" in ending.stderr


def test_an_unknown_option_is_exit_status_2(cli: Cli) -> None:
    with pytest.raises(SystemExit) as ending:
        cli("run", "--bogus")
    assert ending.value.code == 2


def test_plan_agrees_with_the_run_that_follows(cli: Cli) -> None:
    before = cli("plan", "--model", "model", "--json")
    assert before.states == dict.fromkeys(ALL, "run") | SKIPPED
    cli(*RUN)
    after = cli("plan", "--model", "model", "--json")
    assert after.states == dict.fromkeys(ALL, "cached") | SKIPPED
    table = cli("plan", "--model", "model", "--set", "allocation.target_bits=5").stdout
    assert "allocation.target_bits 4.25 -> 5.0" in " ".join(table.replace("│", " ").split())


def test_plan_writes_nothing(cli: Cli, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert cli("plan", "--model", "model").status == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_why_tells_a_stages_history_and_a_runs_stages(cli: Cli) -> None:
    cli(*RUN)
    run_id = cli(*RUN, "--json", "--set", "allocation.target_bits=5").json["run_id"]
    stage = cli("why", "allocate").stdout
    assert "first run" in stage
    assert "allocation.target_bits 4.25 -> 5.0" in " ".join(stage.replace("│", " ").split())
    assert run_id in stage
    assert run_id in cli("why", "last").stdout
    assert run_id in cli("why", run_id[:-1]).stdout


def test_why_of_an_unknown_name_lists_stages_and_runs(cli: Cli) -> None:
    ending = cli("why", "quantise")
    assert ending.status == 2
    assert "quantize" in ending.stderr


def test_quantize_names_its_folder_after_the_model_and_the_scheme(cli: Cli, tmp_path: Path) -> None:
    ending = cli("quantize", "--src", "model", "--method", "rtn", "--bits", "8", "--json")
    out = tmp_path / "model_RTN_w8_g128_headbf16"
    assert ending.json["checkpoint"] == out.name
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "alphaquant.json",
        "config.json",
        "model.safetensors",
        "plan.png",
    }
    assert list(ending.states) == ["calibration", "allocate", "quantize", "export"]
    assert ending.states["calibration"] == "skipped"


def test_quantize_says_in_the_name_how_the_head_is_stored(cli: Cli) -> None:
    options = ("--method", "rtn", "--bits", "8", "--set", "allocation.lm_head=int8", "--json")
    ending = cli("quantize", "--src", "model", *options)
    assert ending.json["checkpoint"] == "model_RTN_w8_g128_headint8"


def test_quantize_names_its_folder_after_what_single_keys_change(cli: Cli) -> None:
    keys = ("quantization.method=rtn", "quantization.group_size=32", "allocation.default.wq=int3")
    changes = [text for key in keys for text in ("--set", key)]
    ending = cli("quantize", "--src", "model", "--bits", "8", *changes, "--json")
    assert ending.json["checkpoint"] == "model_RTN_w3_g32_headbf16"


def test_quantize_names_its_folder_after_the_folder_that_a_dot_means(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "model")
    options = ("--store", str(tmp_path / "store"), "--json")
    ending = cli("quantize", "--src", ".", "--bits", "8", *options)
    assert ending.json["checkpoint"] == "model_GPTQ_w8_g128_headbf16"


def test_only_methods_that_look_at_inputs_need_the_calibration_file(cli: Cli) -> None:
    options = ("--src", "model", "--calib", "missing.txt", "--json")
    assert cli("quantize", "--method", "gptq", *options).status == 2
    assert cli("quantize", "--method", "rtn", *options).status == 0


def test_quantize_goes_into_the_named_folder_with_the_named_options(
    cli: Cli, tmp_path: Path
) -> None:
    options = "--method gptq --bits 3 --group-size 64 --no-symmetric --desc-act --static-groups"
    ending = cli("quantize", "--src", "model", "--dst", "small", *options.split())
    assert ending.status == 0
    assert (tmp_path / "small" / "config.json").is_file()
    record = next((tmp_path / "artifacts" / "keys" / "allocate").iterdir())
    inputs = json.loads(record.read_text())["ingredients"]["inputs"]
    assert inputs["allocation"]["policy"] == "uniform"
    assert inputs["allocation"]["default"]["wq"] == "int3"
    chosen = {"method": "gptq", "group_size": 64, "symmetric": False}
    chosen |= {"act_order": True, "static_groups": True}
    assert inputs["quantization"] | chosen == inputs["quantization"]


def test_several_models_go_into_one_folder_under_names_that_say_how_they_were_made(
    cli: Cli, tmp_path: Path
) -> None:
    make_model_folder(tmp_path / "other")
    options = ("--model", "model", "--model", "other", "--method", "awq", "--out", "made")
    ending = cli("quantize", *options, "--json")
    assert ending.status == 0
    names = ["model_AWQ_w4_g128_headbf16", "other_AWQ_w4_g128_headbf16"]
    assert [found["checkpoint"] for found in ending.json["models"]] == [f"made/{n}" for n in names]
    assert ending.json["status"] == "completed"
    assert all((tmp_path / "made" / name / "config.json").is_file() for name in names)
    again = cli("quantize", *options, "--json").json["models"]
    stages = [stage for found in again for stage in found["stages"]]
    ran = [stage for stage in stages if stage["name"] not in ("generate", "balance")]
    assert {stage["state"] for stage in ran} == {"cached"}


def test_a_model_that_fails_does_not_keep_the_others_from_being_quantized(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken", "last"):
        folder = make_model_folder(tmp_path / name)
        (folder / "config.json").write_text(
            (folder / "config.json").read_text().replace('"llama"', f'"llama", "is": "{name}"')
        )

    def export(out: Path, store: Any, *, model: ModelRef, **inputs: Any) -> None:
        if Path(model.path).name == "broken":
            raise ModelError("model.layers.0.mlp.up_proj of broken holds NaN")
        BODIES["export"](out, store, **inputs)

    use_fake_stages(monkeypatch, export=export)
    sources = ("--src", "model", "--src", "broken", "--src", "last")
    ending = cli("quantize", *sources, "--dst", "made", "--json")
    assert ending.status == 1
    assert [found["status"] for found in ending.json["models"]] == [
        "completed", "failed", "completed"
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        f"{name}_GPTQ_w4_g128_headbf16" for name in ("model", "last")
    }
    assert "1 of 3 models failed" in ending.stderr
    assert "broken holds NaN" in ending.stderr


def test_a_wrong_second_model_ends_it_before_the_first_is_quantized(
    cli: Cli, tmp_path: Path
) -> None:
    ending = cli("quantize", "--src", "model", "--src", "missing", "--dst", "made")
    assert ending.status == 2
    assert "missing" in ending.stderr
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "artifacts" / "keys").exists()


def test_models_of_one_name_are_refused_before_anything_is_written(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    make_model_folder(tmp_path / "elsewhere" / "model")
    ending = cli("quantize", "--src", "model", "--src", "elsewhere/model")
    assert ending.status == 2
    assert "model_GPTQ_w4_g128_headbf16" in ending.stderr
    assert not (tmp_path / "artifacts").exists()


def test_nf4_has_bits_and_groups_of_its_own(cli: Cli) -> None:
    ending = cli("quantize", "--src", "model", "--method", "nf4", "--json")
    assert ending.json["checkpoint"] == "model_NF4_w4_g64_headbf16"
    assert ending.states["calibration"] == "skipped"
    refused = cli("quantize", "--src", "model", "--method", "nf4", "--bits", "3")
    assert refused.status == 2
    assert "--bits 3" in refused.stderr


def test_quantize_refuses_bits_that_no_integer_format_has(cli: Cli) -> None:
    ending = cli("quantize", "--src", "model", "--bits", "5")
    assert ending.status == 2
    assert "int5" in ending.stderr


def test_a_packed_checkpoint_can_be_evaluated_but_is_no_original(cli: Cli, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "packed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"x": 1}}))
    assert cli("evaluate", "packed", "--original", "model").status == 0
    ending = cli("evaluate", "model", "--original", "packed")
    assert (ending.status, "already quantized" in ending.stderr) == (2, True)


def test_evaluate_scores_any_checkpoint(cli: Cli, tmp_path: Path) -> None:
    ending = cli("evaluate", "model", "--original", "model", "--json", "--out", "scores")
    assert ending.json["scores"]["kl"] == 0.01
    table = pd.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert set(table["model"]) == {"original", "quantized"}
    again = cli("evaluate", "model", "--original", "model", "--json")
    assert again.json["state"] == "cached"
    assert "kl_mean" in cli("evaluate", "model", "--original", "model").stdout


def test_evaluate_scores_several_checkpoints_against_an_original_evaluated_once(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counted(name: str) -> Any:
        def body(out: Path, store: Any, **inputs: Any) -> None:
            calls.append(name)
            BODIES[name](out, store, **inputs)

        return body

    counters = {name: counted(name) for name in ("baseline", "answers", "evaluate")}
    use_fake_stages(monkeypatch, **counters)
    other = make_model_folder(tmp_path / "other")
    (other / "generation_config.json").write_text("{}")
    ending = cli("evaluate", "model", "other", "--original", "model", "--json", "--out", "scores")
    assert calls == ["baseline", "answers", "evaluate", "evaluate"]
    found = ending.json["checkpoints"]
    assert [entry["checkpoint"] for entry in found] == ["model", "other"]
    assert {entry["scores"]["kl"] for entry in found} == {0.01}
    table = pd.read_parquet(tmp_path / "scores" / "scores.parquet")
    assert table.groupby("checkpoint").size().to_dict() == {"model": 8, "other": 8}
    shown = cli("evaluate", "model", "other", "--original", "model").stdout
    assert shown.count("kl_mean") == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps_with_an_example(cli: Cli, verb: str, capfd: Any) -> None:
    with pytest.raises(SystemExit) as ending:
        cli(verb, "--help")
    assert ending.value.code == 0
    assert f"alphaquant {verb} " in capfd.readouterr().out.split("example:")[1]
