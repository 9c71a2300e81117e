"""AlphaQuant and other quantizers on the same checkpoints with the same tokens, under one scorer.

    python -m benchmarks.rivals                                    # everything; hours on two cores
    python -m benchmarks.rivals --only alphaquant llmcompressor --formats int4 int3
    python -m benchmarks.rivals --model mine=path/to/model@2048 --texts train.txt,test.txt,builtin
    python -m benchmarks.rivals --own "damped:quantization.damping=0.05"    # AlphaQuant with other config keys
    python -m benchmarks.rivals --only                             # compute nothing, write the page again

Environments, models, weights and scores are kept in the cache folder: the same command again computes what is
missing, and the page shows all that is there; several may run at once. AlphaQuant's cells are computed again
when its code changes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from alphaquant.demo import DEMO_LENGTH, demo_model_path
from alphaquant.errors import AlphaQuantError, ConfigError
from benchmarks.rivals.catalogue import CONTESTANTS, OWN, RIVALS, Contestant, chosen
from benchmarks.rivals.cells import Cell, weights_file
from benchmarks.rivals.figure import draw
from benchmarks.rivals.formats import FORMATS, quantized_linears
from benchmarks.rivals.inputs import Model, calibration_file, heldout_windows, text_name
from benchmarks.rivals.models import DESIGNS, SMALL, train
from benchmarks.rivals.provenance import preface
from benchmarks.rivals.scoring import Scorer, WrongWeightsError, score_key
from benchmarks.rivals.table import Result, long_table, page


def main() -> None:
    """Command line."""
    options = _options()
    options.cache = options.cache.resolve()  # commands run in folders of their own
    try:
        compare(options)
    except AlphaQuantError as error:
        sys.exit(f"{error}")


def compare(options: argparse.Namespace) -> None:
    """Compute what is missing, then write the page, the table and the figure."""
    own = [_own(text) for text in options.own]
    options.pythons = dict(_python(text) for text in options.python)
    try:
        wanted = chosen(options.only, own)
    except KeyError as error:
        raise ConfigError(
            f"--only {error.args[0]!r} is nobody; allowed: {', '.join([*RIVALS, OWN])}, or one of "
            f"{', '.join(one.key for one in (*CONTESTANTS, *own))}"
        ) from error
    results: list[Result] = []
    words: dict[str, str] = {}
    originals: dict[str, dict[str, float]] = {}
    missing: dict[str, list[str]] = {}
    for model in _models(options):
        study = Study(model, options)
        words[model.name], originals[model.name] = study.words(), study.originals()
        for name in options.formats:
            for contestant in (*CONTESTANTS, *own):
                result = study.result(name, contestant, compute=contestant in wanted)
                results += [result] if result else []
                if result is None and name in contestant.formats:
                    missing.setdefault(f"{model.name}, {contestant.key}", []).append(name)
        _write(options, results, words, originals, missing)


class Study:
    """One model with its tokens, its scorer and its cells."""

    def __init__(self, model: Model, options: argparse.Namespace) -> None:
        self.model, self._options = model, options
        self._cache: Path = options.cache
        self._tokens_file = calibration_file(model, options.samples, self._cache / "tokens")
        self._windows = {
            text_name(text): heldout_windows(model, text, options.windows)
            for text in model.evaluation
        }

    @cached_property
    def _scorer(self) -> Scorer:
        """Made when a cell has no scores yet: it runs the original over all windows."""
        return Scorer(self.model.path, self._windows, device=self._options.device)

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

    def result(self, name: str, contestant: Contestant, *, compute: bool) -> Result | None:
        """A cell with its scores; None when it does not apply, or is neither kept nor wanted."""
        if name not in contestant.formats:
            return None
        fitting = FORMATS[name].fitting(quantized_linears(self.model.checkpoint.specs))
        cell = Cell(
            self.model,
            contestant,
            fitting,
            self._tokens_file,
            self._options.threads,
            self._options.device,
        )
        outcome = cell.kept(self._cache)
        again = outcome is not None and outcome["state"] != "done" and self._options.retry
        if compute and (outcome is None or again) and not cell.busy(self._cache):
            print(f"{self.model.name}, {fitting.label}, {contestant.key}: ", end="", flush=True)
            outcome = cell.compute(self._cache, self._options.limit * 60, self._options.pythons)
            print(_said(outcome), flush=True)
        if outcome is None:
            return None
        result = Result(self.model.name, contestant, fitting, outcome)
        if outcome["state"] != "done":
            return result
        try:
            scores = self._scores(cell)
        except WrongWeightsError as error:
            wrong = outcome | {"state": "failed", "why": str(error)}
            return Result(self.model.name, contestant, fitting, wrong)
        return Result(self.model.name, contestant, fitting, outcome, scores)

    def _scores(self, cell: Cell) -> list[dict[str, Any]]:
        folder = cell.folder(self._cache)
        file = folder / f"scores-{score_key(self._windows)}.json"
        if file.is_file():
            kept: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
            return kept
        uniform = "allocation.policy" not in cell.contestant.options
        turned = "rotation.kind" in cell.contestant.options
        scores = self._scorer.score(
            weights_file(folder),
            cell.format if uniform else None,
            folder / "saved" if turned else None,
        )
        file.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        return scores


def _said(outcome: dict[str, Any]) -> str:
    if outcome["state"] != "done":
        return f"failed: {outcome['why']}"
    return f"{outcome['seconds']:.1f} s, {outcome['wall']:.1f} s with start and end"


def _own(text: str) -> Contestant:
    """`NAME:key=value;key=value` as a contestant of ours."""
    name, _, rest = text.partition(":")
    pairs = dict(part.partition("=")[::2] for part in rest.split(";") if part)
    if not name or not pairs or not all(pairs.values()):
        raise ConfigError(f"--own {text!r} is not NAME:section.key=value;section.key=value")
    words = ", ".join(f"`{key}={value}`" for key, value in pairs.items())
    return Contestant(OWN, name, words, pairs)


def _python(text: str) -> tuple[str, str]:
    """`RIVAL=EXECUTABLE`. Raises ConfigError for anything else."""
    rival, _, path = text.partition("=")
    if rival not in RIVALS or not path:
        raise ConfigError(f"--python {text!r} is not RIVAL=EXECUTABLE; rivals: {', '.join(RIVALS)}")
    return rival, path


def _models(options: argparse.Namespace) -> list[Model]:
    """Those of --model; else the demo's and the two that are trained on builtin text first."""
    models = _named_models(options)
    for text in options.texts:
        name, equals, texts = text.rpartition("=")
        if equals and name not in [model.name for model in models]:
            raise ConfigError(
                f"--texts {text!r} names no model; there are {[m.name for m in models]}"
            )
        models = [m.reading(texts) if not equals or m.name == name else m for m in models]
    return models


