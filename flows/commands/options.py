"""Options that several verbs share, and the config they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias, cast

from alphaquant.config import RunConfig
from alphaquant.config.file import load_config
from alphaquant.config.recipes import RECIPE_NAMES
from alphaquant.demo import demo_config_path
from flows.commands import VERBS
from flows.dag import StageName
from flows.planned import from_here_on
from flows.preflight import check_force

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_verb(verbs: Verbs, name: str, example: str) -> argparse.ArgumentParser:
    """A verb's parser with an example in its help."""
    parser = verbs.add_parser(
        name,
        help=VERBS[name],
        description=VERBS[name],
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="print tracebacks")
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    """Where artifacts are kept."""
    parser.add_argument(
        "--store",
        metavar="DIR|URL",
        help="artifact store (ALPHAQUANT_STORE, else artifacts/)",
    )


def add_assignments(parser: argparse.ArgumentParser) -> None:
    """Single keys of the config."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="SECTION.KEY=VALUE",
        help="change one key of the config; may be repeated",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Settings that belong together."""
    parser.add_argument(
        "--recipe",
        choices=RECIPE_NAMES,
        help="settings from the fastest to the best; keys of a config and --set win over it (default: fast)",
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """What to do with which model."""
    parser.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG.yaml", help="run config (default: the demo)"
    )
    add_model(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="products (runs/<model>-<bits>)")
    add_store(parser)
    parser.add_argument(
        "--force", action="append", default=[], metavar="STAGE", help="run this stage in any case"
    )
    parser.add_argument(
        "--force-from",
        action="append",
        default=[],
        metavar="STAGE",
        help="run this stage and all that follow from it in any case",
    )
    add_json(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, by which recipe, and single keys of the config."""
    parser.add_argument("--model", metavar="ID_OR_DIR", help="model folder or hub id")
    add_recipe(parser)
    add_assignments(parser)


def add_json(parser: argparse.ArgumentParser) -> None:
    """An answer for programs."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else"
    )


def forced(options: argparse.Namespace, config: RunConfig) -> tuple[StageName, ...]:
    """Stages of `--force`, and of `--force-from` with all that follow them. Raises ConfigError."""
    alone, first = tuple(options.force), tuple(options.force_from)
    check_force(alone)
    check_force(first, "--force-from")
    names = (*alone, *(name for name in from_here_on(config, first) if name not in alone))
    return cast("tuple[StageName, ...]", names)


def config_of(options: argparse.Namespace) -> RunConfig:
    """The config file (the demo's when neither a file nor a model is named) with all changes applied."""
    path: Path | None = options.config
    assignments: list[str] = list(options.assignments)
    if options.model is not None:
        assignments.append(f"model.path={quoted(options.model)}")
    elif path is None:
        path = demo_config_path()
    return load_config(path, assignments, options.recipe)


def quoted(text: str) -> str:
    """`text` as a YAML string: a folder may be called 123 or yes."""
    doubled = text.replace("'", "''")
    return f"'{doubled}'"
