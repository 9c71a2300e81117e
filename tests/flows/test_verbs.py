"""The command line lists its verbs without importing them."""

from __future__ import annotations

import argparse
import pkgutil
import subprocess
import sys

import pytest

import flows.commands
from alphaquant.config import RunConfig
from alphaquant.config.file import load_config
from flows.cli import build_parser
from flows.commands import VERBS, options, quantize

_SHARED = {"options"}


def test_every_module_of_the_folder_is_a_verb() -> None:
    modules = {module.name for module in pkgutil.iter_modules(flows.commands.__path__)}
    assert modules - _SHARED == set(VERBS)


def test_help_imports_no_verb() -> None:
    code = (
        "import sys; from flows.cli import build_parser; print(build_parser(['--help']).format_help());"
        "sys.exit(any(name.startswith('flows.commands.') for name in sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n    {verb}" in ended.stdout for verb in VERBS)


def test_the_verb_that_is_asked_for_has_its_options() -> None:
    assert _parsed("gc", "--delete").delete


@pytest.mark.parametrize("verb", ["run", "plan", "sweep", "compare"])
def test_a_recipe_is_an_option_of_what_compresses(verb: str) -> None:
    given = _parsed(verb, "--model", "x", "--recipe", "best", "--set", "rotation.kind=none")
    wanted = load_config(None, ["model.path=x", "rotation.kind=none"], "best")
    assert options.config_of(given) == wanted


def test_the_verb_quantize_orders_columns_with_a_recipe_unless_told_otherwise() -> None:
    def rounding(*more: str) -> dict[str, object]:
        config: RunConfig = quantize.config_of(_parsed("quantize", "--src", "x", *more), "x")
        found = config.quantization
        return {
            "order": (found.act_order, found.static_groups),
            "recipe": (found.correction, found.tune, config.rotation.kind),
        }

    plain = {"order": (False, False), "recipe": ("none", "none", "none")}
    assert rounding() == rounding("--recipe", "fast") == plain
    best = {"order": (True, True), "recipe": ("stream", "block", "hadamard")}
    assert rounding("--recipe", "best") == best
    assert rounding("--recipe", "best", "--no-desc-act")["order"] == (False, True)


def _parsed(*arguments: str) -> argparse.Namespace:
    return build_parser(arguments).parse_args(arguments)
