"""The policy `budget` beside other ways to spend the same bits, on several models.

    python -m benchmarks.budgets                                    # everything; hours on two cores
    python -m benchmarks.budgets --model demo=alphaquant/demo/model@256 --bits 3 --draws 5
    python -m benchmarks.budgets --texts builtin,builtin,FILE.txt   # a second text, which nothing was chosen on
    python -m benchmarks.budgets --only budget uniform              # compute these; others as kept
    python -m benchmarks.budgets --recipes balanced                 # with one way of rounding
    python -m benchmarks.budgets --only                             # compute nothing, write the page again

Plans are those of `alphaquant sweep --experiment alpha`, each quantized by `alphaquant quantize` in a process of
its own. Cells are kept as those of `benchmarks.rivals`: the same command goes on where it stopped. Everything is
rounded by GPTQ before anything is rounded by the recipe `balanced`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from alphaquant.errors import PlanError
from benchmarks.budgets.figure import draw
from benchmarks.budgets.knowledge import knowledge
from benchmarks.budgets.measured import Trial, long_table
from benchmarks.budgets.page import page
from benchmarks.budgets.spending import (
    BITS,
    POLICIES,
    RECIPES,
    Policy,
    RecipeName,
    contestant_of,
    plans_of,
)
from benchmarks.rivals.formats import MIXED
from benchmarks.rivals.options import add_inputs, models_of, parsed, run
from benchmarks.rivals.provenance import made
from benchmarks.rivals.study import Study


def main() -> None:
    """Command line."""
    run(compare, _options())


def compare(options: argparse.Namespace) -> None:
    """Compute what is missing, then write the page, the table and the figure; also after every budget."""
    studies = [Study(model, options) for model in models_of(options)]
    words = {study.model.name: study.described() for study in studies}
    trials: list[Trial] = []
    failures: list[str] = []
    missing: list[str] = []
    for recipe in options.recipes:
        for bits in options.bits:
            for study in studies:
                for policy in POLICIES:
                    where = f"{study.model.name}, {bits:g} bits, {recipe}, {policy.name}"
                    try:
                        for trial in _trials(study, policy, recipe, bits, options):
                            if isinstance(trial, str):
                                missing.append(f"{where}, {trial}")
                            elif trial.result.outcome["state"] != "done":
                                failures.append(f"{where}: {trial.result.outcome['why']}")
                            else:
                                trials.append(trial)
                    except PlanError as error:
                        failures.append(f"{where}: {error}")
            _write(options, trials, words, failures, missing)


def _trials(
    study: Study, policy: Policy, recipe: RecipeName, bits: float, options: argparse.Namespace
) -> Iterator[Trial | str]:
    """The policy's plans with their results, or which plan has none."""
    wanted = options.only is None or policy.name in options.only
    known = knowledge(study.model, recipe, bits, options, compute=wanted)
    if known is None:
        yield "no plan"
        return
    for draw_, made_ in enumerate(plans_of(policy, known, options.draws)):
        contestant = contestant_of(policy, recipe, bits, draw_, made_.plan)
        result = study.result(MIXED, contestant, compute=wanted)
        if result is None:
            yield f"plan {draw_}"
        else:
            stored = made_.plan.bits_per_weight
            yield Trial(policy.name, recipe, bits, draw_, stored, made_.variant, result)


def _write(
    options: argparse.Namespace,
    trials: Sequence[Trial],
    words: dict[str, str],
    failures: Sequence[str],
    missing: Sequence[str],
) -> None:
    """Write `budgets.md`, `budgets.parquet` and `budgets.png`."""
    options.out.mkdir(parents=True, exist_ok=True)
    table = long_table(trials)
    preface = "\n\n".join(
        (
            made(options, [one.result for one in trials]),
            "Every plan gives each linear a format of the default menu and stores no more than the bits of its "
            "line, scales and kept routers included. "
            f"{options.samples} calibration windows, the first {options.windows} held-out windows of each text. KL to "
            "the original is in nats per token, with its 95 % interval over windows, and over plans where they are "
            "drawn by chance; ratios are to the plan of `budget` that has as many bits and is rounded alike, in "
            "pairs.",
        )
    )
    text = page(table, words, preface, failures, missing)
    (options.out / "budgets.md").write_text(text, encoding="utf-8")
    table.to_parquet(options.out / "budgets.parquet", index=False)
    if len(table):
        (options.out / "budgets.png").write_bytes(draw(table, trials))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    names = [policy.name for policy in POLICIES]
    add("--only", nargs="*", choices=names, metavar="POLICY", help="compute these; others as kept")
    add(
        "--bits", nargs="+", type=float, default=list(BITS), help="bits per weight (2.5 3 3.5 4.25)"
    )
    add(
        "--recipes",
        nargs="+",
        choices=tuple(RECIPES),
        default=list(RECIPES),
        help="ways of rounding (both)",
    )
    add("--draws", type=int, default=5, help="plans of chance (5)")
    add_inputs(parser)
    return parsed(parser)


if __name__ == "__main__":
    main()