def _named_models(options: argparse.Namespace) -> list[Model]:
    if options.model:
        return [Model.parse(text, options.length) for text in options.model]
    models = [Model("demo", demo_model_path(), DEMO_LENGTH)]
    for name in SMALL:
        folder = options.cache / "models" / name
        if not (folder / "training.json").is_file():
            # in a process of its own: training asks torch for deterministic algorithms for good
            command = [sys.executable, "-m", train.__module__, "--only", name]
            subprocess.run([*command, "--out", str(folder.parent)], check=True)
        models.append(Model(name, folder.resolve(), DESIGNS[name].recipe.length))
    return models


def _write(
    options: argparse.Namespace,
    results: list[Result],
    words: dict[str, str],
    originals: dict[str, dict[str, float]],
    missing: dict[str, list[str]],
) -> None:
    """Write `rivals.md`, `rivals.parquet` and `rivals.png`."""
    options.out.mkdir(parents=True, exist_ok=True)
    text = page(results, words, originals, preface(options, results), missing)
    (options.out / "rivals.md").write_text(text, encoding="utf-8")
    long_table(results).to_parquet(options.out / "rivals.parquet", index=False)
    ranking = {model: next(iter(texts)) for model, texts in originals.items()}
    if any(result.scores for result in results):
        (options.out / "rivals.png").write_bytes(draw(results, ranking))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--model", action="append", metavar="NAME=FOLDER[@LENGTH]", help="instead of our three")
    add("--only", nargs="*", metavar="RIVAL[:SETTING]", help="compute these; others as kept")
    add("--formats", nargs="+", choices=tuple(FORMATS), default=list(FORMATS))
    add("--own", action="append", default=[], metavar="NAME:KEY=VALUE;...", help="ours, changed")
    add(
        "--texts",
        action="append",
        default=[],
        metavar="[NAME=]TEXT,HELDOUT,...",
        help="calibration and held-out texts (builtin,builtin), of one model or of all",
    )
    add("--samples", type=int, default=64, help="calibration windows (64)")
    add("--length", type=int, default=512, help="tokens per window of --model without its own")
    add("--windows", type=int, default=64, help="held-out windows per text (64)")
    add("--threads", type=int, default=1, help="threads of every contestant (1)")
    add("--device", default="cpu", help="where everybody computes: cpu (default) or cuda")
    add(
        "--python",
        action="append",
        default=[],
        metavar="RIVAL=EXECUTABLE",
        help="a Python that has the rival, instead of an environment made here",
    )
    add("--limit", type=float, default=60, metavar="MINUTES", help="for one cell (60)")
    add("--retry", action="store_true", help="try failed cells again")
    add("--cache", type=Path, default=Path(".rivals"), metavar="DIR", help="(.rivals)")
    add("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    return parser.parse_args()


if __name__ == "__main__":
    main()
