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

from alphaquant.errors import ConfigError
from benchmarks.rivals.catalogue import CONTESTANTS, OWN, RIVALS, Contestant, chosen
from benchmarks.rivals.figure import draw
from benchmarks.rivals.formats import FORMATS
from benchmarks.rivals.options import add_inputs, models_of, parsed, run
from benchmarks.rivals.provenance import preface
from benchmarks.rivals.study import Study
from benchmarks.rivals.table import Result, long_table, page


def main() -> None:
    """Command line."""
    run(compare, _options())


def compare(options: argparse.Namespace) -> None:
    """Compute what is missing, then write the page, the table and the figure."""
    own = [_own(text) for text in options.own]
    pythons = dict(_python(text) for text in options.python)
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
    for model in models_of(options):
        study = Study(model, options, pythons)
        words[model.name], originals[model.name] = study.words(), study.originals()
        for name in options.formats:
            for contestant in (*CONTESTANTS, *own):
                if name not in contestant.formats:
                    continue
                fitting = study.fitting(name)
                result = study.result(fitting, contestant, compute=contestant in wanted)
                results += [result] if result else []
                if result is None:
                    missing.setdefault(f"{model.name}, {contestant.key}", []).append(name)
        _write(options, results, words, originals, missing)


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
    add("--only", nargs="*", metavar="RIVAL[:SETTING]", help="compute these; others as kept")
    add("--formats", nargs="+", choices=tuple(FORMATS), default=list(FORMATS))
    add("--own", action="append", default=[], metavar="NAME:KEY=VALUE;...", help="ours, changed")
    add(
        "--python",
        action="append",
        default=[],
        metavar="RIVAL=EXECUTABLE",
        help="a Python that has the rival, instead of an environment made here",
    )
    add_inputs(parser)
    return parsed(parser)


if __name__ == "__main__":
    main()
