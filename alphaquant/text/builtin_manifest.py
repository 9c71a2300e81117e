"""Regenerate the manifest of the builtin text from the standard libraries of several Pythons.

    python -m alphaquant.text.builtin_manifest /opt/python3.11/lib/python3.11 /opt/.../python3.13

Keeps the paragraphs that every given library has, once each; a paragraph of the calibration or
test part that shares a run of words with an earlier part is dropped, so nothing leaks. The shipped
manifest was made by Python 3.11; newer ones can also parse the newest syntax of later libraries, and
keep more (dataclasses, traceback, turtle and typing).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from alphaquant.errors import DataError
from alphaquant.text.builtin import (
    MANIFEST,
    Split,
    document_names,
    document_paragraphs,
    paragraph_digest,
    split_of,
)

RUN = 8
"""Words in a row that two parts may not share."""
SHORTEST = 200
"""Characters below which a document is left out."""
_ORDER: tuple[Split, ...] = ("train", "test", "calibration")


def build(stdlibs: list[Path]) -> dict[str, str]:
    """Document name -> joined digests of its paragraphs, for paragraphs common to all `stdlibs`."""
    if not stdlibs:
        raise DataError("no standard library given; name the lib/python3.x folders to intersect")
    first, *others = stdlibs
    names = sorted(document_names(first), key=lambda name: (_ORDER.index(split_of(name)), name))
    manifest: dict[str, str] = {}
    seen: set[str] = set()
    runs: dict[Split, set[tuple[str, ...]]] = {split: set() for split in _ORDER}
    for name in names:
        split = split_of(name)
        earlier = [runs[other] for other in _ORDER[: _ORDER.index(split)]]
        elsewhere = [set(document_paragraphs(stdlib, name)) for stdlib in others]
        kept = [
            paragraph
            for paragraph in document_paragraphs(first, name)
            if all(paragraph in texts for texts in elsewhere)
            and paragraph.lower() not in seen
            and all(known.isdisjoint(word_runs(paragraph)) for known in earlier)
        ]
        if sum(map(len, kept)) < SHORTEST:
            continue
        seen.update(paragraph.lower() for paragraph in kept)
        runs[split].update(run for paragraph in kept for run in word_runs(paragraph))
        manifest[name] = "".join(map(paragraph_digest, kept))
    if not manifest:
        raise DataError(
            f"{', '.join(map(str, stdlibs))} have nothing in common; name lib/python3.x folders"
        )
    return dict(sorted(manifest.items()))


def word_runs(paragraph: str) -> set[tuple[str, ...]]:
    """Every `RUN` words in a row; the whole paragraph when it is shorter."""
    words = tuple(paragraph.lower().split())
    return {words[start : start + RUN] for start in range(max(1, len(words) - RUN + 1))}


def main(arguments: list[str]) -> None:
    """Write the manifest next to the module that reads it."""
    manifest = build([Path(argument) for argument in arguments])
    MANIFEST.write_text(json.dumps(manifest, indent=0) + "\n", encoding="ascii")


if __name__ == "__main__":
    main(sys.argv[1:])
