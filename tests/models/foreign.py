"""Checkpoints as other software writes them, made from the public definitions of their formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import make_model

Stored = dict[str, Tensor]
Pack = Callable[[Tensor, torch.Generator], tuple[Stored, Tensor]]
"""A weight `[out, in]` -> its stored tensors by leaf name, and what they stand for in fp32."""


def make_foreign(
    root: Path, pack: Pack, config: dict[str, Any], kept: tuple[str, ...] = ("lm_head",)
) -> tuple[Path, dict[str, Tensor]]:
    """A llama folder whose linears are packed, and the values of its linears by name, in bfloat16."""
    dense = make_model(root / "dense", hidden_size=64, intermediate_size=96)
    generator = torch.Generator().manual_seed(3)
    tensors, expected = {}, {}
    for name, value in load_file(dense / "model.safetensors").items():
        linear = name.removesuffix(".weight")
        if not linear.endswith("_proj") or any(part in linear for part in kept):
            tensors[name] = value
            continue
        stored, meant = pack(value.float(), generator)
        tensors |= {f"{linear}.{leaf}": leaf_value for leaf, leaf_value in stored.items()}
        expected[linear] = meant.to(torch.bfloat16)
    folder = root / "packed"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((dense / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder, expected


def in_words(codes: Tensor, bits: int) -> Tensor:
    """Integers `[rows, n]` -> one little-endian bit stream of int32 words per row, bit by bit."""
    rows = []
    for row in codes.tolist():
        number = sum(int(code) << (bits * at) for at, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        words = [(number >> (32 * at)) & 0xFFFFFFFF for at in range(count)]
        rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def integers(
    weight: Tensor, bits: int, group: int, generator: torch.Generator, *, zeros: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 to 2^bits-1 `[out, in]`, scales and zero points `[out, groups]`, as GPTQ counts them."""
    rows, cols = weight.shape
    scale = (0.01 + torch.rand(rows, cols // group, generator=generator) * 0.1).half()
    zero = torch.full(scale.shape, 2 ** (bits - 1))
    if zeros:
        zero = torch.randint(1, 2**bits, scale.shape, generator=generator)
    wide = (one.repeat_interleave(group, 1) for one in (scale.float(), zero))
    step, shift = wide
    return (weight / step + shift).round().clamp(0, 2**bits - 1).long(), scale, zero


def gptq(
    bits: int,
    *,
    v2: bool = False,
    zeros: bool = True,
    group: int = 32,
    order: bool = False,
    wrap: bool = False,
) -> Pack:
    """GPTQ: codes along the input channels; v1 stores zero points less one; `order` scatters the groups.

    `wrap`: some zero points are zero, and v1 borrows across the word, as GPTQModel does.
    """

    def pack(weight: Tensor, generator: torch.Generator) -> tuple[Stored, Tensor]:
        cols = weight.shape[1]
        index = torch.arange(cols) // group
        if order:
            index = index[torch.randperm(cols, generator=generator)]
        codes, scale, zero = integers(weight, bits, group, generator, zeros=zeros)
        if wrap:
            zero[::3] = 0
        meant = (codes - zero[:, index]) * scale.float()[:, index]
        words = in_words(zero.T, bits)
        if not v2:
            if wrap:
                words = words - sum(1 << at for at in range(0, 32, bits))
            else:
                words = in_words(zero.T - 1, bits)
        return {
            "qweight": in_words(codes, bits).T.contiguous(),
            "qzeros": words,
            "scales": scale.T.contiguous(),
            "g_idx": index.int(),
        }, meant

    return pack


def without(pack: Pack, leaf: str) -> Pack:
    """The same without one leaf."""

    def fewer(weight: Tensor, generator: torch.Generator) -> tuple[Stored, Tensor]:
        stored, meant = pack(weight, generator)
        del stored[leaf]
        return stored, meant

    return fewer


def awq(weight: Tensor, generator: torch.Generator) -> tuple[Stored, Tensor]:
    """AutoAWQ's gemm: eight output channels a word, in the order 0 2 4 6 1 3 5 7 from the lowest bits on."""
    codes, scale, zero = integers(weight, 4, 32, generator, zeros=True)
    meant = (codes - zero.repeat_interleave(32, 1)) * scale.float().repeat_interleave(32, 1)

    def interleaved(values: Tensor) -> Tensor:
        order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
        mixed = values.T.reshape(values.shape[1], -1, 8)[:, :, order]
        return in_words(mixed.reshape(values.shape[1], -1), 4)

    return {
        "qweight": interleaved(codes),
        "qzeros": interleaved(zero),
        "scales": scale.T.contiguous(),
    }, meant


def pack_quantized(
    bits: int, *, zeros: bool = False, group: int | None = 32, index: bool = False
) -> Pack:
    """compressed-tensors pack-quantized; `index` is the `weight_g_idx` of releases with scattered groups."""

    def pack(weight: Tensor, generator: torch.Generator) -> tuple[Stored, Tensor]:
        cols = weight.shape[1]
        width = group or cols
        codes, scale, zero = integers(weight, bits, width, generator, zeros=zeros)
        scale = scale.to(torch.bfloat16)
        place = torch.arange(cols) // width
        if index:
            place = place[torch.randperm(cols, generator=generator)]
        meant = (codes - zero[:, place]) * scale.float()[:, place]
        stored = {
            "weight_packed": in_words(codes, bits),
            "weight_scale": scale,
            "weight_shape": torch.tensor(weight.shape),
        }
        if zeros:
            stored["weight_zero_point"] = in_words(zero.T, bits).T.contiguous()
        if index:
            stored["weight_g_idx"] = place.int()
        return stored, meant

    return pack


def float8(strategy: str) -> Pack:
    """compressed-tensors float-quantized, with one scale for a tensor, a channel or a block of 16 x 32."""

    def pack(weight: Tensor, generator: torch.Generator) -> tuple[Stored, Tensor]:
        rows, cols = weight.shape
        shape = {"tensor": (1,), "channel": (rows, 1), "block": (-(-rows // 16), -(-cols // 32))}
        scale = (torch.rand(shape[strategy], generator=generator) * 0.1 + 0.01).to(torch.bfloat16)
        wide = scale.float().reshape(1, 1) if strategy == "tensor" else scale.float()
        if strategy == "block":
            wide = wide.repeat_interleave(16, 0)[:rows].repeat_interleave(32, 1)[:, :cols]
        values = (weight / wide).clamp(-448, 448).to(torch.float8_e4m3fn)
        return {"weight": values, "weight_scale": scale}, values.float() * wide

    return pack


def int8(weight: Tensor, generator: torch.Generator) -> tuple[Stored, Tensor]:
    """compressed-tensors int-quantized with a zero point per channel, as plain int8."""
    scale = weight.abs().amax(1, keepdim=True).to(torch.bfloat16) / 100
    zero = torch.randint(-20, 20, scale.shape, generator=generator, dtype=torch.int8)
    values = (weight / scale.float() + zero).round().clamp(-128, 127)
    stored = {"weight": values.to(torch.int8), "weight_scale": scale, "weight_zero_point": zero}
    return stored, (values - zero) * scale.float()


def nvfp4(weight: Tensor, generator: torch.Generator) -> tuple[Stored, Tensor]:
    """nvfp4-pack-quantized with a global scale that is no power of two, by which consumers divide."""
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    shared = torch.tensor([448 * 6 / float(weight.abs().max())])
    top = weight.view(len(weight), -1, 16).abs().amax(-1)
    scale = (top / 6 * shared).to(torch.float8_e4m3fn)
    wide = (scale.float() / shared).repeat_interleave(16, 1)
    index = ((weight.abs() / wide)[..., None] - table).abs().argmin(-1)
    codes = index + 8 * (weight < 0)
    stored = {
        "weight_packed": (codes[:, ::2] + 16 * codes[:, 1::2]).to(torch.uint8),
        "weight_scale": scale,
        "weight_global_scale": shared,
    }
    return stored, table[index] * torch.where(weight < 0, -1, 1) * wide


def compressed_tensors(
    form: str, weights: dict[str, Any], version: str = "0.20.0", **changes: Any
) -> dict[str, Any]:
    """A quantization_config as llm-compressor writes it, with the class `Linear` for a target."""
    base = {"symmetric": True, "dynamic": False, "group_size": None, "type": "int"}
    group = {
        "targets": ["Linear"],
        "weights": base | weights,
        "input_activations": None,
        "output_activations": None,
        "format": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "version": version,
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group | changes},
        "ignore": ["lm_head"],
    }
