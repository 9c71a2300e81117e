"""Arrows point down: flows -> tasks -> alphaquant, and inside the library from high floors to low ones."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "errors": 0,
    "progress": 0,
    "work": 0,
    "clock": 0,
    "floor": 3,
    "in_c": 1,
    "pinned": 0,
    "resident": 0,
    "sizes": 0,
    "store": 1,
    "upkeep": 2,
    "demo": 1,
    "formats": 1,
    "config": 2,
    "config_file": 2,
    "config_section": 2,
    "linalg": 2,
    "text": 3,
    "models": 3,
    "plan": 3,
    "algorithms": 4,
    "evaluation": 5,
    "reporting": 5,
    "export": 5,
    "serving": 5,
    "api": 6,
    "hf": 6,
    "quantize_config": 6,
    "quantized": 6,
    "quant_model": 7,
}
TOOLS = {("demo", "train"), ("demo", "training"), ("demo", "measure"), ("demo", "card")}
"""Programs that use the library as a user would."""


def _sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _imports(path: Path, *, at_run_time: bool = False) -> Iterator[str]:
    """Dotted names of the project's modules that a file imports, `from a import b` as a.b."""
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), at_run_time):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _nodes(node: ast.AST, at_run_time: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"
        if not (at_run_time and typing_only):
            yield from _nodes(child, at_run_time)


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("alphaquant", ("prefect", "tasks", "flows", "tests")),
        ("tasks", ("prefect", "flows", "tests")),
        ("flows", ("tests",)),
    ],
)
def test_imports_between_packages_point_down(package: str, forbidden: tuple[str, ...]) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in _sources(package)
        for name in _imports(path)
        if name.partition(".")[0] in forbidden
    ]
    assert wrong == []


PREFECT_SIDE = {
    "flows/dispatch.py",
    "flows/experiment.py",
    "flows/job.py",
    "flows/pipeline.py",
    "flows/server/register.py",
    "flows/stage_task.py",
    "flows/sweep.py",
    "flows/ui.py",
    "flows/ui_progress.py",
    "flows/watching.py",
}


def test_only_flows_and_what_they_show_know_prefect() -> None:
    knowing = {
        path.relative_to(ROOT).as_posix()
        for path in _sources("flows")
        if any(name.partition(".")[0] == "prefect" for name in _imports(path))
    }
    assert knowing <= PREFECT_SIDE


def test_imports_inside_the_library_point_down() -> None:
    wrong = []
    for path in _sources("alphaquant"):
        parts = path.relative_to(ROOT / "alphaquant").with_suffix("").parts
        if parts == ("__init__",) or parts in TOOLS:
            continue
        for name in _imports(path, at_run_time=True):
            package, *rest = name.split(".")
            if package == "alphaquant" and FLOORS[rest[0]] > FLOORS[parts[0]]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_nothing_inside_imports_what_the_root_package_re_exports() -> None:
    """The code fingerprint does not look behind the root package."""
    modules = {path.stem for path in (ROOT / "alphaquant").iterdir()}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for package in ("alphaquant", "tasks")
        for path in _sources(package)
        for name in _imports(path)
        if name.startswith("alphaquant.") and name.split(".")[1] not in modules
    ]
    assert wrong == []


@pytest.mark.parametrize("package", ["alphaquant", "tasks", "flows"])
def test_every_module_starts_with_its_idea(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in _sources(package)
        if path.name != "__init__.py" and not ast.get_docstring(ast.parse(path.read_text("utf-8")))
    ]
    assert silent == []


def test_c_is_installed_with_the_package_that_compiles_it() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = settings["tool"]["setuptools"]["package-data"]
    sources = list((ROOT / "alphaquant").rglob("*.[ch]"))
    assert len(sources) > 4
    for path in sources:
        patterns = data[".".join(path.relative_to(ROOT).parent.parts)]
        assert any(path.match(pattern) for pattern in patterns), path
