from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from alphaquant.models import device
from alphaquant.models.device import (
    WIDE_IN_PASSES,
    all_cores,
    available_cores,
    calibration_dtype,
    training_products,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, "10000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_waiting_threads_soon_sleep_unless_somebody_chose(
    chosen: dict[str, str], spins: str
) -> None:
    theirs = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in theirs}
    ended = subprocess.run(
        [sys.executable, "-c", "import os, alphaquant; print(os.environ.get('GOMP_SPINCOUNT'))"],
        env=environment | chosen,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert ended.stdout.strip() == spins


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize("width", [256, 512])
def test_calibration_is_bf16_where_it_is_wide_and_the_cpu_multiplies_it(
    able: bool, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "capabilities", lambda: {"avx512_bf16": able})
    expected = torch.bfloat16 if able and width == 512 else torch.float32
    assert calibration_dtype(CPU, width) == expected


def test_a_gpu_calibrates_in_bf16_at_any_width() -> None:
    assert calibration_dtype(torch.device("cuda"), 64) == torch.bfloat16


@pytest.mark.parametrize(
    ("able", "width", "stored", "expected"),
    [
        (True, 256, torch.float32, torch.bfloat16),
        (True, 128, torch.float32, torch.float32),
        (False, 256, torch.float32, torch.float32),
        (True, 256, torch.bfloat16, torch.bfloat16),
    ],
)
def test_products_for_gradients_are_bf16_where_that_repays(
    able: bool,
    width: int,
    stored: torch.dtype,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device, "capabilities", lambda: {"avx512_bf16": able})
    hidden = torch.randn(4, width, dtype=stored)
    with training_products(hidden):
        assert (hidden @ hidden.T).dtype == expected
    assert (hidden @ hidden.T).dtype == stored
    with torch.no_grad(), training_products(hidden):
        assert (hidden @ hidden.T).dtype == stored


def test_wide_products_take_every_core_and_give_them_back() -> None:
    with all_cores(64), all_cores(511), all_cores(128, WIDE_IN_PASSES):
        assert torch.get_num_threads() == 1
    with all_cores(256, WIDE_IN_PASSES):
        assert torch.get_num_threads() == available_cores()
    with contextlib.suppress(ValueError), all_cores(512):
        assert torch.get_num_threads() == available_cores()
        raise ValueError
    assert torch.get_num_threads() == 1
