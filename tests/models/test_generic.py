"""The generic row: decoders that have no row of their own, by the names of what lies on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from alphaquant.algorithms.quantized_block import load_block
from alphaquant.config import ModelConfig, RotationConfig
from alphaquant.errors import ModelError
from alphaquant.evaluation.room import Room
from alphaquant.evaluation.ruler import Ruler
from alphaquant.export.dense import export_dense
from alphaquant.models.block import BlockModel
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.generic import GenericArchitecture
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.loading import load_whole
from alphaquant.models.resolve import resolve_model
from alphaquant.models.rotatable import turns
from alphaquant.models.rows import ARCHITECTURES
from tests.algorithms.test_quantize_model import CPU, quantize, uniform, windows
from tests.models.fp8 import as_fp8
from tests.models.test_block import stream_of
from tests.tiny import TYPES, WITHOUT_ROW, make_model

SEQUENTIAL = ["llama", "qwen2", "qwen3", "phi3", "gemma2", "olmoe", "qwen2_moe"]
"""Rows whose names on disk are those of transformers' modules."""


def generic(folder: Path) -> Checkpoint:
    return Checkpoint(folder, architecture="generic")


@pytest.mark.parametrize("model_type", WITHOUT_ROW)
@pytest.mark.parametrize("tied", [False, True])
def test_streamed_blocks_give_the_logits_of_transformers(
    tmp_path: Path, model_type: str, tied: bool
) -> None:
    folder = make_model(
        tmp_path / "m", model_type, tie_word_embeddings=tied, uneven_norms=True, shard="20kB"
    )
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(windows()).logits
    found = stream_of(BlockModel(generic(folder), CPU, torch.float32), windows())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", WITHOUT_ROW)
def test_quantizes_exports_and_loads(tmp_path: Path, model_type: str) -> None:
    source = make_model(tmp_path / "m", model_type, uneven_norms=True, shard="30kB")
    checkpoint = generic(source)
    folders = quantize(checkpoint, uniform(checkpoint, "int8-g16"), tmp_path / "b")
    out = tmp_path / "out"
    out.mkdir()
    export_dense(checkpoint, folders, {}, out)
    quantized, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        a = torch.log_softmax(original(windows()).logits, -1)
        b = torch.log_softmax(quantized.eval()(windows()).logits, -1)
        kl = float((a.exp() * (a - b)).sum(-1).mean())
    assert 0 < kl < 0.02
    ruler = Ruler(checkpoint, windows(), Room(CPU, 4))
    ruler.put_blocks(folders)
    with torch.no_grad():
        seen = float((a.exp() * (a - b)).sum(-1)[:, :-1].mean())
    assert float(ruler.measure().kl.mean()) == pytest.approx(seen, rel=1e-3)


@pytest.mark.parametrize("model_type", SEQUENTIAL)
def test_roles_and_shared_inputs_are_those_of_a_row_where_names_tell(
    tmp_path: Path, model_type: str
) -> None:
    folder = make_model(tmp_path / "m", model_type)
    by_row, by_name = Checkpoint(folder).specs, generic(folder).specs
    assert {(s.name, s.role, s.block, s.expert, s.rows, s.cols) for s in by_row} == {
        (s.name, s.role, s.block, s.expert, s.rows, s.cols) for s in by_name
    }
    theirs = {spec.name: spec for spec in by_row}
    for spec in by_name:
        for other in by_name:
            if spec.input_key == other.input_key:
                assert theirs[spec.name].input_key == theirs[other.name].input_key


