"""alphaquant.load: any of our checkpoints, with everything that lies beside its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import alphaquant
from alphaquant.errors import ConfigError, ModelError
from tests.export.packed_models import by_role, exported, make_wide
from tests.tiny import make_model

CODE = """
from transformers import LlamaForCausalLM
from .greeting import WORD

class Custom(LlamaForCausalLM):
    word = WORD
"""


@pytest.mark.parametrize("export", ["compressed-tensors", "gptq", "quark"])
def test_every_format_is_loaded_and_generates(export: str, tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", "mixtral")
    mixture = by_role if export != "quark" else lambda spec: "mxfp4"
    dense, packed = exported(checkpoint, mixture, export, tmp_path)
    models = [alphaquant.load(folder, device="cpu") for folder in (dense, packed)]
    assert [model.dtype for model in models] == [torch.bfloat16, torch.bfloat16]
    ids = torch.arange(6)[None]
    found = [model.generate(ids, max_new_tokens=4, do_sample=False) for model in models]
    assert torch.equal(found[0], found[1])
    assert models[1].name_or_path == str(packed)
    told = models[1].config.decoded_from
    assert told["quant_method"] == export
    assert not hasattr(models[0].config, "decoded_from")


def test_a_loaded_model_is_saved_dense(tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", "llama")
    _, packed = exported(checkpoint, by_role, "compressed-tensors", tmp_path)
    model = alphaquant.load(packed, device="cpu")
    model.save_pretrained(tmp_path / "again")
    again = alphaquant.load(tmp_path / "again", device="cpu")
    assert again.config.decoded_from["linears"] == {
        "int3-g32": 2,
        "int4-g32": 8,
        "int8-g32": 2,
    }
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)


@pytest.mark.parametrize("export", ["compressed-tensors", "dense"])
def test_what_lies_beside_the_weights_comes_along(export: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", hidden_size=64, intermediate_size=96)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")  # as older folders have it
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_custom.Custom"}
    files = {
        "config.json": json.dumps(config),
        "generation_config.json": json.dumps({"max_new_tokens": 7, "do_sample": False}),
        "chat_template.jinja": "{% for m in messages %}<{{ m.content }}>{% endfor %}",
        "additional_chat_templates/tools.jinja": "{{ tools }}",
        "modeling_custom.py": CODE,
        "greeting.py": "WORD = 'hello'\n",
        "parts/notes.md": "left where it is",
        "pytorch_model.bin.index.json": "{}",
        ".hidden": "",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    from alphaquant.models.checkpoint import Checkpoint

    dense, packed = exported(
        Checkpoint(folder), lambda spec: "int4-g32", "compressed-tensors", tmp_path
    )
    out = dense if export == "dense" else packed
    for name in list(files)[1:6]:
        assert (out / name).read_text() == files[name], name
    for name in list(files)[6:]:
        assert not (out / name).exists(), name
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    model = alphaquant.load(out, device="cpu", trust_remote_code=True)
    assert (type(model).__name__, model.word) == ("Custom", "hello")
    assert model.dtype == torch.bfloat16
    assert model.generate(torch.arange(3)[None]).shape == (1, 10)
    tokenizer = alphaquant.load_tokenizer(out)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<hi>"
    assert type(alphaquant.load(out, device="cpu")).__name__ == "LlamaForCausalLM"


def test_a_config_may_use_the_names_of_modules(tmp_path: Path) -> None:
    """llm-compressor writes tensors under the names on disk, and targets as patterns over those in memory."""
    checkpoint = make_wide(tmp_path / "model", "mixtral")
    dense, packed = exported(checkpoint, by_role, "compressed-tensors", tmp_path)
    text = (packed / "config.json").read_text()
    for disk, module in (
        ("block_sparse_moe", "mlp"),
        ("w1|w3", "gate_proj|up_proj"),
        ("(w2)", "(down_proj)"),
    ):
        assert disk in text
        text = text.replace(disk, module)
    (packed / "config.json").write_text(text)
    models = [alphaquant.load(folder, device="cpu") for folder in (dense, packed)]
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(models[0](ids).logits, models[1](ids).logits)


def test_the_dtype_can_be_chosen(tmp_path: Path) -> None:
    checkpoint = make_wide(tmp_path / "model", "llama")
    _, packed = exported(checkpoint, by_role, "compressed-tensors", tmp_path)
    for wish, found in (
        ("float32", torch.float32),
        (torch.float16, torch.float16),
        ("auto", torch.bfloat16),
    ):
        assert alphaquant.load(packed, device="cpu", dtype=wish).dtype == found
    with pytest.raises(ConfigError, match="dtype 'int4' is not known; allowed: float32"):
        alphaquant.load(packed, device="cpu", dtype="int4")
    with pytest.raises(ConfigError, match="is not a device"):
        alphaquant.load(packed, device="quantum")


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        alphaquant.load(tmp_path / "nothing")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        alphaquant.load(tmp_path)
