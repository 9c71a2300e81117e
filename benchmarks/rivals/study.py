"""One model with its tokens, its scorer and its cells."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from benchmarks.rivals.catalogue import Contestant
from benchmarks.rivals.cells import Cell, said, weights_file
from benchmarks.rivals.formats import FORMATS, Format, quantized_linears
from benchmarks.rivals.inputs import (
    SEED,
    Model,
    calibration_file,
    heldout_windows,
    text_name,
)
from benchmarks.rivals.scoring import Scorer, Scores, WrongWeightsError, score_key
from benchmarks.rivals.table import Result


class Study:
    """Computes and scores a model's cells, and keeps both in the cache folder."""

    def __init__(
        self, model: Model, options: argparse.Namespace, pythons: Mapping[str, str] | None = None
    ) -> None:
        """`options` are those of `add_inputs`; `pythons` by rival are used instead of environments made here."""
        self.model, self._options, self._pythons = model, options, pythons
        self._cache: Path = options.cache
        self._tokens: dict[int, Path] = {}
        self._windows = {
            text_name(text): heldout_windows(model, text, options.windows)
            for text in model.evaluation
        }

    @cached_property
    def _scorer(self) -> Scorer:
        """Made when a cell has no scores yet: it runs the original over all windows."""
        return Scorer(self.model.path, self._windows, device=self._options.device)

    @property
    def texts(self) -> list[str]:
        """Names of the held-out texts; the first one ranks."""
        return list(self._windows)

    def originals(self) -> dict[str, float]:
        """The original's perplexity by text; kept."""
        name = f"{self.model.digest[:12]}-{score_key(self._windows)}.json"
        file = self._cache / "originals" / name
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self._scorer.perplexities()), encoding="utf-8")
        kept: dict[str, float] = json.loads(file.read_text(encoding="utf-8"))
        return kept

    def words(self) -> str:
        """What the model is."""
        checkpoint = self.model.checkpoint
        linears = quantized_linears(checkpoint.specs)
        return (
            f"{checkpoint.architecture.model_type}, {checkpoint.parameters / 1e6:.1f} M parameters, "
            f"{checkpoint.blocks} blocks, {len(linears)} linears quantized (routers, embeddings and lm_head are "
            f"not). Calibrated on {text_name(self.model.calibration)}, in windows of {self.model.length} tokens."
        )

    def described(self) -> str:
        """What the model is, and the original's perplexity on every text."""
        told = ", ".join(f"{value:.2f} on {text}" for text, value in self.originals().items())
        return f"{self.words()} Perplexity of the original: {told}."

    def fitting(self, name: str) -> Format:
        """The format of that name with the largest group that the model can have."""
        return FORMATS[name].fitting(quantized_linears(self.model.checkpoint.specs))

    def result(
        self, format_: Format, contestant: Contestant, *, compute: bool, seed: int = SEED
    ) -> Result | None:
        """A cell with its scores, on the calibration windows of a seed; None when it is neither kept nor wanted."""
        cell = Cell(
            self.model,
            contestant,
            format_,
            self._drawn(seed),
            self._options.threads,
            self._options.device,
            seed,
        )
        outcome = cell.kept(self._cache)
        again = outcome is not None and outcome["state"] != "done" and self._options.retry
        if compute and (outcome is None or again) and not cell.busy(self._cache):
            draw = f", seed {seed}" if seed != SEED else ""
            print(
                f"{self.model.name}, {format_.label}, {contestant.key}{draw}: ", end="", flush=True
            )
            outcome = cell.compute(self._cache, self._options.limit * 60, self._pythons)
            print(said(outcome), flush=True)
        if outcome is None:
            return None
        if outcome["state"] != "done":
            return Result(self.model.name, contestant, format_, outcome)
        try:
            scores = self._scores(cell)
        except WrongWeightsError as error:
            wrong = outcome | {"state": "failed", "why": str(error)}
            return Result(self.model.name, contestant, format_, wrong)
        return Result(self.model.name, contestant, format_, outcome, scores.rows, scores.kl)

    def _drawn(self, seed: int) -> Path:
        """The calibration windows of a seed."""
        if seed not in self._tokens:
            folder = self._cache / "tokens"
            self._tokens[seed] = calibration_file(self.model, self._options.samples, folder, seed)
        return self._tokens[seed]

    def _scores(self, cell: Cell) -> Scores:
        folder = cell.folder(self._cache)
        file = folder / f"scored-{score_key(self._windows)}.json"
        if file.is_file():
            return Scores(**json.loads(file.read_text(encoding="utf-8")))
        scores = self._scorer.score(
            weights_file(folder),
            None if cell.contestant.mixed else cell.format,
            folder / "saved" if cell.contestant.rotated else None,
        )
        file.write_text(scores.as_json() + "\n", encoding="utf-8")
        return scores
