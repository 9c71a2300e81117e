"""The code's fingerprint: what counts as a change, and how far a stage reaches."""

from __future__ import annotations

import ast
import sys
import textwrap
import uuid
from pathlib import Path
from typing import Any

import pytest

from alphaquant.errors import UserError
from alphaquant.store import fingerprint
from alphaquant.store.fingerprint import code_fingerprint

ROOT = Path(__file__).parents[2]


class Package:
    """A package in a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.name = f"pkg_{uuid.uuid4().hex[:8]}"
        self.root = root / self.name
        self.root.mkdir()
        self.write("__init__.py", "")

    def write(self, path: str, text: str) -> None:
        """Write a source file; PKG stands for the package's name."""
        target = self.root / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(textwrap.dedent(text).replace("PKG", self.name))

    def fingerprint(self, module: str = "stage") -> dict[str, str]:
        """As a fresh process would compute it, with short names."""
        code_fingerprint.cache_clear()
        found = code_fingerprint(f"{self.name}.{module}")
        return {name.removeprefix(f"{self.name}."): value for name, value in found.items()}

    def reach(self) -> set[str]:
        """Names of what the stage reaches inside the package."""
        return {name for name in self.fingerprint() if not name.startswith("alphaquant")} - {
            self.name
        }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return Package(tmp_path)


