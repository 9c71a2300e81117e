"""What every ingredient of AlphaQuant is worth, alone and missing, on several models and formats.

    python -m benchmarks.ablation                                     # everything; hours on two cores
    python -m benchmarks.ablation --model demo=alphaquant/demo/model@256 --formats int3 mxfp4
    python -m benchmarks.ablation --texts builtin,builtin,FILE.txt    # a second text, which nothing was chosen on
    python -m benchmarks.ablation --only rotation tuning              # compute these rows and their recipes
    python -m benchmarks.ablation --only correction --recipes full    # what it is missed for, and the full recipe
    python -m benchmarks.ablation --only uncorrected --recipes "one pass" --seeds 8   # eight draws of calibration windows
    python -m benchmarks.ablation --only                              # compute nothing, write the page again

Rows are those of `recipes.py`. Cells are kept as those of `benchmarks.rivals`: the same command goes on where
it stopped. All models and formats get their ingredients, with one draw after the other, before any gets
another setting of a recipe.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product

from alphaquant.errors import ConfigError
from benchmarks.ablation.figure import draw
from benchmarks.ablation.measured import Cells, long_table
from benchmarks.ablation.page import page
from benchmarks.ablation.recipes import BASES, Row, rows
from benchmarks.rivals.formats import FORMATS
from benchmarks.rivals.options import add_inputs, models_of, parsed, run
from benchmarks.rivals.provenance import made
from benchmarks.rivals.study import Study
from benchmarks.rivals.table import Result


def main() -> None:
    """Command line."""
    run(ablate, _options())


def ablate(options: argparse.Namespace) -> None:
    """Compute what is missing, then write the page, the table and the figure; also after every format."""
    table = rows()
    wanted = [row for row in chosen(table, options.only) if row.base in options.recipes]
    studies = [Study(model, options) for model in models_of(options)]
    words = {study.model.name: study.described() for study in studies}
    cells: dict[tuple[str, str, str], dict[int, Result]] = {}
    turns = list(product((False, True), range(options.seeds), studies, options.formats))
    for compute in (False, True):  # what is kept already is on the first page that is written
        for changed, seed, study, name in turns:
            for row in table:
                if row.changed == changed and applies(row, study):
                    result = study.result(
                        study.fitting(name),
                        row.contestant,
                        compute=compute and row in wanted,
                        seed=seed,
                    )
                    if result:
                        cells.setdefault((study.model.name, name, row.name), {})[seed] = result
            if compute:
                _write(options, cells, table, studies, words)


def chosen(table: Sequence[Row], names: list[str] | None) -> list[Row]:
    """Rows of the ingredients and changes of these names, and the recipes; all without names.

    Raises ConfigError for an unknown one.
    """
    if names is None:
        return list(table)
    known = {row.ingredient for row in table if row.ingredient}
    for name in names:
        if name not in known:
            raise ConfigError(f"--only {name!r} is no row; allowed: {', '.join(sorted(known))}")
    return [row for row in table if names and (not row.ingredient or row.ingredient in names)]


def applies(row: Row, study: Study) -> bool:
    """Whether the row can say something about the model."""
    return not row.experts or any(spec.role == "router" for spec in study.model.checkpoint.specs)


def _write(
    options: argparse.Namespace,
    cells: Cells,
    table: Sequence[Row],
    studies: Sequence[Study],
    words: dict[str, str],
) -> None:
    """Write `ablation.md`, `ablation.parquet` and `ablation.png`."""
    options.out.mkdir(parents=True, exist_ok=True)
    long = long_table(cells, table)
    results = [result for draws in cells.values() for result in draws.values()]
    missing = [
        f"{study.model.name}, {name}: {', '.join(left)}"
        for study in studies
        for name in options.formats
        if (
            left := [
                row.name + (f" ({found} of {options.seeds} draws)" if found else "")
                for row in table
                if applies(row, study)
                and (found := len(cells.get((study.model.name, name, row.name), ())))
                < options.seeds
            ]
        )
    ]
    text = page(long, table, words, _preface(options, results), missing)
    (options.out / "ablation.md").write_text(text, encoding="utf-8")
    long.to_parquet(options.out / "ablation.parquet", index=False)
    if (long["ratio"].notna() & (long["ingredient"] != "")).any():
        (options.out / "ablation.png").write_bytes(draw(long, table))


def _preface(options: argparse.Namespace, results: Sequence[Result]) -> str:
    parts = [
        made(options, results),
        "The plain recipe has every ingredient off, the full one every ingredient on, that of one pass all but rotation and "
        "tuning. Each line below changes one thing in one of them and says what becomes of the KL to the original, as a "
        "multiple of that recipe's own: an ingredient alone is good below 1, one that is left out was good above 1.",
        f"Everything was computed with up to {options.seeds} draws of calibration windows, since a draw differs from another by "
        "more than some ingredients are worth. The overviews hold geometric means over models, texts and draws, and in "
        "brackets the lowest and the highest of a single draw that all of them have; the tables behind them 95 % intervals "
        "over held-out windows, of the ratio in pairs, which say nothing of other draws, and the ratio with every draw.",
        f"Uniform formats, symmetric, {options.samples} calibration windows a draw, the first {options.windows} held-out "
        "windows of each text. Seconds are the CPU's, or by the clock on a GPU, for quantization with loading and saving, without imports; "
        "routers are trained by the whole pipeline, which measures more, so that their lines have none. The figure "
        "shows each model on the last of its texts that was held back; arrows stand for more than threefold.",
    ]
    return "\n\n".join(parts)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="*", metavar="ROW", help="compute these and the recipes; others as kept")
    add(
        "--recipes",
        nargs="+",
        choices=BASES,
        default=list(BASES),
        help="compute rows of these alone",
    )
    add("--seeds", type=int, default=3, help="draws of calibration windows (3), from seed 0")
    add("--formats", nargs="+", choices=tuple(FORMATS), default=list(FORMATS))
    add_inputs(parser)
    return parsed(parser)


if __name__ == "__main__":
    main()