def test_names_that_tell_nothing_are_other_and_share_with_nobody() -> None:
    shapes = {
        "model.embed_tokens.weight": (9, 8),
        "lm_head.weight": (9, 8),
        "model.layers.0.mixer.in_proj.weight": (4, 8),
        "model.layers.0.mixer.x_proj.weight": (4, 8),
        "model.layers.0.mixer.conv1d.weight": (4, 1, 3),
        "model.layers.0.q_norm.weight": (4, 8),
        "model.layers.0.mlp.experts.3.w1.weight": (6, 8),
        "model.layers.0.mlp.experts.3.w3.weight": (6, 8),
        "model.layers.0.mlp.gate.weight": (4, 8),
    }
    row = GenericArchitecture("x").fitted(shapes)
    specs = {spec.name: spec for spec in row.linears({"num_hidden_layers": 1}, shapes)}
    roles = {name.removeprefix("model.layers.0."): spec.role for name, spec in specs.items()}
    assert roles == {
        "mixer.in_proj": "other",
        "mixer.x_proj": "other",
        "mlp.gate": "router",
        "mlp.experts.3.w1": "gate",
        "mlp.experts.3.w3": "up",
        "lm_head": "lm_head",
    }
    keys = [spec.input_key for spec in specs.values()]
    assert len(set(keys)) == len(keys) - 1
    assert specs["model.layers.0.mlp.experts.3.w1"].expert == 3


def test_it_is_never_rotated(tmp_path: Path) -> None:
    checkpoint = generic(make_model(tmp_path / "m"))
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    with pytest.raises(ModelError, match=r"generic row .* does not know its norms"):
        turns(
            checkpoint.architecture,
            checkpoint.raw_config,
            shapes,
            checkpoint.specs,
            RotationConfig(kind="hadamard"),
        )


def test_it_is_chosen_only_when_asked_for_and_enters_the_key(tmp_path: Path) -> None:
    folder = str(make_model(tmp_path / "m", "starcoder2"))
    with pytest.raises(ModelError, match=r"'starcoder2' is not supported.*architecture=generic"):
        resolve_model(ModelConfig(path=folder))
    chosen = resolve_model(ModelConfig(path=folder, architecture="generic"))
    assert chosen.model_type == "starcoder2"
    assert chosen.cache_identity() == {"digest": chosen.digest, "architecture": "generic"}


def test_an_fp8_original_is_loaded_whole(tmp_path: Path) -> None:
    """As evaluation and writing need it."""
    twin = tmp_path / "twin"
    folder = as_fp8(make_model(tmp_path / "m", "olmo2"), twin, (16, 16))
    ours, same = (load_whole(generic(one), CPU).state_dict() for one in (folder, twin))
    assert ours.keys() == same.keys()
    assert all(torch.equal(ours[name], same[name]) for name in same)


def test_what_does_not_fit_is_told() -> None:
    ends = {"model.embed_tokens.weight": (9, 8), "lm_head.weight": (9, 8)}
    row = GenericArchitecture("x").fitted(ends)
    with pytest.raises(ModelError, match=r"no linear under model\.layers\.0\.\*"):
        row.linears({"num_hidden_layers": 1}, ends)
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight is missing"):
        row.linears({"num_hidden_layers": 1}, {"lm_head.weight": (9, 8)})
    two = ends | {"model.ln_a.weight": (8,), "model.ln_b.weight": (8,)}
    with pytest.raises(ModelError, match=r"found model\.ln_a, model\.ln_b"):
        GenericArchitecture("x").fitted(two)


def test_a_model_in_memory_may_be_generic(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "dots1")
    live = LiveCheckpoint(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16), "generic"
    )
    assert {spec.name for spec in live.specs} == {spec.name for spec in generic(folder).specs}


def test_types_for_the_generic_row_have_no_row() -> None:
    assert not set(WITHOUT_ROW) & (set(ARCHITECTURES) | set(TYPES))


def test_corrected_and_tuned_blocks_know_every_linear(tmp_path: Path) -> None:
    checkpoint = generic(make_model(tmp_path / "m", "dots1"))
    plan = uniform(checkpoint, "int3-g16")
    folders = quantize(
        checkpoint, plan, tmp_path / "b", correction="stream", tune="block", tune_steps=4
    )
    done = [set(load_block(folder)) for folder in folders]
    for block, names in enumerate(done):
        kept = {s.name for s in checkpoint.block_specs(block) if s.role == "router"}
        assert names == {s.name for s in checkpoint.block_specs(block)} - kept
