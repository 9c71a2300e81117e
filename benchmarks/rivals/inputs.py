"""What everybody is given: a model, calibration windows made once, held-out windows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from alphaquant.errors import ConfigError
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.text.sources import load_documents
from alphaquant.text.windows import calibration_tokens, evaluation_windows

_NAME = "tokens"
SEED = 0
"""Of the choice of calibration windows where there is one draw; AlphaQuant's own commands are given it too."""


@dataclass(frozen=True)
class Model:
    """A checkpoint that takes part."""

    name: str
    path: Path
    length: int
    """Tokens per window, in calibration and in evaluation."""
    calibration: str = "builtin"
    """Text that everybody calibrates on."""
    evaluation: tuple[str, ...] = ("builtin",)
    """Held-out texts; the first one ranks."""

    @classmethod
    def parse(cls, text: str, length: int) -> Model:
        """`NAME=FOLDER` or `NAME=FOLDER@LENGTH`, on builtin text. Raises ConfigError for anything else."""
        name, equals, rest = text.partition("=")
        folder, _, own_length = rest.rpartition("@") if "@" in rest else (rest, "", "")
        if not equals or not name or (own_length and not own_length.isdecimal()):
            raise ConfigError(f"--model {text!r} is not NAME=FOLDER or NAME=FOLDER@LENGTH")
        path = Path(folder).expanduser()
        if not (path / "config.json").is_file():
            raise ConfigError(f"--model {name}: there is no config.json in {path}")
        return cls(name, path.resolve(), int(own_length or length))

    def reading(self, texts: str) -> Model:
        """The same on other texts: `CALIBRATION,HELDOUT[,HELDOUT...]`. Raises ConfigError below two."""
        calibration, *heldout = texts.split(",")
        if not heldout or not all([calibration, *heldout]):
            raise ConfigError(
                f"texts {texts!r} are not CALIBRATION,HELDOUT[,HELDOUT...]; such as train.txt,test.txt,builtin"
            )
        first, *others = (
            str(Path(text).resolve()) if Path(text).is_file() else text
            for text in (calibration, *heldout)
        )
        return replace(self, calibration=first, evaluation=tuple(others))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its headers, config and tokenizer."""
        return Checkpoint(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its weights, config and tokenizer."""
        return files_digest(
            path
            for path in sorted(self.path.iterdir())
            if path.suffix in (".safetensors", ".json") and path.name != "training.json"
        )


def files_digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the bytes of files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def calibration_file(model: Model, samples: int, folder: Path, seed: int = SEED) -> Path:
    """The model's calibration windows, int64 `[samples, length]`, as a file for drivers."""
    tokens = calibration_tokens(
        model.checkpoint.tokenizer,
        load_documents(model.calibration, "calibration"),
        samples,
        model.length,
        seed,
    )
    path = folder / f"{model.name}-{digest_of(tokens)[:12]}.safetensors"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        save_file({_NAME: tokens}, path)
    return path


def load_tokens(path: Path) -> Tensor:
    """The windows of a file written by `calibration_file`."""
    return load_file(path)[_NAME]


def heldout_windows(model: Model, text: str, limit: int | None) -> Tensor:
    """The first `limit` windows of a text, int64 `[windows, length]`."""
    documents = load_documents(text, "evaluation")
    return evaluation_windows(model.checkpoint.tokenizer, documents, model.length, limit)


def digest_of(tokens: Tensor) -> str:
    """SHA-256 of token ids."""
    return hashlib.sha256(repr(tokens.tolist()).encode()).hexdigest()


def text_name(text: str) -> str:
    """A text as pages call it: a file by its name alone."""
    return Path(text).stem if Path(text).suffix else text
