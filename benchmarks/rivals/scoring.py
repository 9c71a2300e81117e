"""One scorer for everybody: the original with a contestant's values put in, against the original."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from alphaquant.evaluation.fidelity import TokenComparison, compare_tokens, fidelity_scores
from alphaquant.evaluation.predictions import Predictions, WholeModel
from alphaquant.evaluation.scores import QUANTIZED
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.device import suit_threads
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.loading import load_model
from benchmarks.rivals.formats import Format, quantized_linears
from benchmarks.rivals.inputs import digest_of

METRICS = ("perplexity", "perplexity_ratio", "kl_mean", "top1_agreement", "flips")
_CPU = torch.device("cpu")


class WrongWeightsError(ValueError):
    """A contestant's values are not what the cell says they are."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How far a checkpoint is from its original."""

    rows: list[dict[str, Any]]
    """Text, metric, value, low, high."""
    kl: dict[str, list[float]]
    """Mean divergence of every window, by text, for comparisons in pairs."""

    def as_json(self) -> str:
        """For a file."""
        return json.dumps(asdict(self), indent=1)


class Scorer:
    """A model's original and a copy to put values into; everything runs in fp32."""

    def __init__(
        self, folder: Path, windows: dict[str, Tensor], batch_size: int = 8, device: str = "cpu"
    ) -> None:
        """`windows` are int64 `[windows, length]` by the name of their text."""
        self._device = device
        self._original: Any = load_model(folder, _CPU).to(device)
        self._checkpoint = Checkpoint(folder)
        suit_threads(self._checkpoint.parameters)
        self._copy: Any = copy.deepcopy(self._original)
        self._live = LiveCheckpoint(self._copy)
        self._windows, self._batch_size = windows, batch_size
        self._remembered = {}
        for text, rows in windows.items():
            told = self._predictions(self._original, rows)
            self._remembered[text] = Predictions([*told.hidden], told.head)

    def score(self, file: Path, format_: Format | None, rotated: Path | None = None) -> Scores:
        """What the values in a safetensors file score.

        With a `format_`, raises WrongWeightsError unless every linear of the decoder holds that many
        levels per group at most, and nothing outside the decoder has changed. A `rotated` checkpoint's
        values are in another basis and cannot be put into the original: it is loaded whole.
        """
        with safe_open(file, framework="pt") as values:
            names = set(values.keys())
            if format_ is not None:
                self._check_levels(names, values, format_)
            if rotated is not None:
                return self._compared(load_model(rotated, _CPU).to(self._device))
            if format_ is not None:
                self._check_rest(names, values)
            self._put_in(names, values)
        return self._compared(self._copy)

    def _put_in(self, names: set[str], values: Any) -> None:
        """Give the copy the values of `names`, and the original's elsewhere."""
        with torch.no_grad():
            for name in self._checkpoint.entries:
                source = values if name in names else None
                kept = self._checkpoint.tensor(name) if source is None else source.get_tensor(name)
                self._live.tensor(name).copy_(kept)

    def _compared(self, model: Any) -> Scores:
        found = Scores([], {})
        for text in self._windows:
            tokens = self._both(text, self._predictions(model, self._windows[text]))
            found.kl[text] = tokens.kl.double().mean(dim=1).tolist()
            found.rows.extend(
                {"text": text, "metric": s.metric, "value": s.value, "low": s.low, "high": s.high}
                for s in fidelity_scores(tokens)
                if s.metric in METRICS and s.model == QUANTIZED
            )
        return found

    def perplexities(self) -> dict[str, float]:
        """The original's perplexity by text."""
        return {
            text: next(
                s.value
                for s in fidelity_scores(self._both(text, self._remembered[text]))
                if s.metric == "perplexity"
            )
            for text in self._windows
        }

    def _predictions(self, model: Any, windows: Tensor) -> Predictions:
        return WholeModel(model, self._device, self._batch_size).predictions(windows)

    def _both(self, text: str, predictions: Predictions) -> TokenComparison:
        """A model beside the original on the windows of a text."""
        return compare_tokens(self._remembered[text], predictions, self._windows[text])

    def _check_levels(self, names: set[str], values: Any, format_: Format) -> None:
        linears = quantized_linears(self._checkpoint.specs)
        for spec in linears:
            if f"{spec.name}.weight" not in names:
                raise WrongWeightsError(f"{spec.name} was not quantized")
            weight = values.get_tensor(f"{spec.name}.weight")
            if tuple(weight.shape) != (spec.rows, spec.cols):
                raise WrongWeightsError(f"{spec.name} has shape {list(weight.shape)}")
            if (most := most_levels(weight, format_.group)) > format_.levels:
                raise WrongWeightsError(
                    f"{spec.name} holds {most} values in one group of {format_.label}"
                )

    def _check_rest(self, names: set[str], values: Any) -> None:
        if unknown := sorted(names - set(self._checkpoint.entries)):
            raise WrongWeightsError(f"the model has no tensor {unknown[0]}")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in names and not torch.equal(
                values.get_tensor(name).float(), self._checkpoint.tensor(name).float()
            ):
                raise WrongWeightsError(f"{name} has changed")


def most_levels(weight: Tensor, group: int) -> int:
    """The largest number of distinct values in any group of `weight` `[out, in]`."""
    # a sum of scale times code can round a tie both ways, so that -0 and 0 alone count as one
    ordered = (weight.float() + 0.0).view(-1, group).sort(dim=1).values
    return int((ordered[:, 1:] != ordered[:, :-1]).sum(dim=1).max()) + 1


def score_key(windows: dict[str, Tensor]) -> str:
    """What the scores of given weights depend on besides: the held-out windows."""
    parts = (f"{text}:{digest_of(rows)}" for text, rows in sorted(windows.items()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
