"""The builtin text is the same everywhere, split by document, without leaks."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alphaquant.errors import DataError
from alphaquant.text import builtin
from alphaquant.text.builtin import Document, clean, documents, select, split_of
from alphaquant.text.builtin_manifest import build, word_runs

SPLITS: tuple[builtin.Split, ...] = ("train", "calibration", "test")
DIGESTS = {
    "train": "ab0fdc7aee43",
    "calibration": "48e086ea00d5",
    "test": "d93d501e8db3",
}


@pytest.fixture
def stdlib(tmp_path: Path) -> Path:
    """A tiny standard library: two modules, one topic, one module to skip."""
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text(
        "topics = {'loops': 'A loop repeats its body until a condition no longer holds.'}\n"
    )
    (tmp_path / "one.py").write_text(
        '"""One module about the first thing that comes to mind."""\n'
        "class A:\n"
        '    """A class that keeps the second thing for later use."""\n'
        "    def f(self):\n"
        '        """Return the third thing,\n        which is the best of them.\n\n        >>> f()\n        3\n        """\n'
    )
    (tmp_path / "two.py").write_text(
        'def g():\n    """Give back whatever was taken before now."""\n'
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "three.py").write_text('"""Tests are not part of the text at all."""\n')
    return tmp_path


def manifest_of(stdlib: Path) -> dict[str, str]:
    return {
        name: "".join(map(builtin.paragraph_digest, builtin.document_paragraphs(stdlib, name)))
        for name in builtin.document_names(stdlib)
    }


def whole_manifest_is_here() -> bool:
    """Whether this very Python has every paragraph of the manifest."""
    kept: dict[str, str] = json.loads(builtin.MANIFEST.read_text(encoding="ascii"))
    text = {document.name: document.text for part in SPLITS for document in documents(part)}
    return all(
        len(listed) // builtin.DIGEST_LENGTH == len(text.get(name, "").split("\n\n"))
        for name, listed in kept.items()
    )


@pytest.mark.parametrize("split", ["train", "calibration", "test"])
def test_the_text_is_the_one_the_demo_model_was_trained_on(split: builtin.Split) -> None:
    if not whole_manifest_is_here():
        pytest.skip("another patch release of Python; some paragraphs were edited")
    assert builtin.text_digest(split)[:12] == DIGESTS[split]


def test_parts_are_disjoint_and_about_eighty_ten_ten() -> None:
    parts = {split: documents(split) for split in SPLITS}
    names = [document.name for part in parts.values() for document in part]
    assert len(names) == len(set(names)) > 300
    size = {split: sum(len(d.text) for d in part) for split, part in parts.items()}
    total = sum(size.values())
    assert 0.77 < size["train"] / total < 0.83
    assert 0.07 < size["calibration"] / total < 0.13
    assert 0.07 < size["test"] / total < 0.13


def test_held_out_parts_share_no_run_of_words_with_the_training_part() -> None:
    def runs(split: builtin.Split) -> set[tuple[str, ...]]:
        return {
            run
            for document in documents(split)
            for paragraph in document.text.split("\n\n")
            for run in word_runs(paragraph)
        }

    train, test, calibration = runs("train"), runs("test"), runs("calibration")
    assert len(test) > 5000
    assert train.isdisjoint(test)
    assert train.isdisjoint(calibration)
    assert test.isdisjoint(calibration)


def test_the_manifest_is_small_and_holds_no_text() -> None:
    assert builtin.MANIFEST.stat().st_size < 150_000
    manifest = json.loads(builtin.MANIFEST.read_text(encoding="ascii"))
    assert all(" " not in name and " " not in digests for name, digests in manifest.items())


def test_docstrings_of_modules_classes_and_functions_are_found_without_importing(
    stdlib: Path,
) -> None:
    assert builtin.document_names(stdlib) == ["one", "topic:loops", "two"]
    assert builtin.document_paragraphs(stdlib, "one") == [
        "One module about the first thing that comes to mind.",
        "A class that keeps the second thing for later use.",
        "Return the third thing, which is the best of them.",
    ]


def test_a_changed_paragraph_is_left_out_and_the_loss_is_noted(
    stdlib: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = manifest_of(stdlib)
    source = (stdlib / "one.py").read_text().replace("second", "next")
    (stdlib / "one.py").write_text(source)
    with caplog.at_level(logging.WARNING):
        found = {document.name: document.text for document in select(manifest, stdlib)}
    assert "next" not in found["one"]
    assert found["one"].count("\n\n") == 1
    assert "1 of 5 paragraphs" in caplog.text


def test_a_stripped_standard_library_is_an_error_that_says_what_to_do(stdlib: Path) -> None:
    manifest = manifest_of(stdlib)
    (stdlib / "one.py").unlink()
    with pytest.raises(DataError, match=r"2 of 5.*\.parquet"):
        select(manifest, stdlib)


def test_a_file_that_does_not_parse_counts_as_absent(stdlib: Path) -> None:
    manifest = manifest_of(stdlib)
    (stdlib / "two.py").write_text("def broken(:\n")
    assert "two" not in {document.name for document in select(manifest, stdlib)}


def test_an_unknown_part_names_the_allowed_ones() -> None:
    with pytest.raises(DataError, match="train, calibration, test"):
        documents("validation")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Use ``len`` and :func:`print` on *every* item.", "Use len and print on every item."),
        ('The "assert" statement\n**********************', "The assert statement"),
        ("It’s an object – a small one.", "It's an object - a small one."),
        (
            "Two lines of prose\n   that belong together.",
            "Two lines of prose that belong together.",
        ),
    ],
)
def test_markup_is_cleaned_out_of_prose(raw: str, expected: str) -> None:
    assert list(clean(raw)) == [expected]


@pytest.mark.parametrize(
    "raw", [">>> len('abc')\n3", "a = b ** 2; c = [1, 2, 3] + {4: 5}", "too short"]
)
def test_code_and_scraps_are_left_out(raw: str) -> None:
    assert list(clean(raw)) == []


@given(st.text(max_size=300))
def test_cleaned_paragraphs_are_single_ascii_lines(raw: str) -> None:
    for paragraph in clean(raw):
        assert paragraph.isascii()
        assert paragraph == " ".join(paragraph.split())


@given(st.text(min_size=1, max_size=40))
def test_the_part_of_a_document_depends_on_its_name_alone(name: str) -> None:
    assert split_of(name) == split_of(name)
    assert split_of(name) in DIGESTS


def test_the_manifest_keeps_what_every_library_has(
    stdlib: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    words = "a sentence that both of the libraries carry without any change whatever"
    roots = []
    for number in ("first", "second"):
        root = tmp_path_factory.mktemp(number)
        (root / "one.py").write_text(
            f'"""{words} {words[::-1]} here.\n\n{words} once more, {number} of all versions of it\n\n'
            f'{" ".join("word" + "abcdefgh"[i % 8] * i for i in range(40))}."""\n'
        )
        roots.append(root)
    manifest = build(roots)
    text = select(manifest, roots[0])
    assert text == select(manifest, roots[1])
    assert text[0] == Document("one", text[0].text)
    assert "first" not in text[0].text
    assert "wordhhh" in text[0].text


def test_libraries_with_nothing_in_common_are_an_error(stdlib: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing in common"):
        build([stdlib, tmp_path / "empty"])


def test_building_a_manifest_of_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match="no standard library"):
        build([])
