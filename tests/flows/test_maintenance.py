"""`alphaquant fsck` and `gc` on fake stages, and a run on a disk that is full."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.flows.conftest import Cli, Ending
from tests.flows.fakes import use_fake_stages
from tests.small_disk import fill, small_disk

RUN = ("run", "--model", "model", "--no-prefect")
LONG_AGO = time.time() - 400 * 86400


def _harm(tmp_path: Path) -> Path:
    (victim,) = (tmp_path / "artifacts" / "objects" / "export").glob("*/*/model.safetensors")
    victim.chmod(0o644)
    victim.write_bytes(b"x" * victim.stat().st_size)
    return victim


def _words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


def test_a_sound_store_is_exit_status_0(cli: Cli) -> None:
    cli(*RUN)
    ending = cli("fsck")
    assert ending.status == 0
    assert "Everything is sound." in ending.stdout
    assert cli("fsck", "--json").json["sound"] is True


def test_damage_is_exit_status_1_in_one_message_and_the_next_run_mends_it(
    cli: Cli, tmp_path: Path
) -> None:
    run_id = cli(*RUN, "--json", "--out", "out").json["run_id"]
    victim = _harm(tmp_path)
    told = cli("fsck", "--dry-run")
    assert told.status == 1
    assert "without --dry-run" in told.stderr
    assert victim.exists()
    ending = cli("fsck")
    assert ending.status == 1
    assert len(ending.stderr.splitlines()) == 1
    assert "1 thing is damaged" in ending.stderr
    for words in ("the content of model.safetensors was changed", "asked for: export", run_id):
        assert words in ending.stdout
    assert not victim.exists()
    assert cli("fsck").status == 0
    states = cli(*RUN, "--json", "--out", "out").states
    assert [name for name, state in states.items() if state == "ran"] == ["export"]


def test_damage_as_json(cli: Cli, tmp_path: Path) -> None:
    cli(*RUN)
    _harm(tmp_path)
    ending = cli("fsck", "--json")
    assert (ending.status, ending.json["sound"]) == (1, False)
    (finding,) = ending.json["findings"]
    assert finding["reruns"] == ["export"]
    assert Path(finding["moved_to"]).is_dir()


def _age(tmp_path: Path) -> None:
    for folder in (tmp_path / "artifacts" / "objects").glob("*/*/*"):
        os.utime(folder, (LONG_AGO, LONG_AGO))
    for path in (tmp_path / "artifacts" / "runs").iterdir():
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"started": "2020-01-01T00:00:00+00:00"}))


def test_gc_tells_first_and_then_removes_what_no_kept_run_needs(cli: Cli, tmp_path: Path) -> None:
    old = cli(*RUN, "--json", "--out", "old").json["run_id"]
    new = cli(*RUN, "--json", "--out", "new", "--set", "allocation.target_bits=5").json["run_id"]
    _age(tmp_path)
    told = cli("gc", "--keep-runs", "1", "--json").json
    assert (told["runs_kept"], told["runs_removed"], told["deleted"]) == ([new], [old], False)
    assert "Nothing was removed: --delete does it." in cli("gc", "--keep-runs", "1").stdout
    ending = cli("gc", "--keep-runs", "1", "--delete")
    assert ending.status == 0
    assert f"Artifacts removed: {told['removed']}" in ending.stdout
    assert "also run manifests: 1" in ending.stdout
    assert "There is nothing to remove" in cli("gc", "--keep-runs", "1").stdout
    states = cli(*RUN, "--json", "--set", "allocation.target_bits=5").states
    assert "ran" not in states.values()
    weights = tmp_path / "old" / "checkpoint" / "model.safetensors"
    assert weights.stat().st_nlink == 1
    assert len(weights.read_bytes()) > 0
    assert cli("fsck").status == 0


def test_gc_keeps_runs_by_tag(cli: Cli, tmp_path: Path) -> None:
    tagged = cli(*RUN, "--json", "--tag", "paper").json["run_id"]
    cli(*RUN, "--json", "--set", "allocation.target_bits=5")
    _age(tmp_path)
    assert cli("gc", "--keep-tag", "paper", "--json").json["runs_kept"] == [tagged]


def test_both_verbs_on_a_store_that_is_a_url(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPHAQUANT_CACHE", str(tmp_path / "cache"))
    store = ("--store", f"file://{tmp_path}/shared")
    assert cli(*RUN, *store).status == 0
    for path in (tmp_path / "shared").rglob("*"):
        if path.is_file() and "runs" not in path.parts:
            os.utime(path, (LONG_AGO, LONG_AGO))
    for path in (tmp_path / "shared" / "runs").iterdir():
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"started": "2020-01-01T00:00:00+00:00"}))
    assert "There is nothing to remove" in cli("gc", *store).stdout
    told = cli("gc", *store, "--keep-runs", "0")
    assert re.search(r"Artifacts that would go: [1-9]", told.stdout)
    assert "This machine's cache of it" in told.stdout
    assert "hard links" not in told.stdout
    (victim,) = (tmp_path / "shared" / "objects" / "export").glob("*/*/model.safetensors")
    victim.write_bytes(b"x" * victim.stat().st_size)
    ending = cli("fsck", *store)
    assert ending.status == 1
    assert "mended: this machine had a sound copy" in ending.stdout
    assert cli("fsck", *store).status == 0
    assert cli("gc", *store, "--keep-runs", "0", "--delete", "--json").json["removed"] > 0


def test_without_a_rule_all_runs_stay_and_what_a_run_just_used_too(
    cli: Cli, tmp_path: Path
) -> None:
    cli(*RUN)
    _age(tmp_path)
    assert cli("gc", "--json").json["removed"] == 0
    assert cli("gc", "--keep-runs", "0", "--json").json["removed"] > 0
    cli(*RUN)
    assert cli("gc", "--keep-runs", "0", "--json").json["removed"] == 0


def test_what_gc_removed_is_planned_to_run_again(cli: Cli, tmp_path: Path) -> None:
    cli(*RUN)
    _age(tmp_path)
    assert cli("gc", "--keep-runs", "0", "--delete", "--json").json["removed"] > 0
    states = cli("plan", "--model", "model", "--json").states
    assert set(states.values()) == {"run", "skipped"}
    assert "artifact missing" in _words(cli("plan", "--model", "model").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fsck", "--store", "nowhere"], "no artifact store at"),
        (["gc", "--store", "nowhere"], "no artifact store at"),
        (["gc", "--store", "file:///nowhere/at/all"], "no artifact store at file:///nowhere"),
        (["fsck", "--store", "file:///nowhere/at/all"], "no artifact store at file:///nowhere"),
        (["gc", "--store", "file:///nowhere/at/all", "--grace", "0"], "Give --grace 2 or more"),
    ],
)
def test_a_store_that_cannot_be_looked_at_is_exit_status_2(
    cli: Cli, arguments: list[str], said: str
) -> None:
    ending = cli(*arguments)
    assert ending.status == 2
    assert said in ending.stderr
    assert len(ending.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [["--keep-runs", "-1"], ["--keep-days", "x"], ["--grace", "-2"], ["--grace", "nan"]],
)
def test_amounts_that_make_no_sense_are_exit_status_2(
    cli: Cli, arguments: list[str], capfd: Any
) -> None:
    with pytest.raises(SystemExit) as ending:
        cli("gc", *arguments)
    assert ending.value.code == 2
    assert re.search("from 0 to|whole number", capfd.readouterr().err)


@pytest.mark.parametrize("verb", ["fsck", "gc"])
def test_both_verbs_help_with_an_example(cli: Cli, verb: str, capfd: Any) -> None:
    with pytest.raises(SystemExit) as ending:
        cli(verb, "--help")
    assert ending.value.code == 0
    assert f"alphaquant {verb} " in capfd.readouterr().out.split("example:")[1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB for the store."""
    with small_disk(tmp_path / "disk", 1024) as folder:
        yield folder


