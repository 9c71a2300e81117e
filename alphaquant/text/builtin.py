"""English text that every Python installation carries: pydoc's topics and the library's docstrings.

A document is one pydoc topic or all docstrings of one module, as cleaned paragraphs. Only
paragraphs that Python 3.11, 3.12 and 3.13 have in common count; `builtin_manifest.json` lists
their digests (never their text), so the documents are the same on every supported Python.
Modules are parsed, never imported.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import logging
import re
import sysconfig
import warnings
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from alphaquant.errors import DataError

Split = Literal["train", "calibration", "test"]
MANIFEST = Path(__file__).with_name("builtin_manifest.json")
DIGEST_LENGTH = 4
NOTED_LOSS = 0.02
FATAL_LOSS = 0.5

_TOPICS = "topic"
_SALT = "141:"
_SKIPPED_PARTS = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "encodings",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "ensurepip",
        "pydoc_data",
        "distutils",
        "_distutils_hack",
        "_vendor",
        "lib-dynload",
    }
)
_SKIPPED_MODULES = ("this", "_sysconfigdata")
_RULE = re.compile(r"^\s*([=\-*~^#_+.|\"'`])\1{2,}\s*$")
_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`~?([^`]+)`")
_MARKS = re.compile(r"(``|`|\*\*|\")(?=\S)([^`\"]+?)(?<=\S)\1|(?<!\w)\*(\w[^*\n]*?)\*(?!\w)")
_CODE = re.compile(r"^\s*(>>>|\.\.\.( |$)|\.\. |[|+])", re.MULTILINE)
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "}
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Document:
    """One named text; paragraphs are separated by an empty line."""

    name: str
    text: str


def documents(split: Split) -> list[Document]:
    """The documents of one part of the text, sorted by name.

    The parts are disjoint by document and share no long run of words. Raises DataError when this
    Python installation has lost most of its documentation.
    """
    if split not in get_args(Split):
        raise DataError(
            f"builtin text has no part {split!r}; allowed: {', '.join(get_args(Split))}"
        )
    return [document for document in _all_documents() if split_of(document.name) == split]


def split_of(name: str) -> Split:
    """The part a document belongs to: eight in ten train, one calibrates, one tests."""
    bucket = (
        int.from_bytes(hashlib.blake2b((_SALT + name).encode(), digest_size=4).digest(), "big") % 10
    )
    if bucket < 8:
        return "train"
    return "calibration" if bucket == 8 else "test"


def text_digest(split: Split) -> str:
    """SHA-256 over the names and texts of a part: equal digests, equal text."""
    digest = hashlib.sha256()
    for document in documents(split):
        digest.update(f"{document.name}\0{document.text}\0".encode())
    return digest.hexdigest()


@cache
def _all_documents() -> tuple[Document, ...]:
    manifest: dict[str, str] = json.loads(MANIFEST.read_text(encoding="ascii"))
    return tuple(select(manifest, Path(sysconfig.get_path("stdlib"))))


def select(manifest: dict[str, str], stdlib: Path) -> list[Document]:
    """The documents of `manifest` as found in the folder `stdlib`, in the manifest's order."""
    chosen: list[Document] = []
    wanted = found = 0
    for name, digests in sorted(manifest.items()):
        here = {paragraph_digest(text): text for text in document_paragraphs(stdlib, name)}
        listed = [
            digests[start : start + DIGEST_LENGTH]
            for start in range(0, len(digests), DIGEST_LENGTH)
        ]
        kept = [here[digest] for digest in listed if digest in here]
        wanted += len(listed)
        found += len(kept)
        if kept:
            chosen.append(Document(name, "\n\n".join(kept)))
    lost = 1 - found / wanted
    if lost > FATAL_LOSS:
        raise DataError(
            f"builtin text: only {found} of {wanted} known paragraphs of documentation are in "
            f"{stdlib}; the standard library's sources seem to be stripped or compiled. Use a "
            "Python installation with its .py files, or name a .txt, .jsonl or .parquet file"
        )
    if lost > NOTED_LOSS:
        log.warning(
            "builtin text: %d of %d paragraphs differ in this Python and are left out; figures "
            "differ slightly from those of other installations",
            wanted - found,
            wanted,
        )
    return chosen


def paragraph_digest(paragraph: str) -> str:
    """Four characters that tell a document's paragraphs apart."""
    return urlsafe_b64encode(hashlib.blake2b(paragraph.encode(), digest_size=3).digest()).decode()


def document_names(stdlib: Path) -> list[str]:
    """Every module and pydoc topic of the standard library in `stdlib`, sorted."""
    names = [f"{_TOPICS}:{topic}" for topic in _topics(stdlib)]
    for path in stdlib.rglob("*.py"):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if _SKIPPED_PARTS.isdisjoint(parts) and not parts[-1].startswith(_SKIPPED_MODULES):
            names.append(".".join(parts))
    return sorted(names)


def document_paragraphs(stdlib: Path, name: str) -> list[str]:
    """The distinct cleaned paragraphs of a document; empty when `stdlib` has no such document."""
    if name.startswith(f"{_TOPICS}:"):
        topic = _topics(stdlib).get(name.removeprefix(f"{_TOPICS}:"))
        texts = [] if topic is None else [topic]
    else:
        tree = _parse(stdlib.joinpath(*name.split(".")).with_suffix(".py"))
        texts = [] if tree is None else list(_docstrings(tree))
    return list(dict.fromkeys(paragraph for text in texts for paragraph in clean(text)))


def clean(text: str) -> Iterator[str]:
    """Paragraphs of prose in `text`: lines joined, markup, code and tables left out."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = [line for line in paragraph.splitlines() if line.strip() and not _RULE.match(line)]
        if _CODE.search(paragraph) or not lines:
            continue
        joined = " ".join(" ".join(lines).split()).translate(_TYPOGRAPHY)
        plain = _MARKS.sub(lambda m: m[2] or m[3], _ROLE.sub(r"\1", joined)).replace("::", ":")
        letters = sum(char.isalpha() or char == " " for char in plain)
        if len(plain) >= 20 and plain.isascii() and letters >= 0.8 * len(plain):
            yield plain


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
        text := ast.get_docstring(node, clean=False)
    ):
        yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt):
            yield from _docstrings(child)


@cache
def _topics(stdlib: Path) -> dict[str, str]:
    tree = _parse(stdlib / "pydoc_data" / "topics.py")
    for node in tree.body if tree is not None else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return dict(ast.literal_eval(node.value))
    return {}


def _parse(path: Path) -> ast.Module | None:
    try:
        source = path.read_bytes()
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return None
