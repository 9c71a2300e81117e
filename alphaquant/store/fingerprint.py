"""The fingerprint of a stage's code: which modules it can reach, and what each of them does.

Nobody bumps a version. Starting at the stage's module, every import is followed (those inside functions
too) within the library and the stage's own package. Each module counts by its syntax tree without
docstrings and comments, so rewording costs nothing and a changed operator does. Data files that lie beside
a reached module count by content. What moves and stores artifacts cannot change their content: it is left
out.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path

from alphaquant.errors import UserError, first_line

LIBRARY = "alphaquant"
INFRASTRUCTURE = (
    "alphaquant.store",
    "alphaquant.upkeep",
    "alphaquant.config",
    "alphaquant.errors",
    "alphaquant.progress",
    "alphaquant.clock",
    "alphaquant.work",
    "alphaquant.floor",
    "alphaquant.demo",  # a model like any other: its content enters keys as the model's digest
    "tasks.stage",
)
_NO_DATA = {".py", ".pyc", ".pyi", ".so", ".typed"}
_SILENT = ("ctx", "kind", "type_comment")


@functools.lru_cache(maxsize=256)
def code_fingerprint(module: str) -> dict[str, str]:
    """Hash by name of every module (and data file) that `module` can reach. Read once per process.

    Raises UserError that names the file when one of them is no valid Python.
    """
    packages = (LIBRARY, module.partition(".")[0])
    reached: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        source = source_of(name)
        if name in reached or source is None or _is_infrastructure(name):
            continue
        reached[name], imports = _read(name, source, source.stat().st_mtime_ns)
        todo += [found for found in imports if found.partition(".")[0] in packages]
        for path in _data_beside(source):
            label = f"{name}/{path.relative_to(source.parent).as_posix()}"
            reached[label] = _short_hash(path.read_bytes())
    return dict(sorted(reached.items()))


@functools.lru_cache(maxsize=1024)
def _read(module: str, source: Path, mtime_ns: int) -> tuple[str, frozenset[str]]:
    """Hash of one module's code, and the dotted names that it mentions."""
    try:
        tree = _parsed(source.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        place = f"{source}, line {line}" if line else str(source)
        raise UserError(
            f"{place} is no valid Python ({first_line(error)}), so it is not known what depends on it. "
            "Mend the file."
        ) from error
    return _short_hash(_shape(tree).encode()), frozenset(_imports(tree, module, source))


def _parsed(content: bytes) -> ast.Module:
    """The syntax tree of a module.

    CPython 3.11 counts the depth of trees for all threads together (its issue 106905), so parsing may fail
    because another thread parses too; a moment later it does not.
    """
    for pause in (0.01, 0.1, 0.5):
        try:
            return ast.parse(content)
        except SystemError:
            time.sleep(pause)
    return ast.parse(content)


def _is_infrastructure(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in INFRASTRUCTURE)


@functools.lru_cache(maxsize=4096)
def source_of(module: str) -> Path | None:
    """Source file of a dotted name, without importing anything; None when it is no module."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return Path(spec.origin) if spec.origin and not rest else None
    for location in spec.submodule_search_locations:
        base = Path(location, *rest)
        for candidate in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if candidate.is_file():
                return candidate
    return None


def _imports(tree: ast.Module, module: str, source: Path) -> Iterator[str]:
    package = module if source.name == "__init__.py" else module.rpartition(".")[0]
    roots = (LIBRARY, module.partition(".")[0])
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(package, node.level, node.module or "")
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)
            if base in roots and any(not source_of(f"{base}.{a.name}") for a in node.names):
                yield base  # a name that the root itself offers
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # importlib.import_module("alphaquant.x"): kept when it names a module
            yield node.value
        elif isinstance(node, ast.Call) and (relative := _relative_import(node)):
            name = relative.lstrip(".")
            yield from _with_parents(_absolute(package, len(relative) - len(name), name))
    yield from _with_parents(package)


def _absolute(package: str, level: int, name: str) -> str:
    """The dotted name that `from ..name` means inside `package`; `level` counts the dots."""
    parts = package.split(".")
    parents = parts[: len(parts) - level + 1] if level else []
    return ".".join([*parents, *([name] if name else [])])


def _relative_import(node: ast.Call) -> str | None:
    """`..name` in importlib.import_module("..name", __package__)."""
    called = getattr(node.func, "attr", getattr(node.func, "id", ""))
    first = node.args[0] if node.args else None
    if called != "import_module" or not isinstance(first, ast.Constant):
        return None
    text = first.value
    return text if isinstance(text, str) and text.startswith(".") else None


def _with_parents(name: str) -> Iterator[str]:
    """A dotted name and its packages, but not the root: that one only re-exports, for users."""
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(2, len(parts) + 1))


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING:`, which never run."""
    todo: list[object] = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            todo += node.orelse
        elif isinstance(node, ast.AST):
            yield node
            todo += [getattr(node, name, None) for name in node._fields if name not in _SILENT]


def _is_bare_string(node: object) -> bool:
    """Whether a statement is nothing but a string: a docstring, or one that says nothing at run time."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _shape(node: object) -> str:
    """A tree as text, without positions, docstrings and empty fields.

    `ast.dump` would do, but its text differs between Python versions.
    """
    if isinstance(node, ast.AST):
        fields = []
        for name in node._fields:
            value = getattr(node, name, None)
            if value is None or name in _SILENT:
                continue
            if isinstance(value, list):
                value = [item for item in value if not _is_bare_string(item)]
                if not value:
                    continue
            fields.append(f"{name}={_shape(value)}")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(map(_shape, node))}]"
    return repr(node)


def _data_beside(source: Path) -> list[Path]:
    """Data files of a package, seen from its `__init__`; sub-packages answer for their own."""
    if source.name != "__init__.py":
        return []
    return sorted(
        path
        for path in _walk(source.parent)
        if path.suffix not in _NO_DATA
        and not path.name.startswith(".")
        and not path.name.endswith("~")
    )


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_file():
            yield path
        elif path.is_dir() and path.name != "__pycache__" and not (path / "__init__.py").exists():
            yield from _walk(path)


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
