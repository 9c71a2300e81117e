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
from collections.abc import Iterator
from pathlib import Path

LIBRARY = "alphaquant"
INFRASTRUCTURE = (
    "alphaquant.store",
    "alphaquant.config",
    "alphaquant.errors",
    "alphaquant.progress",
    "alphaquant.demo",  # a model like any other: its content enters keys as the model's digest
    "tasks.stage",
)
_NO_DATA = {".py", ".pyc", ".pyi", ".so", ".typed"}


@functools.lru_cache(maxsize=256)
def code_fingerprint(module: str) -> dict[str, str]:
    """Hash by name of every module (and data file) that `module` can reach. Read once per process."""
    packages = (LIBRARY, module.partition(".")[0])
    reached: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        source = _source_of(name)
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
    tree = ast.parse(source.read_bytes())
    imports = frozenset(_imports(tree, module, source))
    _strip(tree)
    return _short_hash(_shape(tree).encode()), imports


def _is_infrastructure(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in INFRASTRUCTURE)


@functools.lru_cache(maxsize=4096)
def _source_of(module: str) -> Path | None:
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
    for node in _runtime_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            parents = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value  # importlib.import_module("alphaquant.x"): kept when it names a module
    yield from _with_parents(package)


def _with_parents(name: str) -> Iterator[str]:
    """A dotted name and its packages, but not the root: that one only re-exports, for users."""
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(2, len(parts) + 1))


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING:`, which never run."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _runtime_nodes(other)
        else:
            yield from _runtime_nodes(child)


def _strip(tree: ast.Module) -> None:
    """Remove docstrings: every statement that is nothing but a string."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [item for item in statements if not _is_bare_string(item)])


def _is_bare_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _shape(node: object) -> str:
    """A tree as text, without positions and empty fields: ast.dump differs between Python versions."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_shape(value)}"
            for name, value in ast.iter_fields(node)
            if value not in (None, []) and name not in ("ctx", "kind", "type_comment")
        ]
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
