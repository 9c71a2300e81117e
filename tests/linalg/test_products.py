from __future__ import annotations

import threading

import pytest
import torch

from alphaquant.linalg import products
from alphaquant.linalg.products import (
    add_product,
    bf16_products,
    even_rows,
    onednn_is_faster,
    quick_products,
    take_product,
)

MATMUL = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.mark.parametrize("shape", [(1, 16, 16), (128, 128, 700), (1300, 130, 257), (512, 2048, 64)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_quick_products_are_those_of_fp32(
    batch: tuple[int, ...], shape: tuple[int, int, int]
) -> None:
    """Numbers rounded to bf16 would be 2^-9 off."""
    rows, inner, cols = shape
    left, right = torch.randn(*batch, rows, inner), torch.randn(*batch, inner, cols)
    exact = left.double() @ right.double()
    with quick_products():
        found = left @ right
    assert (found - exact).abs().max() < 1e-5 * inner**0.5
    target = torch.randn(*batch, rows, cols + 3)
    before = target.clone()
    take_product(target[..., :cols], left, right)
    assert (target[..., :cols] - (before[..., :cols] - exact)).abs().max() < 1e-5 * inner**0.5
    assert torch.equal(target[..., cols:], before[..., cols:])


@pytest.mark.parametrize("tokens", [1, 1024, 2500])
@pytest.mark.parametrize("onednn", [False, True])
def test_sums_over_tokens_are_those_of_fp32(
    tokens: int, onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where oneDNN would round, it is not asked to multiply."""
    able = onednn_is_faster() and onednn
    monkeypatch.setattr(products, "onednn_is_faster", lambda: able)
    left, right, total = torch.randn(tokens, 40), torch.randn(tokens, 70), torch.randn(40, 70)
    expected = total.double() + left.double().T @ right.double()
    add_product(total, left, right)
    assert (total - expected).abs().max() < 1e-5 * tokens**0.5


def test_sums_over_tokens_come_in_few_shapes() -> None:
    """What is left goes to the library that keeps no code."""
    assert {even_rows(tokens) for tokens in range(4096)} == {0, 1024, 2048, 3072}


def test_what_is_taken_away_comes_in_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "_take", lambda target, *_: seen.add(target.shape))
    for rows in range(128, 4096, 128):
        take_product(torch.empty(rows, 8), torch.empty(rows, 128), torch.empty(128, 8))
    assert seen == {(rows, 8) for rows in (128, 256, 384, 512)}


@pytest.mark.parametrize(
    ("able", "faster"),
    [
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "AMD EPYC"}, True),
        ({"avx512_bf16": True, "amx_tile": True, "cpu_name": "AMD EPYC"}, False),
        ({"avx512_bf16": True, "amx_bf16": False, "cpu_name": "Intel Xeon"}, False),
        ({"avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({}, False),
    ],
)
def test_no_cpu_that_would_round_is_given_leave_to(
    able: dict[str, object], faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "capabilities", lambda: able)
    onednn_is_faster.cache_clear()
    try:
        assert onednn_is_faster() == (faster and torch.backends.mkldnn.is_available())
    finally:
        monkeypatch.undo()
        onednn_is_faster.cache_clear()


def test_other_products_are_left_as_they_were() -> None:
    before = MATMUL.fp32_precision
    inside = []

    def fail() -> None:
        with bf16_products():
            inside.append(MATMUL.fp32_precision)
            raise RuntimeError("meanwhile")

    with pytest.raises(RuntimeError, match="meanwhile"):
        fail()
    assert inside == ["bf16"]
    assert MATMUL.fp32_precision == before


def test_the_switch_stays_on_until_the_last_thread_is_through() -> None:
    before = MATMUL.fp32_precision
    first, last = threading.Event(), threading.Event()

    def work() -> None:
        with bf16_products():
            first.set()
            last.wait(10)

    thread = threading.Thread(target=work)
    with bf16_products():
        thread.start()
        assert first.wait(10)
    assert MATMUL.fp32_precision == "bf16"
    last.set()
    thread.join()
    assert MATMUL.fp32_precision == before