def _stopped_by_the_disk(ending: Ending, disk: Path) -> None:
    assert ending.status == 1
    (message,) = [line for line in ending.stderr.splitlines() if line.startswith("alphaquant: ")]
    assert f"the disk of {disk} is full" in message
    assert "Free some space" in message
    assert "Traceback" not in ending.stderr
    assert ending.stdout == ""


def test_a_run_on_a_full_disk_stops_with_one_message_and_resumes(
    cli: Cli, disk: Path, tmp_path: Path
) -> None:
    ballast = fill(disk)
    store = ("--store", str(disk))
    _stopped_by_the_disk(cli(*RUN, *store), disk)
    ballast.unlink()
    assert set(cli(*RUN, *store, "--json").states.values()) == {"ran", "skipped"}
    assert cli("fsck", *store).status == 0
    assert (tmp_path / "runs" / "model-4.25" / "report.html").is_file()


def test_a_full_disk_for_the_products_stops_with_one_message_and_resumes(
    cli: Cli, disk: Path
) -> None:
    out = disk / "products"
    out.mkdir()
    ballast = fill(disk)
    ending = cli(*RUN, "--out", str(out / "new"))
    assert ending.status == 1
    assert f"the disk of {out / 'new'} is full" in ending.stderr
    assert "Traceback" not in ending.stderr
    assert list(out.iterdir()) == []
    ballast.unlink()
    states = cli(*RUN, "--out", str(out / "new"), "--json").states
    assert set(states.values()) <= {"cached", "skipped"}


def test_a_disk_that_fills_up_in_the_middle_keeps_what_is_finished(
    cli: Cli, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(out: Path, store: Any, **inputs: Any) -> None:
        save_file({"w": np.ones(150_000, np.float32)}, out / "model.safetensors")
        (out / "config.json").write_text("{}")

    use_fake_stages(monkeypatch, export=export)
    store = ("--store", str(disk))
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(500 * 1024))
    _stopped_by_the_disk(cli(*RUN, *store), disk)
    assert cli("fsck", *store).status == 0
    ballast.unlink()
    states = cli(*RUN, *store, "--json").states
    ran = [name for name, state in states.items() if state == "ran"]
    assert ran == ["export", "evaluate", "analyze"]
