from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from alphaquant.config import ModelConfig
from alphaquant.errors import ModelError
from alphaquant.models.resolve import FACTS, resolve_model
from alphaquant.store.files import sha256_of
from tests.tiny import make_model


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", "olmoe", shard="30kB")


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "tiny"))


def resolve(folder: Path, **changes: object) -> object:
    return resolve_model(ModelConfig(path=str(folder), **changes))  # type: ignore[arg-type]


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_digest_follows_content_not_place(folder: Path, sharded: Path) -> None:
    ours, theirs = (
        resolve_model(ModelConfig(path=str(folder))),
        resolve_model(ModelConfig(path=str(sharded))),
    )
    assert ours.digest == theirs.digest
    assert ours.model_type == "olmoe"
    edit_config(folder, rms_norm_eps=1e-3)
    assert resolve_model(ModelConfig(path=str(folder))).digest != theirs.digest


def test_who_made_a_checkpoint_and_when_is_not_in_its_digest(folder: Path) -> None:
    """A checkpoint that is handed over again would be evaluated again."""
    before = resolve_model(ModelConfig(path=str(folder))).digest
    (folder / FACTS).write_text('{"run_id": "1"}')
    assert resolve_model(ModelConfig(path=str(folder))).digest == before


def test_digest_cache_sees_a_change_of_equal_size(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "digests.json"
    before = resolve_model(ModelConfig(path=str(folder)), cache).digest
    assert resolve_model(ModelConfig(path=str(folder)), cache).digest == before
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert resolve_model(ModelConfig(path=str(folder)), cache).digest != before


def test_a_process_reads_a_model_once_also_without_a_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(
        "alphaquant.models.resolve.sha256_of",
        lambda path: read.append(path) or sha256_of(path),
    )
    before = resolve_model(ModelConfig(path=str(folder))).digest
    assert len(read) > 3
    read.clear()
    assert resolve_model(ModelConfig(path=str(folder))).digest == before
    assert not read
    edit_config(folder, rms_norm_eps=1e-3)
    assert resolve_model(ModelConfig(path=str(folder))).digest != before
    assert [path.name for path in read] == ["config.json"]


def test_truncated_shard_is_named_with_its_tensor(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ModelError, match=rf"{shard.name} is truncated: tensor model\."):
        resolve(folder)


def test_missing_shard_is_named_with_a_tensor(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"{shard.name} is missing \(needed for tensor model\."):
        resolve(folder)


@pytest.mark.parametrize(
    "content", [b"", b"1234", b"\xff" * 64, (8).to_bytes(8, "little") + b"notjson!"]
)
def test_file_that_is_no_safetensors_is_an_error(folder: Path, content: bytes) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(content)
    with pytest.raises(ModelError, match=shard.name):
        resolve(folder)


def test_tensor_that_the_index_misplaces_is_named(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.layers.0.extra.weight"] = sorted(data["weight_map"].values())[0]
    index.write_text(json.dumps(data))
    with pytest.raises(ModelError, match=r"lacks tensor model\.layers\.0\.extra\.weight"):
        resolve(folder)


def test_linear_that_the_config_asks_for_and_nobody_has_is_named(folder: Path) -> None:
    edit_config(folder, num_experts=5)
    with pytest.raises(ModelError, match=r"experts\.4\.gate_proj\.weight is missing"):
        resolve(folder)


def test_unsupported_type_lists_the_supported(folder: Path) -> None:
    edit_config(folder, model_type="mamba")
    with pytest.raises(ModelError, match=r"'mamba' is not supported; supported: llama, mistral"):
        resolve(folder)


def test_remote_code_is_refused_until_allowed(folder: Path) -> None:
    edit_config(folder, model_type="strange", auto_map={"AutoConfig": "x.Y"})
    with pytest.raises(ModelError, match="trust_remote_code is false"):
        resolve(folder)
    with pytest.raises(ModelError, match="is not supported"):
        resolve(folder, trust_remote_code=True)


def test_quantized_original_is_refused(folder: Path) -> None:
    edit_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="already quantized"):
        resolve(folder)


@pytest.mark.parametrize("path", ["./nowhere", "/no/such/folder", "nowhere"])
def test_folder_that_does_not_exist_is_an_error(path: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        resolve_model(ModelConfig(path=path))


def test_hub_id_offline_says_what_to_check() -> None:
    with pytest.raises(ModelError, match="neither a local folder nor reachable"):
        resolve_model(ModelConfig(path="owner/model-that-is-not-cached"))


def test_pickled_weights_are_refused(tmp_path: Path, folder: Path) -> None:
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="never unpickles"):
        resolve(folder)


def test_config_that_is_missing_or_no_object_is_an_error(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="no JSON object"):
        resolve(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(folder)
