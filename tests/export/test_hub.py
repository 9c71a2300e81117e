"""What is sent to the hub, as a fake of it sees it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import RepoUrl
from huggingface_hub.errors import HFValidationError

import alphaquant
from alphaquant.config import ModelConfig
from alphaquant.errors import ModelError
from alphaquant.export.model_card import facts_of, write_card
from alphaquant.quant_model import AlphaQuantModel
from alphaquant.quantize_config import QuantizeConfig
from tests.export.test_model_card import plan_table, score_table
from tests.tiny import make_model


class FakeHub:
    """Keeps what HfApi is asked for, with the files as they are at that moment."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.files: dict[str, bytes] = {}

    def __call__(self, **settings: Any) -> FakeHub:
        self.calls.append(("HfApi", settings))
        return self

    def create_repo(self, repo_id: str, **settings: Any) -> RepoUrl:
        self.calls.append(("create_repo", {"repo_id": repo_id, **settings}))
        if "/" not in repo_id:
            raise HFValidationError(f"Repo id must be owner/name: {repo_id}")
        return RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(
        self, *, folder_path: Path, ignore_patterns: list[str], **settings: Any
    ) -> None:
        self.calls.append(("upload_folder", settings))
        self.files = {
            path.name: path.read_bytes()
            for path in folder_path.iterdir()
            if path.name not in ignore_patterns
        }


@pytest.fixture
def hub(monkeypatch: Any) -> Iterator[FakeHub]:
    fake = FakeHub()
    monkeypatch.setattr("huggingface_hub.HfApi", fake)
    return fake


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = make_model(tmp_path / "checkpoint")
    facts = facts_of(folder, ModelConfig(path="owner/base"), plan_table(), score_table())
    write_card(folder, facts, run={"run_id": "1", "report": "/home/somebody/report.html"})
    return folder


def test_a_checkpoint_of_a_run_is_pushed_with_its_card(checkpoint: Path, hub: FakeHub) -> None:
    address = alphaquant.push_to_hub(
        checkpoint, "me/small", private=True, token="secret", consumers=["vllm"]
    )
    assert address == "https://huggingface.co/me/small"
    assert [name for name, _ in hub.calls] == ["HfApi", "create_repo", "upload_folder"]
    settings = dict(hub.calls)
    assert settings["HfApi"] == {"token": "secret"}
    assert settings["create_repo"] == {"repo_id": "me/small", "private": True, "exist_ok": True}
    assert settings["upload_folder"]["repo_id"] == "me/small"
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= hub.files.keys()
    assert "alphaquant.json" not in hub.files
    card = hub.files["README.md"].decode()
    assert 'alphaquant.load("me/small")' in card
    assert "vllm serve me/small" in card
    assert "base_model: owner/base" in card


def test_a_model_in_hand_is_saved_first(tmp_path: Path, hub: FakeHub) -> None:
    original = make_model(tmp_path / "model", hidden_size=64, intermediate_size=96)
    config = QuantizeConfig(group_size=32, quantization={"method": "rtn"})
    model = AlphaQuantModel.load(original, config, device="cpu")
    model.quantize([list(range(32))] * 2)
    model.push_to_hub("me/model", format="gptq")
    assert b'"quant_method": "gptq"' in hub.files["config.json"]
    model.save(tmp_path / "saved", format="dense")
    model.push_to_hub("me/model")
    assert b"quantization_config" not in hub.files["config.json"]


def test_what_the_hub_refuses_is_explained(checkpoint: Path, hub: FakeHub) -> None:
    with pytest.raises(ModelError, match=r"did not take 'small' \(HFValidationError.*owner/name"):
        alphaquant.push_to_hub(checkpoint, "small")


def test_a_folder_that_is_not_ours_is_not_sent(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="has no card of AlphaQuant"):
        alphaquant.push_to_hub(make_model(tmp_path / "model"), "me/model")
    assert hub.calls == []