PLAIN = '''
    """What it does."""
    import math

    def half(x: float) -> float:
        """Half of it."""
        # twice this is x
        return x / 2
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# twice this is x", "# x is twice this"),
        ("# twice this is x", ""),
        ("Half of it.", "The half."),
        ('"""What it does."""', ""),
        ("return x / 2", "return (x\n            / 2)"),
        ("import math\n", "import math\n\n\n"),
        ("x / 2", "x/2"),
    ],
)
def test_wording_and_layout_do_not_count(package: Package, old: str, new: str) -> None:
    package.write("stage.py", PLAIN)
    before = package.fingerprint()
    assert old in PLAIN
    package.write("stage.py", PLAIN.replace(old, new))
    assert package.fingerprint() == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x / 2", "x // 2"),
        ("x / 2", "x / 2.0"),
        ("x / 2", "x / 4"),
        ("x / 2", "-x / 2"),
        ("half(x: float)", "half(x: float, /)"),
        ("import math", "import cmath as math"),
    ],
)
def test_code_counts(package: Package, old: str, new: str) -> None:
    package.write("stage.py", PLAIN)
    before = package.fingerprint()
    package.write("stage.py", PLAIN.replace(old, new))
    assert package.fingerprint() != before


def test_a_string_that_is_used_counts(package: Package) -> None:
    package.write("stage.py", 'def name():\n    return "a"\n')
    before = package.fingerprint()
    package.write("stage.py", 'def name():\n    return "b"\n')
    assert package.fingerprint() != before


@pytest.mark.parametrize(
    "line",
    [
        "import PKG.helper",
        "from PKG import helper",
        "from PKG.helper import f",
        "from . import helper",
        "from .helper import f",
        "def body():\n    from PKG.helper import f",
        "import importlib\ndef body():\n    importlib.import_module('PKG.helper')",
        "try:\n    import fast\nexcept ImportError:\n    from PKG import helper",
        "import sys\nif sys.platform == 'plan9':\n    import PKG.helper as h\nelse:\n    h = None",
        "from importlib import import_module\ndef body():\n    import_module('.helper', __package__)",
        "from PKG.helper import (\n    f as g,\n)",
    ],
)
def test_every_way_to_import_is_followed(package: Package, line: str) -> None:
    package.write("stage.py", line)
    package.write("helper.py", "from PKG.deeper import g\ndef f(): pass\n")
    package.write("deeper.py", "def g(): pass\n")
    assert package.reach() == {"stage", "helper", "deeper"}


def test_a_function_that_a_subpackage_offers_leads_to_where_it_is_defined(package: Package) -> None:
    package.write("stage.py", "from PKG.text import words\n")
    package.write("text/__init__.py", "from PKG.text.english import words\n")
    package.write("text/english.py", "def words(): return 1\n")
    package.write("text/french.py", "def words(): return 2\n")
    assert package.reach() == {"stage", "text", "text.english"}


def test_relative_imports_climb_out_of_a_subpackage(package: Package) -> None:
    package.write("stage.py", "from .text.words import f\n")
    package.write("text/__init__.py", "")
    package.write("text/words.py", "from ..helper import f\nfrom .. import deeper\n")
    package.write("helper.py", "def f(): pass\n")
    package.write("deeper.py", "")
    assert package.reach() == {"stage", "text", "text.words", "helper", "deeper"}


def test_a_name_that_the_root_package_offers_counts(package: Package) -> None:
    package.write("__init__.py", "from PKG.helper import f\n")
    package.write("helper.py", "def f(): pass\n")
    package.write("stage.py", "import math\n")
    assert package.reach() == {"stage"}
    package.write("stage.py", "from PKG import f\n")
    assert package.reach() == {"stage", "helper"}


def test_a_helper_three_imports_deep_counts(package: Package) -> None:
    for name, below in (("stage", "a"), ("a", "b"), ("b", "c")):
        package.write(f"{name}.py", f"def f():\n    from PKG.{below} import f\n    return f()\n")
    package.write("c.py", "def f(): return 1\n")
    before = package.fingerprint()
    package.write("c.py", "def f(): return 2\n")
    after = package.fingerprint()
    assert {name for name in after if after[name] != before[name]} == {"c"}


@pytest.mark.parametrize("text", ["def f(:\n", "x = '\\x0'\n", "a = 1\0\n"])
def test_a_reached_module_that_is_no_python_is_named(package: Package, text: str) -> None:
    package.write("stage.py", "def f():\n    from PKG import helper\n")
    package.write("helper.py", text)
    with pytest.raises(UserError, match=r"helper\.py.* is no valid Python .*Mend the file"):
        package.fingerprint()


def test_a_docstring_that_is_added_or_removed_does_not_count(package: Package) -> None:
    package.write("stage.py", "")
    before = package.fingerprint()
    package.write("stage.py", '"""What it does."""\n')
    assert package.fingerprint() == before


def test_imports_for_type_checkers_do_not_count(package: Package) -> None:
    package.write(
        "stage.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from PKG import helper\n",
    )
    package.write("helper.py", "")
    assert package.reach() == {"stage"}


def test_modules_that_import_each_other_are_no_trap(package: Package) -> None:
    package.write("stage.py", "from PKG import helper\n")
    package.write("helper.py", "from PKG import stage\n")
    assert package.reach() == {"stage", "helper"}


def test_a_module_that_is_not_reached_does_not_count(package: Package) -> None:
    package.write("stage.py", "x = 1\n")
    package.write("other.py", "y = 1\n")
    before = package.fingerprint()
    package.write("other.py", "y = 2\n")
    assert package.fingerprint() == before


def test_data_beside_a_reached_package_counts_by_content(package: Package) -> None:
    package.write("stage.py", "from PKG.text import words\n")
    package.write("text/__init__.py", "")
    package.write("text/words.py", "")
    package.write("text/list.json", "[1]")
    assert package.reach() == {"stage", "text", "text.words", "text/list.json"}
    before = package.fingerprint()
    package.write("text/list.json", "[2]")
    assert package.fingerprint() != before


def test_storing_and_configuring_do_not_count(package: Package) -> None:
    package.write(
        "stage.py",
        """
        from alphaquant.config import AlphaConfig
        from alphaquant.errors import UserError
        from alphaquant.progress import reporter
        from alphaquant.store.stage import Skipped
        """,
    )
    assert set(package.fingerprint()) == {"stage"}


REAL = [f"tasks.{path.stem}" for path in sorted((ROOT / "tasks").glob("*.py"))]


def test_what_real_code_imports_by_name_can_be_followed() -> None:
    """An import whose name is made at run time would be invisible to the fingerprint."""
    reached = {name for module in REAL for name in code_fingerprint(module) if "/" not in name}
    made = [
        f"{name}:{node.lineno}"
        for name in sorted(reached)
        for node in ast.walk(ast.parse(_file_of(name).read_text("utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", getattr(node.func, "id", ""))
        in ("import_module", "__import__")
        and not isinstance(node.args[0], ast.Constant)
    ]
    assert made == []


def test_root_packages_hold_no_data_of_their_own() -> None:
    """Data beside a root package would count for no stage, because the root is not followed."""
    for root in ("alphaquant", "tasks"):
        data = [path.name for path in (ROOT / root).iterdir() if path.is_file()]
        assert [name for name in data if not name.endswith((".py", ".typed"))] == []


def _file_of(module: str) -> Path:
    base = ROOT.joinpath(*module.split("."))
    return base / "__init__.py" if base.is_dir() else base.with_suffix(".py")


def test_real_stages_reach_their_algorithms_and_only_those() -> None:
    code_fingerprint.cache_clear()
    alpha = code_fingerprint("tasks.alpha")
    assert {"tasks.alpha", "alphaquant.algorithms.alpha", "alphaquant.linalg.hill"} <= set(alpha)
    assert "alphaquant.algorithms.gptq" not in alpha
    quantize = code_fingerprint("tasks.quantize")
    assert {"alphaquant.algorithms.gptq", "alphaquant.formats.grid"} <= set(quantize)
    assert "alphaquant.linalg.hill" not in quantize


def test_parsing_that_fails_because_another_thread_parses_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parse, failures = ast.parse, [SystemError("AST constructor recursion depth mismatch")] * 2

    def unlucky(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return parse(*arguments, **options)

    expected = code_fingerprint("alphaquant.formats.scheme")
    code_fingerprint.cache_clear()
    fingerprint._read.cache_clear()
    monkeypatch.setattr(fingerprint.ast, "parse", unlucky)
    assert code_fingerprint("alphaquant.formats.scheme") == expected
    assert failures == []
