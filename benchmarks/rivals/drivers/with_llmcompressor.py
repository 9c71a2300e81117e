"""Quantize with llm-compressor's GPTQ, and take the values that its checkpoint stands for."""

from __future__ import annotations

import torch
from compressed_tensors.quantization import forward
from datasets import Dataset
from job import Job, read_job
from llmcompressor import oneshot
from llmcompressor.modeling.moe.linearize import linearize_moe
from llmcompressor.modifiers.gptq import GPTQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

_IGNORED = ["lm_head", r"re:.*mlp\.gate$", r"re:.*shared_expert_gate$"]


def weight_arguments(job: Job) -> dict[str, object]:
    """The scheme's `weights` in compressed-tensors' terms."""
    observer = {name: job.settings[name] for name in ("observer",) if name in job.settings}
    if job.kind == "mxfp4":
        return {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": "group",
            "group_size": 32,
            "scale_dtype": "torch.uint8",
            **observer,
        }
    return {
        "num_bits": job.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": job.group,
        **observer,
    }


def quantize(job: Job) -> torch.nn.Module:
    """The model after `oneshot`: quantized values in its weights."""
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype="auto")  # goes to a GPU by itself
    linearize_moe(model)
    rows = job.tokens.tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    group = {"targets": ["Linear"], "weights": weight_arguments(job)}
    recipe = GPTQModifier(config_groups={"group_0": group}, ignore=_IGNORED)
    with job.timed():
        oneshot(
            model=model,
            dataset=data,
            recipe=recipe,
            tokenizer=AutoTokenizer.from_pretrained(job.model),
            max_seq_length=len(rows[0]),
            num_calibration_samples=len(rows),
        )
    return model


@torch.no_grad()
def dequantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every quantized linear `[out, in]`: what stored codes and scales give."""
    return {
        f"{name}.weight": forward.fake_quantize(
            x=module.weight,
            scale=module.weight_scale,
            zero_point=getattr(module, "weight_zero_point", None),
            args=module.quantization_scheme.weights,
            global_scale=getattr(module, "weight_global_scale", None),
        )
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None and hasattr(module, "weight")
    }


if __name__ == "__main__":
    told = read_job()
    done = quantize(told)
    values = dequantized(done)
    done.save_pretrained(told.saved, save_compressed=True)
    told.finish(values, "llmcompressor", "compressed-tensors")
