"""Makes the folders beside it: a one-block llama quantized by other software, and the values that its writer decodes.

Run in an environment with that software: `python make.py llmcompressor|autoround|gptqmodel OUT`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{index}" for index in range(30)] + ["<s>", "</s>"]


def make_original(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=30,
        eos_token_id=31,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    words = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="w0")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


def rows() -> torch.Tensor:
    return torch.randint(0, 30, (16, 32), generator=torch.Generator().manual_seed(1))


def llmcompressor(original: Path, saved: Path) -> dict[str, torch.Tensor]:
    from compressed_tensors.quantization import forward
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoTokenizer

    model = LlamaForCausalLM.from_pretrained(original, dtype="auto")
    tokens = rows().tolist()
    data = Dataset.from_dict({"input_ids": tokens, "attention_mask": [[1] * 32 for _ in tokens]})
    number = {"type": "float", "symmetric": True}
    groups = {
        "asymmetric": {
            "targets": ["re:.*[qkv]_proj$"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": False,
                "strategy": "group",
                "group_size": 16,
                "actorder": "static",
            },
        },
        "float8": {
            "targets": ["re:.*o_proj$"],
            "weights": {"num_bits": 8, "strategy": "channel", **number},
            "input_activations": {"num_bits": 8, "strategy": "token", "dynamic": True, **number},
        },
        "nvfp4": {
            "targets": ["re:.*(gate|up)_proj$"],
            "weights": {
                "num_bits": 4,
                "strategy": "tensor_group",
                "group_size": 16,
                "scale_dtype": "torch.float8_e4m3fn",
                "zp_dtype": "torch.float8_e4m3fn",
                **number,
            },
        },
        "int8": {
            "targets": ["re:.*down_proj$"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor"},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        },
    }
    oneshot(
        model=model,
        dataset=data,
        recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
        tokenizer=AutoTokenizer.from_pretrained(original),
        max_seq_length=32,
        num_calibration_samples=len(tokens),
    )
    values = {
        name: forward.fake_quantize(
            x=module.weight,
            scale=module.weight_scale,
            zero_point=getattr(module, "weight_zero_point", None),
            args=module.quantization_scheme.weights,
            global_scale=getattr(module, "weight_global_scale", None),
        )
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None
    }
    model.save_pretrained(saved, save_compressed=True)
    return values


def autoround(original: Path, saved: Path) -> dict[str, torch.Tensor]:
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    tuner = AutoRound(
        LlamaForCausalLM.from_pretrained(original, dtype="auto"),
        AutoTokenizer.from_pretrained(original),
        scheme="W4A16",
        group_size=16,
        dataset=list(rows().split(4)),
        nsamples=16,
        seqlen=32,
        batch_size=4,
        iters=2,
        device_map="cpu",
        layer_config={
            "model.layers.0.mlp.down_proj": {"bits": 8},
            "model.layers.0.self_attn.o_proj": {"bits": 16},
        },
    )
    _, folders = tuner.quantize_and_save(str(saved.parent / "out"), format="auto_round,fake")
    shutil.copytree(folders[0], saved)
    plain = load_file(Path(folders[-1]) / "model.safetensors")
    return {n.removesuffix(".weight"): v for n, v in plain.items() if "_proj" in n}


@torch.no_grad()
def gptqmodel(original: Path, saved: Path) -> dict[str, torch.Tensor]:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=4,
        group_size=16,
        desc_act=True,
        sym=False,
        device="cpu",
        dynamic={"+:.*down_proj": {"bits": 8}, "-:.*o_proj": {}},
    )
    model = GPTQModel.load(str(original), config)
    model.quantize(
        [{"input_ids": row, "attention_mask": [1] * 32} for row in rows().tolist()], batch_size=1
    )
    model.save(str(saved))
    # in bfloat16 it would round the stored float16 scales
    loaded = GPTQModel.load(str(saved), backend=BACKEND.TORCH, dtype=torch.float16).model
    return {
        name: module.dequantize_weight().T
        for name, module in loaded.named_modules()
        if hasattr(module, "dequantize_weight")
    }


def main(writer: str, out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        original, saved = Path(scratch) / "original", Path(scratch) / "saved"
        make_original(original)
        values = globals()[writer](original, saved)
        out.mkdir(parents=True)
        shutil.copyfile(saved / "model.safetensors", out / "model.safetensors")
        config = json.loads((saved / "config.json").read_text())
        # GPTQModel notes a folder of the machine that it ran on
        config["quantization_config"].get("meta", {}).pop("offload_to_disk_path", None)
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        kept = {
            name: value.detach().contiguous()
            for name, value in values.items()
            if not torch.equal(value.bfloat16(), original_weight(original, name))
        }
        save_file(kept, out / "expected.safetensors")


def original_weight(original: Path, name: str) -> torch.Tensor:
    return load_file(original / "model.safetensors")[f"{name}.weight"]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
