"""Which device computes, and in which dtype the forward passes run there."""

from __future__ import annotations

import torch

from alphaquant.errors import ConfigError


def compute_device(name: str) -> torch.device:
    """`auto` is the first GPU, or the CPU without one. Raises ConfigError for what this machine lacks."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"execution.device {name!r} is not a device; allowed: auto, cpu, cuda, cuda:N"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"execution.device {name!r} is not there: this machine has {torch.cuda.device_count()} "
            "CUDA devices. Use auto or cpu."
        )
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bf16 where tensor cores multiply it, fp32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32
