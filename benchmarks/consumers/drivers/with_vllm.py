"""Let vLLM's own loader read checkpoints, on a CPU that claims to be a GPU of compute capability 9.0.

Which scheme a layer gets, which parameters it has and how tensors are put into them is vLLM's code. No kernel runs:
those are not in a CPU's torch. Every parameter is filled with a pattern first, so that what the loader
left as it was can be told.

Run with the environment's Python: `python with_vllm.py [--tensor-parallel N] FOLDER...`; one JSON line per folder.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_USE_AOT_COMPILE": "0",
    "HF_HUB_OFFLINE": "1",
    "VLLM_DIST_IDENT": "consumers",  # several processes need one
}

import torch
import vllm.platforms
from torch import _ops, multiprocessing
from transformers import AutoConfig, PreTrainedConfig
from vllm import _custom_ops
from vllm.platforms.cpu import CpuPlatform
from vllm.platforms.interface import DeviceCapability, PlatformEnum

_PATTERN = 0xA5
_OPTIONAL = re.compile(
    r"\.attn\.(q|k|v|prob)_(scale|zero_point)$|_input_global_scale$|(13|2)_(bias|qzeros)$"
)
"""What need not be in a checkpoint: scales of a quantized cache and of activations, biases and zero points of experts."""
_KERNELS = ("_C", "_moe_C", "_C_cache_ops")


class PretendedGpu(CpuPlatform):
    """A CPU that answers what the choice of schemes and kernels asks as an H100 would."""

    _enum = PlatformEnum.CUDA
    capability = DeviceCapability(9, 0)
    supported_quantization: list[str] = []  # noqa: RUF012

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return cls.capability

    @classmethod
    def has_device_capability(cls, capability: Any, device_id: int = 0) -> bool:
        return cls.capability.to_int() >= _as_int(capability)

    @classmethod
    def is_device_capability(cls, capability: Any, device_id: int = 0) -> bool:
        return cls.capability.to_int() == _as_int(capability)

    @classmethod
    def is_device_capability_family(cls, capability: int, device_id: int = 0) -> bool:
        return cls.capability.major == capability // 10

    @classmethod
    def num_compute_units(cls, device_id: int = 0) -> int:
        return 132

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return "pretended"

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return 80 << 30

    @classmethod
    def verify_quantization(cls, quant: str) -> None:
        return None

    @classmethod
    def supports_fp8(cls) -> bool:
        return True

    @classmethod
    def is_fp8_fnuz(cls) -> bool:
        return False

    @classmethod
    def fp8_dtype(cls) -> torch.dtype:
        return torch.float8_e4m3fn


def _as_int(capability: Any) -> int:
    return capability if isinstance(capability, int) else capability[0] * 10 + capability[1]


class _NoKernel:
    """Stands for a compiled kernel that is looked up and never run."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __getattr__(self, name: str) -> _NoKernel:
        if name.startswith("__"):
            raise AttributeError(name)
        return _NoKernel(f"{self._name}.{name}")


def _pretend_kernels() -> None:
    found = _ops._OpNamespace.__getattr__

    def lookup(namespace: Any, name: str) -> Any:
        try:
            return found(namespace, name)
        except AttributeError:
            if namespace.name in _KERNELS:
                return _NoKernel(name)
            raise

    _ops._OpNamespace.__getattr__ = lookup
    for name in dir(_custom_ops):
        if name.startswith("cutlass_") and "support" in name:
            setattr(_custom_ops, name, lambda *args, **kwargs: True)


class DeepseekConfig(PreTrainedConfig):
    """In the place of the code that comes with checkpoints of DeepSeek v1."""

    model_type = "deepseek"


AutoConfig.register(DeepseekConfig.model_type, DeepseekConfig)
_platform = CpuPlatform()
vllm.platforms._current_platform = _platform
_pretend_kernels()

from vllm.config import (  # noqa: E402  after the platform
    CacheConfig,
    DeviceConfig,
    LoadConfig,
    ModelConfig,
    ParallelConfig,
    VllmConfig,
    set_current_vllm_config,
)
from vllm.distributed import (  # noqa: E402
    destroy_model_parallel,
    init_distributed_environment,
    initialize_model_parallel,
)
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402


