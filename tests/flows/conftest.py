"""A command line in a folder of its own, on a model folder, with fake stages."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alphaquant.config import RunConfig
from alphaquant.config.file import load_config
from flows.cli import main
from tests.flows.fakes import make_model_folder, use_fake_stages


@dataclass
class Ending:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.stdout)

    @property
    def states(self) -> dict[str, str]:
        """State by stage."""
        return {stage["name"]: stage["state"] for stage in self.json["stages"]}


Cli = Callable[..., Ending]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run of a tiny model folder, `model/`."""
    folder = make_model_folder(tmp_path / "model")
    return load_config(None, [f"model.path={folder}", "quantization.group_size=16"])


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("alphaquant")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers, level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)
    logging.captureWarnings(False)


@pytest.fixture
def cli(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    _logging_as_it_was: None,
) -> Cli:
    """`cli("run", "--json")`: the command in `tmp_path`, where `model/` is a model."""
    monkeypatch.chdir(tmp_path)
    make_model_folder(tmp_path / "model")
    use_fake_stages(monkeypatch)

    def call(*arguments: str) -> Ending:
        capfd.readouterr()
        status = main(arguments)
        out, err = capfd.readouterr()
        return Ending(status, out, err)

    return call
