"""Models that are damaged, incomplete or contradict themselves end in a ModelError that says where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from alphaquant.config import ModelConfig
from alphaquant.errors import ModelError, first_line
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint, check_vocabulary, finite
from alphaquant.models.native import teach_transformers
from alphaquant.models.resolve import resolve_model
from alphaquant.models.rows import ARCHITECTURES
from tests.tiny import TYPES, VOCABULARY, make_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "tiny", "qwen2_moe")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def edit_config(folder: Path, **changes: object) -> None:
    """Set keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder: Path, *, remove: str = "", poison: str = "") -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(remove, None)
    if poison:
        tensors[poison].view(-1)[0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def resolve(folder: Path) -> None:
    resolve_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.1.self_attn.q_proj.bias",
        "model.layers.1.mlp.gate.weight",
    ],
)
def test_nan_outside_the_quantized_linears_is_named(folder: Path, name: str) -> None:
    edit_tensors(folder, poison=name)

    def read_everything() -> None:
        model = BlockModel(Checkpoint(folder), CPU, torch.float32)
        model.embed(torch.zeros(1, 2, dtype=torch.int64), 1)
        for index in range(2):
            model.block(index)
        model.head()

    with pytest.raises(ModelError, match=f"{name} holds 1 NaN or infinite"):
        read_everything()


def test_what_is_replaced_is_not_read_and_what_replaces_it_is_checked(folder: Path) -> None:
    linear = "model.layers.0.self_attn.q_proj"
    good = Checkpoint(folder).weight(linear)
    edit_tensors(folder, poison=f"{linear}.weight")
    model = BlockModel(Checkpoint(folder), CPU, torch.float32)
    block = model.block(0, {linear: good})
    assert torch.equal(model.linear(block, 0, linear).weight, good)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=rf"{linear}\.weight holds 1 NaN or infinite"):
        model.block(0, {linear: Checkpoint(folder).weight(linear)})


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_a_missing_end_of_the_model_is_named(folder: Path, name: str) -> None:
    edit_tensors(folder, remove=name)
    with pytest.raises(ModelError, match=f"tensor {name} is missing"):
        resolve(folder)


@pytest.mark.parametrize("key", ["tie_word_embeddings", "unused"])
def test_a_tied_model_needs_no_head(tmp_path: Path, key: str) -> None:
    folder = make_model(tmp_path / "m", tie_word_embeddings=True)
    edit_config(folder, **{key: None})
    if key == "unused":
        resolve(folder)
    else:  # absent means false, as in the type's config class
        with pytest.raises(ModelError, match=r"lm_head\.weight is missing"):
            resolve(folder)


@pytest.mark.parametrize("model_type", TYPES)
def test_where_the_config_does_not_say_a_head_is_tied_as_in_the_config_class(
    model_type: str,
) -> None:
    teach_transformers(model_type)
    default = AutoConfig.for_model(model_type).tie_word_embeddings
    assert ARCHITECTURES[model_type].is_tied({}) is default
    assert not ARCHITECTURES[model_type].is_tied({"tie_word_embeddings": False})


def test_a_gemma_needs_no_head_and_no_word_about_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "gemma2", tie_word_embeddings=True)
    edit_config(folder, tie_word_embeddings=None)
    resolve(folder)
    head = BlockModel(Checkpoint(folder), CPU, torch.float32).head()
    assert head(torch.zeros(2, 3, 32)).shape == (2, 3, VOCABULARY)


def test_a_tied_model_with_a_head_of_its_own_is_refused(folder: Path) -> None:
    edit_config(folder, tie_word_embeddings=True)
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        BlockModel(Checkpoint(folder), CPU, torch.float32).head()


def test_token_ids_beyond_the_embedding_are_counted(folder: Path) -> None:
    checkpoint = Checkpoint(folder)
    check_vocabulary(checkpoint, torch.tensor([[0, VOCABULARY - 1]]))
    with pytest.raises(ModelError, match="gives id 260, the embedding has 260 rows"):
        check_vocabulary(checkpoint, torch.tensor([[0, VOCABULARY]]))


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("num_hidden_layers", None, "has no num_hidden_layers"),
        ("num_hidden_layers", "two", "has num_hidden_layers: 'two'"),
        ("num_hidden_layers", 0, "has num_hidden_layers: 0"),
        ("num_experts", None, "has no num_experts"),
        ("num_experts", True, "has num_experts: True"),
        ("decoder_sparse_step", "x", "has decoder_sparse_step: 'x'"),
        ("mlp_only_layers", 1, "has mlp_only_layers: 1"),
    ],
)
def test_a_wrong_count_in_the_config_is_named(
    folder: Path, key: str, value: object, found: str
) -> None:
    edit_config(folder, **{key: value})
    with pytest.raises(ModelError, match=f"config.json {found}; it must be"):
        resolve(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "wide"),
        ("hidden_act", "no_such_function"),
        ("num_attention_heads", 0),
        ("rope_parameters", {"rope_type": "no_such_type"}),
    ],
)
def test_a_config_that_transformers_refuses_is_an_error(
    folder: Path, key: str, value: object
) -> None:
    edit_config(folder, **{key: value})
    with pytest.raises(ModelError, match=r"transformers (refuses|cannot build).*config\.json"):
        BlockModel(Checkpoint(folder), CPU, torch.float32)


def test_an_error_without_words_has_a_first_line() -> None:
    assert first_line(KeyError()) == "KeyError"
    assert first_line(KeyError("gelu")) == "unknown or missing 'gelu'"
    assert first_line(ValueError("\n a\nb")) == "a"
    assert first_line(ValueError("Wrong field 'x':\n  not an int\nz")) == (
        "Wrong field 'x': not an int"
    )


def test_a_folder_without_tokenizer_is_an_error(folder: Path) -> None:
    assert len(Checkpoint(folder).tokenizer) > 250
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer \(none of tokenizer\.json"):
        Checkpoint(folder).tokenizer  # noqa: B018
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    with pytest.raises(ModelError, match=r"tokenizer"):
        Checkpoint(folder).tokenizer  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_large_weights_are_no_damage_and_infinities_are(dtype: torch.dtype) -> None:
    largest = torch.full((64, 64), torch.finfo(dtype).max).to(dtype)  # their sum overflows
    assert finite(largest, "w") is largest
    for bad in (float("inf"), float("-inf"), float("nan")):
        damaged = torch.zeros(64, 64)
        damaged[3, 5] = bad
        damaged[3, 6] = -bad
        with pytest.raises(ModelError, match="w holds 2 NaN or infinite"):
            finite(damaged.to(dtype), "w")
