"""The library in a few calls on a model in memory, for scripts that do without a run and its store.

Names and signatures follow the seed project's; behind them is the code that runs use. `model_type` is the
model's own (`auto`), another row's, or `generic` for decoders that have no row.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alphaquant.algorithms.allocation import allocate
from alphaquant.algorithms.allocation_seed import allocation_from_seed
from alphaquant.algorithms.alpha import alpha_table
from alphaquant.algorithms.quantize_model import FreshBlocks, quantize_blocks
from alphaquant.algorithms.quantized_block import load_block
from alphaquant.algorithms.rotation import rotate_model
from alphaquant.config import AlphaConfig, QuantizationConfig, RotationConfig
from alphaquant.config.file import parse_config
from alphaquant.errors import ConfigError, DataError, PlanError, nearest
from alphaquant.formats.weight import QuantizedWeight
from alphaquant.models.device import compute_device, dtype_named
from alphaquant.models.live import LiveCheckpoint
from alphaquant.models.loading import load
from alphaquant.plan import QuantPlan
from alphaquant.text.sources import load_documents
from alphaquant.text.windows import calibration_tokens


@dataclass(frozen=True)
class GPTQConfig:
    """How GPTQ walks; `groupsize` is for layers whose config names none, -1 is per channel."""

    blocksize: int = 128
    percdamp: float = 0.01
    groupsize: int = -1
    actorder: bool = False
    static_groups: bool = False
    use_hadamard: bool = False
    """Rotate the model first, inside its weights: norms are folded, a tied head becomes untied."""

    def __post_init__(self) -> None:
        """Refuse what a run would refuse."""
        self.quantization("gptq")

    def quantization(self, method: str) -> QuantizationConfig:
        """The same settings as a run knows them."""
        settings = {
            "method": method,
            "group_size": self.groupsize,
            "block_size": self.blocksize,
            "damping": self.percdamp,
            "act_order": self.actorder,
            "static_groups": self.static_groups,
        }
        return parse_config({"quantization": settings}).quantization


class CalibrationDataLoader:
    """Calibration windows of a text source (see `calibration.dataset`), each `[1, seqlen]`."""

    def __init__(
        self,
        dataset_name: str = "wikitext2",
        nsamples: int = 128,
        seed: int = 0,
        seqlen: int = 2048,
        tokenizer: Any = None,
    ) -> None:
        if tokenizer is None:
            raise DataError("CalibrationDataLoader needs a tokenizer; pass tokenizer=...")
        self.dataset_name, self.nsamples = dataset_name, nsamples
        self.seed, self.seqlen, self.tokenizer = seed, seqlen, tokenizer
        self._windows: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        """Windows in a seeded order; the text is read at the first call."""
        if self._windows is None:
            documents = load_documents(self.dataset_name, "calibration")
            self._windows = calibration_tokens(
                self.tokenizer, documents, self.nsamples, self.seqlen, self.seed
            )
        yield from self._windows.split(1)

    def __len__(self) -> int:
        return self.nsamples


def load_layer_config(json_path: str | Path) -> dict[str, Any]:
    """Read and check `{"default": {...}, "overrides": [{"pattern": ...}, ...]}`."""
    path = Path(json_path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the layer config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"the layer config {path} is not valid JSON: {error}") from error
    allocation_from_seed(data)
    return dict(data)


def plan_model_layer_schemes(
    model: nn.Module,
    cfg: Mapping[str, Any],
    target_module_classes: Iterable[str] | None = None,
    model_type: str = "auto",
) -> list[tuple[str, dict[str, Any]]]:
    """`(linear, {"wq", "aq", "group_size"})` for every linear that `cfg` quantizes, experts included.

    The unit is a linear, whatever module holds it, so `target_module_classes` selects nothing.
    """
    plan = _plan(LiveCheckpoint(model, model_type), cfg, GPTQConfig().quantization("gptq"))
    return [
        (name, plan.seed_form(name)) for name in plan.schemes if plan.schemes[name].format != "bf16"
    ]


def gptq_quantize_model(
    model: nn.Module,
    dataloader: Iterable[Tensor],
    layer_config: Mapping[str, Any] | Iterable[tuple[str, dict[str, Any]]],
    device: str = "cuda",
    gptq_config: GPTQConfig | None = None,
    model_type: str = "auto",
    dtype: str = "bfloat16",
) -> dict[str, QuantizedWeight]:
    """Quantize `model` in place with GPTQ, block by block; returns codes and scales by linear.

    `dataloader` yields `[1, seqlen]` token windows. `layer_config` is a config of `load_layer_config` or
    the schemes of `plan_model_layer_schemes`. `dtype` is that of forward passes on an accelerator. Raises
    ModelError for `use_hadamard` on a model that a rotation would change.
    """
    windows = list(dataloader)
    if not windows:
        raise DataError("the dataloader is empty; GPTQ needs calibration windows")
    shapes = {tuple(window.shape) for window in windows}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise DataError(
            f"calibration windows are [1, seqlen] of one length; found {sorted(shapes)}"
        )
    chosen = gptq_config or GPTQConfig()
    rotation = RotationConfig(kind="hadamard") if chosen.use_hadamard else None
    return _quantize(
        model,
        torch.cat(windows),
        layer_config,
        device,
        chosen.quantization("gptq"),
        model_type,
        dtype,
        rotation,
    )


def rtn_quantize_model(
    model: nn.Module,
    layer_config: Mapping[str, Any] | Iterable[tuple[str, dict[str, Any]]],
    device: str = "cuda",
    model_type: str = "auto",
    dtype: str = "bfloat16",
) -> dict[str, QuantizedWeight]:
    """Quantize `model` in place by rounding to nearest; returns codes and scales by linear."""
    config = GPTQConfig().quantization("rtn")
    return _quantize(model, None, layer_config, device, config, model_type, dtype)


def alpha_hill_from_model(
    model: nn.Module,
    k: int | None = None,
    k_frac: float = 0.1,
    eps: float = 1e-12,
    use_lowrank: bool = False,
    q_mult: float = 2.0,
    force_cpu_svd: bool = True,
    use_eig: bool = False,
    filter_regex: str | None = None,
    model_type: str = "auto",
) -> dict[str, dict[str, Any]]:
    """Alpha of every linear: `{linear: {"alpha", "category", "shape", "k_used", "n_eigs", ...}}`.

    `k` fixes the size of the tail instead of the share `k_frac`; `filter_regex` selects by name. The
    spectrum is always the whole one and guarded by fp64, so `eps`, `use_lowrank`, `q_mult`,
    `force_cpu_svd` and `use_eig`, which chose an approximation of it, change nothing.
    """
    checkpoint = LiveCheckpoint(model, model_type)
    if filter_regex is not None:
        checkpoint.specs = [s for s in checkpoint.specs if re.search(filter_regex, s.name)]
    table = alpha_table(checkpoint, AlphaConfig(tail_fraction=k_frac), tail_size=k)
    return {
        row["linear"]: {
            "alpha": row["alpha"],
            "category": row["role"],
            "shape": (row["rows"], row["cols"]),
            "out_features": row["rows"],
            "in_features": row["cols"],
            "numel": row["rows"] * row["cols"],
            "k_used": row["tail_size"],
            "n_eigs": min(row["rows"], row["cols"]),
            "method": "eigvalsh",
        }
        for row in table.to_dict("records")
    }


def load_hf_causal_lm(model_id: str, device: str = "cpu", dtype: str = "fp32") -> nn.Module:
    """Load a causal language model from a folder or a hub id, as `load` does."""
    model: nn.Module = load(model_id, device=device, dtype=dtype)
    return model


@torch.no_grad()
def _quantize(
    model: nn.Module,
    tokens: Tensor | None,
    layer_config: Mapping[str, Any] | Iterable[tuple[str, dict[str, Any]]],
    device: str,
    config: QuantizationConfig,
    model_type: str,
    dtype: str,
    rotation: RotationConfig | None = None,
) -> dict[str, QuantizedWeight]:
    checkpoint = LiveCheckpoint(model, model_type)
    plan = _plan(checkpoint, _as_seed_config(layer_config, checkpoint), config)
    target = compute_device(device)
    if rotation:
        rotate_model(model, rotation, model_type)
        checkpoint = LiveCheckpoint(model, model_type)
    with tempfile.TemporaryDirectory() as folder:
        folders = quantize_blocks(
            checkpoint,
            plan,
            tokens,
            config,
            device=target,
            batch_size=1,
            blocks=FreshBlocks(Path(folder)),
            dtype=dtype_named(dtype) if target.type != "cpu" else torch.float32,
        )
        quantizers = {
            name: weight for block in folders for name, weight in load_block(block).items()
        }
    for name, weight in quantizers.items():
        checkpoint.replace(name, weight.dequantize())
    return quantizers


def _as_seed_config(
    layer_config: Mapping[str, Any] | Iterable[tuple[str, dict[str, Any]]],
    checkpoint: LiveCheckpoint,
) -> Mapping[str, Any]:
    """Schemes by linear become overrides; linears that have none are kept."""
    if isinstance(layer_config, Mapping) and (
        not layer_config or layer_config.keys() & {"default", "overrides"}
    ):
        return layer_config
    schemes = dict(layer_config)
    names = {spec.name for spec in checkpoint.plannable}
    for name in schemes:
        if name not in names:
            raise PlanError(
                f"layer_config names {name!r}, which the model lacks; nearest: {nearest(name, names)}"
            )
    overrides = [{"pattern": name.replace("[", "[[]")} | dict(s) for name, s in schemes.items()]
    return {"default": {"wq": "bf16"}, "overrides": overrides}


def _plan(
    checkpoint: LiveCheckpoint, cfg: Mapping[str, Any], config: QuantizationConfig
) -> QuantPlan:
    return allocate(checkpoint.plannable, allocation_from_seed(dict(cfg)), config, None, None)