@contextlib.contextmanager
def _as_gpu() -> Iterator[None]:
    """What is built inside believes in the GPU; tensors are still made on the CPU, in bf16."""
    _platform.__class__ = PretendedGpu
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        _platform.__class__ = CpuPlatform


def read(folder: str, world: int, rank: int, meeting: str) -> dict[str, Any]:
    """Build the model of a folder and load it; what was chosen, and which parameters were left as they were."""
    model_config = ModelConfig(
        model=folder,
        tokenizer=folder,
        dtype="bfloat16",
        enforce_eager=True,
        skip_tokenizer_init=True,
        trust_remote_code=True,
        max_model_len=128,
    )
    config = VllmConfig(
        model_config=model_config,
        load_config=LoadConfig(load_format="safetensors", use_tqdm_on_load=False),
        device_config=DeviceConfig("cpu"),
        cache_config=CacheConfig(),
        parallel_config=ParallelConfig(),
    )
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(world, rank, meeting, rank, "gloo")
        destroy_model_parallel()  # which groups there are depends on the model
        initialize_model_parallel(world, 1)
        with _as_gpu():
            model = initialize_model(vllm_config=config, model_config=model_config)
            for parameter in model.parameters():
                _bytes_of(parameter).fill_(_PATTERN)
            loader = DefaultModelLoader(config.load_config)
            loaded = model.load_weights(loader.get_all_weights(model_config, model))
    return {
        "schemes": _schemes(model),
        "missing": _missing(model, loaded or set()),
        "unwritten": _unwritten(model),
    }


def _schemes(model: torch.nn.Module) -> dict[str, int]:
    """How many layers got each way of being quantized."""
    counted: dict[str, int] = {}
    for module in model.modules():
        kind = type(module).__name__
        if "Linear" not in kind and kind != "RoutedExperts":
            continue
        way = getattr(module, "scheme", None) or getattr(module, "quant_method", None)
        bits = getattr(way, "num_bits", None)
        name = type(way).__name__ + (f" {bits}" if bits else "")
        counted[name] = counted.get(name, 0) + 1
    return counted


def _missing(model: torch.nn.Module, loaded: set[str]) -> list[str]:
    return [
        name
        for name, _ in model.named_parameters()
        if name not in loaded and not _OPTIONAL.search(name)
    ]


def _unwritten(model: torch.nn.Module) -> dict[str, float]:
    """Share of a parameter's bytes that still are the pattern, where that is no accident."""
    shares = {
        name: (_bytes_of(parameter) == _PATTERN).float().mean().item()
        for name, parameter in model.named_parameters()
        if parameter.numel() and not _OPTIONAL.search(name)
    }
    return {name: round(share, 3) for name, share in shares.items() if share > 0.1}


def _bytes_of(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter's memory; a view, where it lies in one piece."""
    return parameter.data.reshape(-1).view(torch.uint8)


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(f"{type(error).__name__}: {error}".split())[:900]


def serve(rank: int, world: int, meeting: str, folders: list[str]) -> None:
    """Read every folder; the first rank tells."""
    torch.set_num_threads(1)
    for folder in folders:
        try:
            answer: dict[str, Any] = {"loads": True} | read(folder, world, rank, meeting)
        except Exception as error:  # noqa: BLE001  whatever it says is the answer
            if os.environ.get("DEBUG"):
                import traceback

                traceback.print_exc()
            answer = {"loads": False, "said": _innermost(error)}
        if rank == 0:
            print(json.dumps({"folder": folder} | answer), flush=True)


def main() -> None:
    """Read the command line and start as many processes as there are shares of a tensor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("folders", nargs="+")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        meeting = f"file://{Path(place) / 'meeting'}"
        told = (options.tensor_parallel, meeting, options.folders)
        if options.tensor_parallel == 1:
            serve(0, *told)
        else:
            multiprocessing.spawn(serve, told, options.tensor_parallel)


if __name__ == "__main__":
    main()
