"""Bytes of a file straight into a tensor's memory, with no page of the file mapped."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def bytes_of_tensor(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def fill(tensor: Tensor, file: int, begin: int) -> None:
    """Read a contiguous tensor from `begin` on. Raises OSError when the file cannot be read, EOFError, which says where,
    when it ends inside the tensor.
    """
    if not tensor.numel():
        return
    into = bytes_of_tensor(tensor)
    done = 0
    while done < len(into):
        count = os.preadv(file, [into[done:]], begin + done)
        if not count:
            raise EOFError(f"byte {begin + done}")
        done += count
