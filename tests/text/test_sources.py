"""Every text source is read, and every unusable one explains itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from alphaquant.errors import DataError
from alphaquant.text.builtin import documents
from alphaquant.text.sources import load_documents


def test_builtin_calibration_and_evaluation_are_different_documents() -> None:
    calibration = load_documents("builtin", "calibration")
    assert calibration == [document.text for document in documents("calibration")]
    assert set(calibration).isdisjoint(load_documents("builtin", "evaluation"))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("Grüße.\n\nTwo.\n", encoding="utf-8")
    assert load_documents(str(file), "calibration") == ["Grüße.\n\nTwo.\n"]


def test_a_json_lines_file_is_one_document_per_line(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text('{"text": "one", "id": 1}\n\n{"text": "two"}\n')
    assert load_documents(str(file), "evaluation") == ["one", "two"]


def test_a_parquet_file_is_one_document_per_row_and_nulls_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "some.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"id": [1, 2, 3], "text": ["one", None, "two"]}), file
    )
    assert load_documents(str(file), "evaluation") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.txt", b" \n ", "holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', 'line 1 has no string "text"'),
        ("a.jsonl", b'["x"]\n', 'line 1 has no string "text"'),
        ("a.parquet", b"nothing of the kind", "not a readable parquet file"),
        ("a.csv", b"text\nx\n", r"not a \.txt, \.jsonl, \.parquet"),
    ],
)
def test_an_unusable_file_is_named_with_its_fault(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_documents(str(file), "calibration")
    assert str(file) in str(caught.value)


def test_a_parquet_file_without_a_text_column_lists_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "some.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), file)
    with pytest.raises(DataError, match="only body, n"):
        load_documents(str(file), "calibration")


def test_a_parquet_text_column_of_numbers_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "some.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), file)
    with pytest.raises(DataError, match="holds int, not strings"):
        load_documents(str(file), "calibration")


@pytest.mark.parametrize("name", ["nowhere.txt", "/no/such/file.parquet"])
def test_a_missing_file_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match="there is no text file"):
        load_documents(name, "calibration")


def test_an_unknown_name_lists_what_is_allowed() -> None:
    with pytest.raises(DataError, match="builtin, wikitext2, c4, a hub dataset"):
        load_documents("wikitext3", "calibration")


class Hub:
    """Stands in for `datasets.load_dataset` and remembers what it was asked."""

    def __init__(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        self.splits = splits
        self.asked: list[tuple[Any, ...]] = []

    def load(
        self, path: str, name: str | None, *, split: str, data_files: Any, streaming: bool
    ) -> Any:
        self.asked.append((path, name, split, data_files, streaming))
        if split not in self.splits:
            raise ValueError(f"Unknown split {split!r}.")
        return iter(self.splits[split])


def hub_with(monkeypatch: pytest.MonkeyPatch, **splits: list[str]) -> Hub:
    hub = Hub({split: [{"text": text} for text in texts] for split, texts in splits.items()})
    monkeypatch.setattr(datasets, "load_dataset", hub.load)
    return hub


def test_wikitext2_calibrates_on_train_and_evaluates_on_test_with_its_empty_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = hub_with(monkeypatch, train=["a"], test=["", " = B = \n", ""])
    assert load_documents("wikitext2", "calibration") == ["a"]
    assert load_documents("wikitext2", "evaluation") == ["", " = B = \n", ""]
    assert [asked[:3] for asked in hub.asked] == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
    ]


def test_c4_reads_one_file_of_each_split(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = hub_with(monkeypatch, train=["a"], validation=["b"])
    assert load_documents("c4", "calibration") == ["a"]
    assert load_documents("c4", "evaluation") == ["b"]
    assert [asked[3] for asked in hub.asked] == [
        {"train": "en/c4-train.00000-of-01024.json.gz"},
        {"validation": "en/c4-validation.00000-of-00008.json.gz"},
    ]


def test_a_hub_dataset_without_a_test_split_is_evaluated_on_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = hub_with(monkeypatch, validation=["v"])
    assert load_documents("user/data:config", "evaluation") == ["v"]
    assert hub.asked[-1][:3] == ("user/data", "config", "validation")


def test_a_hub_dataset_with_training_rows_only_is_not_evaluated_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub_with(monkeypatch, train=["t"])
    with pytest.raises(DataError, match="no split test or validation for evaluation"):
        load_documents("user/data", "evaluation")


def test_a_hub_dataset_without_text_lists_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", Hub({"train": [{"body": "x"}]}).load)
    with pytest.raises(DataError, match="no string column 'text', only body"):
        load_documents("user/data", "calibration")


@pytest.mark.parametrize("name", ["wikitext2", "c4", "user/data"])
def test_an_unreachable_hub_says_to_use_a_local_file(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"Couldn't reach the Hub.*local \.txt.*or use builtin"):
        load_documents(name, "calibration")


def test_json_lines_keep_unicode(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(json.dumps({"text": "naïve – 漢字"}) + "\n", encoding="utf-8")
    assert load_documents(str(file), "calibration") == ["naïve – 漢字"]
