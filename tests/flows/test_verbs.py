"""The command line lists its verbs without importing them."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import flows.commands
from flows.cli import build_parser
from flows.commands import VERBS

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
    options = build_parser(["gc", "--delete"]).parse_args(["gc", "--delete"])
    assert options.delete
