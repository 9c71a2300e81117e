from __future__ import annotations

import pytest
import torch

from alphaquant.formats import kernels
from alphaquant.linalg import gram_in_c, hessian
from alphaquant.linalg.gram import add_gram, gram, mirror, quadratic
from alphaquant.linalg.hessian import HessianAccumulator, near_output_error, output_error
from alphaquant.models.device import torch_threads


@pytest.mark.parametrize("rows", [3, 300])
@pytest.mark.parametrize("cols", [5, 256, 257, 700])
def test_adds_the_product_with_the_own_transpose_and_stays_symmetric(rows: int, cols: int) -> None:
    x = torch.randn(rows, cols)
    before = torch.randn(cols, cols)
    total = before + before.T
    expected = total.double() + x.double().T @ x.double()
    add_gram(total, x)
    mirror(total)
    torch.testing.assert_close(total, expected.float(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(total, total.T)


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("cols", [5, 193, 700])
def test_quadratic_forms_are_those_of_one_product(batch: tuple[int, ...], cols: int) -> None:
    rows, x = torch.randn(*batch, 20, cols), torch.randn(*batch, 40, cols)
    total = x.mT @ x
    exact = ((rows.double() @ total.double()) * rows.double()).sum((-2, -1))
    found = quadratic(rows, total)
    assert found.shape == batch
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)


needs_bf16 = pytest.mark.skipif(not gram_in_c.runs(), reason="needs a CPU with products of bf16")


@pytest.mark.parametrize("in_c", [False, pytest.param(True, marks=needs_bf16)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cols", [64, 700])
def test_sums_of_either_dtype_are_those_of_fp32(
    dtype: torch.dtype, cols: int, in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 sums would be 2^-9 off, and products of fp32 rounded to bf16 as far."""
    monkeypatch.setattr(gram_in_c, "runs", lambda: in_c)
    x = torch.randn(4, 350, cols).to(dtype)  # more and fewer rows than bf16 products are for
    accumulator = HessianAccumulator(cols, torch.device("cpu"))
    accumulator.update(x)
    accumulator.update(x[:1])
    exact = x.flatten(0, 1).double()
    exact = exact.T @ exact + x[0].double().T @ x[0].double()
    assert (accumulator.total - exact).abs().max() < 1e-5 * exact.diagonal().mean()


@needs_bf16
@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 1001])
@pytest.mark.parametrize("cols", [1, 31, 32, 96, 257])
def test_sums_in_c_are_as_exact_as_those_of_fp32(tokens: int, cols: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(tokens, cols + 3, generator=generator) * 3).bfloat16()[:, 1 : cols + 1]
    before = torch.randn(cols, cols + 5, generator=generator)
    found = []
    for threads in (1, 3):
        total = before.clone()
        with torch_threads(threads):
            gram_in_c.add_gram(total[:, :cols], x)
        found.append(total)
    assert torch.equal(*found)
    assert torch.equal(total[:, cols:], before[:, cols:])
    exact = before[:, :cols].double() + x.double().T @ x.double()
    off = (total[:, :cols] - exact).triu().abs().max()
    assert off <= 2e-6 * exact.abs().max()


@needs_bf16
@pytest.mark.parametrize("tokens", [1, 127, 300])
@pytest.mark.parametrize(("rows", "cols"), [(1, 33), (64, 31), (70, 257)])
def test_products_in_c_are_as_exact_as_those_of_fp32(tokens: int, rows: int, cols: int) -> None:
    generator = torch.Generator().manual_seed(4)
    left, right = (torch.randn(tokens, n, generator=generator).bfloat16() for n in (rows, cols))
    total = torch.randn(rows, cols, generator=generator)
    exact = total.double() + left.double().T @ right.double()
    gram_in_c.add_product(total, left, right)
    assert (total - exact).abs().max() <= 2e-6 * exact.abs().max()


@needs_bf16
@pytest.mark.parametrize("rows", [1, 127, 300])
@pytest.mark.parametrize("cols", [1, 32, 257])
def test_quadratic_forms_in_c_are_those_of_one_product(rows: int, cols: int) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, cols, generator=generator).bfloat16()
    root = torch.randn(cols, cols, generator=generator)
    total = root @ root.T
    exact = ((x.double() @ total.double()) * x.double()).sum()
    assert gram_in_c.quadratic(x, total) == pytest.approx(float(exact), rel=2e-6)


@pytest.mark.parametrize("in_c", [False, pytest.param(True, marks=needs_bf16)])
def test_errors_of_plain_rounding_are_near_those_of_fp32(
    in_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_in_c, "runs", lambda: in_c)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 900, 320, generator=generator) @ torch.randn(320, 320, generator=generator)
    many, few = (torch.randn(2, rows, 320, generator=generator) for rows in (256, 3))
    total = x.mT @ x
    for difference, near in ((many, 1e-4), (few, 1e-6)):
        exact = output_error(difference.double(), total.double())
        found = near_output_error(difference, total)
        torch.testing.assert_close(found.double(), exact, rtol=near, atol=0)
    assert near_output_error(many[0], total[0]).shape == ()
    shared = near_output_error(many, total[:1].expand(2, -1, -1))  # one Hessian for both
    torch.testing.assert_close(shared[0], near_output_error(many[0], total[0]))


@needs_bf16
def test_what_has_no_such_product_is_refused_by_c() -> None:
    x, wide = torch.zeros(8, 40).bfloat16(), torch.zeros(40, 200)
    with pytest.raises(ValueError, match=r"\[70, 70\]"):
        gram_in_c.add_gram(torch.zeros(70, 70), x)
    with pytest.raises(ValueError, match=r"\[40, 40\]"):
        gram_in_c.add_product(torch.zeros(40, 40), x, x[:4])
    with pytest.raises(ValueError, match="row by row"):
        gram_in_c.add_gram(wide[:, ::5], x)
    with pytest.raises(ValueError, match="float32"):
        gram_in_c.add_gram(torch.zeros(40, 40), x.float())


@needs_bf16
def test_whole_numbers_are_summed_exactly_in_c() -> None:
    x = torch.randint(-9, 10, (640, 70), generator=torch.Generator().manual_seed(1)).float()
    total = torch.zeros(70, 70)
    gram_in_c.add_gram(total, x.bfloat16())
    mirror(total)
    assert torch.equal(total, x.T @ x)


@pytest.mark.parametrize(
    ("able", "serves"),
    [({}, False), ({"avx512_bf16": True, "amx_bf16": True}, False), ({"avx512_bf16": True}, True)],
)
def test_sums_in_c_are_for_cpus_without_units_for_whole_matrices(
    able: dict[str, bool], serves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_in_c, "capabilities", lambda: able)
    monkeypatch.setattr(gram_in_c, "trusted", lambda *_: True)
    monkeypatch.setattr(gram_in_c, "_there", lambda: True)
    assert gram_in_c.runs() == serves


def test_a_compiler_without_such_products_leaves_the_other_kernels_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gram_in_c, "capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(gram_in_c, "_there", lambda: False)
    monkeypatch.setattr(kernels, "_tried", set())
    broken: set[torch.device] = set()
    monkeypatch.setattr(kernels, "_broken", broken)
    assert not gram_in_c.runs()
    assert not broken


@pytest.mark.parametrize("faster", [False, True])
def test_few_numbers_of_rows_reach_the_products_that_compile_a_kernel_for_each(
    faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    seen: list[tuple[int, bool]] = []

    def watched(total: torch.Tensor, x: torch.Tensor) -> None:
        seen.append((len(x), matmul.fp32_precision == "bf16"))

    monkeypatch.setattr(gram_in_c, "runs", lambda: False)
    monkeypatch.setattr(hessian, "add_gram", watched)
    monkeypatch.setattr(hessian, "onednn_is_faster", lambda: faster)
    accumulator = HessianAccumulator(8, torch.device("cpu"))
    for rows in (96, 1024, 2500):
        accumulator.update(torch.ones(rows, 8, dtype=torch.bfloat16))
    accumulator.update(torch.ones(2500, 8))
    in_fp32 = [(2048, True), (452, False)] if faster else [(2500, False)]
    assert seen == [(96, False), (1024, True), (2048, True), (452, False), *in_fp32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 3), (2, 300, 700), (3, 700, 300), (2, 1, 40, 60)])
def test_the_gram_matrix_of_rows_is_their_product(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.randn(*shape, dtype=dtype)
    exact = x.double() @ x.double().mT
    torch.testing.assert_close(gram(x).double(), exact, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(gram(x.mT.contiguous().mT), gram(x))
