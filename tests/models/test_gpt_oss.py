"""gpt-oss holds all experts of a block in one tensor, in bf16 or packed as MXFP4; both are read as linears."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from alphaquant.algorithms.allocation_groups import group_linears
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.rotation import RotatedCheckpoint
from alphaquant.config import AllocationConfig, ModelConfig, QuantizationConfig, RotationConfig
from alphaquant.config.file import parse_config
from alphaquant.errors import FormatError, ModelError
from alphaquant.export.dense import export_dense
from alphaquant.export.packed import export_packed
from alphaquant.export.rotated import export_rotated
from alphaquant.formats.mxfp4 import decode_mxfp4
from alphaquant.formats.scheme import Scheme
from alphaquant.formats.weight import quantize_weight
from alphaquant.models.checkpoint import Checkpoint
from alphaquant.models.loading import load_model
from alphaquant.models.resolve import resolve_model
from alphaquant.plan import QuantPlan
from flows.preflight import check_plan
from tests.algorithms.test_quantize_model import uniform
from tests.algorithms.test_rotation import change, logits
from tests.models.test_block import stream
from tests.tiny import VOCABULARY, make_model

TOKENS = torch.randint(0, VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(1))
EXPERTS = "model.layers.1.mlp.experts"


def packed(source: Path, *, index: bool = False) -> Path:
    """Replace the experts of a bf16 folder by random MXFP4, as the published files have them."""
    path, generator = source / "model.safetensors", torch.Generator().manual_seed(0)
    tensors = {}
    for name, tensor in load_file(path).items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            tensors[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(
            0, 256, (*shape, 16), generator=generator, dtype=torch.uint8
        )
        tensors[f"{name}_scales"] = torch.randint(
            122, 126, shape, generator=generator, dtype=torch.uint8
        )
    parts = {path.name: tensors}
    if index:  # scales may lie in another file than their blocks
        path.unlink()
        scales = {n: tensors.pop(n) for n in list(tensors) if n.endswith("_scales")}
        parts = {f"model-{i}-of-2.safetensors": p for i, p in enumerate((tensors, scales), 1)}
        places = {name: file for file, part in parts.items() for name in part}
        listed = {"metadata": {"total_size": 1}, "weight_map": places}
        (source / "model.safetensors.index.json").write_text(json.dumps(listed))
    for name, part in parts.items():
        save_file(part, source / name, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (source / "config.json").write_text(json.dumps(config))
    return source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "m", "gpt_oss", intermediate_size=64)


def test_pieces_are_the_experts_that_transformers_multiplies_with(folder: Path) -> None:
    whole, checkpoint = load_file(folder / "model.safetensors"), Checkpoint(folder)
    for expert in range(4):
        fused, name = whole[f"{EXPERTS}.gate_up_proj"][expert], f"{EXPERTS}.{expert}"
        assert torch.equal(checkpoint.weight(f"{name}.gate_proj"), fused[:, ::2].T)
        assert torch.equal(checkpoint.weight(f"{name}.up_proj"), fused[:, 1::2].T)
        down = whole[f"{EXPERTS}.down_proj"][expert]
        assert torch.equal(checkpoint.weight(f"{name}.down_proj"), down.T)
        bias = whole[f"{EXPERTS}.gate_up_proj_bias"][expert]
        assert torch.equal(checkpoint.tensor(f"{name}.up_proj.bias"), bias[1::2])
    groups = group_linears(checkpoint.block_specs(1), "fused")
    assert [len(g.specs) for g in groups] == [3, 1, 1, 12]  # qkv, o, router, experts


@pytest.mark.parametrize("index", [False, True])
def test_packed_experts_are_decoded_as_transformers_does(folder: Path, index: bool) -> None:
    packed(folder, index=index)
    resolve_model(ModelConfig(path=str(folder)))
    checkpoint = Checkpoint(folder)
    assert not hasattr(checkpoint.config, "quantization_config")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    experts = reference.model.layers[1].mlp.experts
    assert torch.equal(checkpoint.weight(f"{EXPERTS}.3.down_proj"), experts.down_proj[3].T)
    with torch.no_grad():
        expected = reference.float()(TOKENS).logits
    torch.testing.assert_close(stream(folder, TOKENS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("mxfp4", [False, True])
def test_what_is_exported_is_fused_bf16_that_transformers_loads(
    folder: Path, tmp_path: Path, mxfp4: bool, index: bool
) -> None:
    if mxfp4:
        packed(folder, index=index)
    checkpoint = Checkpoint(folder)
    (tmp_path / "b").mkdir()
    blocks = quantize_blocks(
        checkpoint,
        uniform(checkpoint, "int4-g16"),
        None,
        QuantizationConfig(group_size=16, method="rtn"),
        device=torch.device("cpu"),
        batch_size=4,
        blocks=FreshBlocks(tmp_path / "b"),
    )
    (tmp_path / "out").mkdir()
    export_dense(checkpoint, blocks, {}, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values())
    assert Checkpoint(tmp_path / "out").layout.files.keys() == checkpoint.layout.files.keys()
    with torch.no_grad():
        expected = model(TOKENS).logits
    torch.testing.assert_close(stream(tmp_path / "out", TOKENS), expected, rtol=1e-4, atol=1e-5)
    before, after = (load_file(min(f.glob("*.safetensors"))) for f in (folder, tmp_path / "out"))
    for name in (f"{EXPERTS}.down_proj_bias", "model.layers.1.self_attn.sinks"):
        assert torch.equal(before[name], after[name])


def test_a_packed_model_is_rotated_into_bf16(folder: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(packed(folder, index=True))
    rotation = RotationConfig(kind="hadamard")
    exact = RotatedCheckpoint(checkpoint, rotation, torch.float64)
    assert change(exact, logits(checkpoint)) < 1e-5
    rotated = RotatedCheckpoint(checkpoint, rotation)
    (tmp_path / "turned").mkdir()
    export_rotated(rotated, tmp_path / "turned")
    written = Checkpoint(tmp_path / "turned")
    assert written.entries.keys() == rotated.entries.keys()
    for name in rotated.entries:
        assert torch.equal(written.tensor(name), rotated.tensor(name)), name
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "turned", output_loading_info=True)
    assert not any(info.values())


def test_blocks_without_scales_and_other_packings_are_refused(folder: Path) -> None:
    packed(folder)
    path, name = folder / "model.safetensors", f"{EXPERTS}.down_proj_scales"
    tensors = load_file(path)
    scales = tensors.pop(name)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name} is missing"):
        Checkpoint(folder)
    save_file(tensors | {name: scales}, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="already quantized"):
        resolve_model(ModelConfig(path=str(folder)))


def test_a_scale_that_is_no_number_is_named(folder: Path) -> None:
    packed(folder)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{EXPERTS}.gate_up_proj_scales"][2, 1, 0] = 255
    save_file(tensors, path, metadata={"format": "pt"})
    blocks, scales = (tensors[f"{EXPERTS}.gate_up_proj{e}"][2] for e in ("_blocks", "_scales"))
    assert int(decode_mxfp4(blocks, scales).isnan().sum()) == 32
    with pytest.raises(ModelError, match=r"experts\.2\.up_proj\.weight holds 32 NaN"):
        stream(folder, TOKENS)


def test_packed_experts_that_stay_mxfp4_lose_nothing(folder: Path) -> None:
    checkpoint = Checkpoint(packed(folder))
    for spec in checkpoint.block_specs(1):
        if spec.expert is not None:
            weight = checkpoint.weight(spec.name).float()
            again = quantize_weight(weight, Scheme.parse("mxfp4")).dequantize()
            assert torch.equal(again, weight)


def packed_as_int4(folder: Path, root: Path, skip: str) -> Path:
    """What compressed-tensors holds of a model whose linears are int4 unless their name has `skip` in it."""
    checkpoint = Checkpoint(folder)
    everything = uniform(checkpoint, "int4-g32").schemes
    schemes = {name: Scheme("bf16") if skip in name else s for name, s in everything.items()}
    specs = [spec for spec in checkpoint.specs if spec.name in schemes]
    (root / "b").mkdir()
    blocks = quantize_blocks(
        checkpoint,
        QuantPlan(specs, schemes),
        None,
        QuantizationConfig(group_size=32, method="rtn"),
        device=torch.device("cpu"),
        batch_size=4,
        blocks=FreshBlocks(root / "b"),
    )
    for name in ("packed", "dense"):
        (root / name).mkdir()
    export_dense(checkpoint, blocks, {}, root / "dense")
    export_packed(checkpoint, blocks, {}, root / "packed", "compressed-tensors")
    return root / "packed"


def test_packed_export_keeps_experts_whole_or_refuses_them(folder: Path, tmp_path: Path) -> None:
    out = packed_as_int4(folder, tmp_path, skip=".experts.")
    loaded = [load_model(at, torch.device("cpu")) for at in (out, tmp_path / "dense")]
    with torch.no_grad():
        first, second = (model(TOKENS).logits for model in loaded)
    assert torch.equal(first, second)
    (tmp_path / "again").mkdir()
    with pytest.raises(FormatError, match=r"experts\.0\..*fused tensor.*export\.format=dense"):
        packed_as_int4(folder, tmp_path / "again", skip="router")


def test_a_packed_model_of_which_all_is_kept_is_exported_as_the_bf16_that_it_is(
    folder: Path, tmp_path: Path
) -> None:
    out = packed_as_int4(packed(folder), tmp_path, skip="model.")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    loaded = [load_model(at, torch.device("cpu")) for at in (out, tmp_path / "dense")]
    with torch.no_grad():
        first, second = (model(TOKENS).logits for model in loaded)
    assert torch.equal(first, second)


def test_a_run_that_cannot_be_exported_is_refused_at_its_start(folder: Path) -> None:
    config = parse_config(
        {
            "model": {"path": str(folder)},
            "allocation": {
                "target_bits": 15,
                "overrides": [{"pattern": "*.experts.*", "skip": True}],
            },
            "export": {"format": "compressed-tensors"},
        }
    )
    check_plan(config, resolve_model(config.model))
    everything = config.model_copy(update={"allocation": AllocationConfig()})
    with pytest.raises(FormatError, match=r"export\.format=dense"):
        check_plan(everything, resolve_model(config.model))


def test_the_published_packing_is_what_models_are_compared_with(folder: Path) -> None:
    packed(folder)
    model = load_model(folder, torch.device("cpu"))
    with torch.no_grad():
        found = model(TOKENS).logits
    torch.testing.assert_close(found, stream(folder, TOKENS), rtol=1e-4, atol=1e-5)
