from __future__ import annotations

import pytest
import torch

from alphaquant.linalg.hessian import (
    HessianAccumulator,
    TokenWeights,
    damp,
    inverse_factor,
    output_error,
    pooled,
    shrink,
)


def gram(tokens: int, cols: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return 2 * x.T @ x / tokens


def test_accumulator_is_twice_the_mean_outer_product_over_batches() -> None:
    x = torch.randn(6, 7, 5)
    accumulator = HessianAccumulator(5, torch.device("cpu"))
    accumulator.update(x[:2])
    accumulator.update(x[2:])
    flat = x.reshape(-1, 5)
    torch.testing.assert_close(accumulator.hessian, 2 * flat.T @ flat / 42)
    assert accumulator.tokens == 42


def test_accumulator_without_tokens_is_zero() -> None:
    assert not HessianAccumulator(4, torch.device("cpu")).hessian.any()


def test_factor_inverts_the_damped_hessian_and_is_upper_triangular() -> None:
    hessian = torch.stack([gram(64, 12, seed) for seed in range(3)])
    factor = inverse_factor(hessian, 0.01)
    assert torch.equal(factor.upper, factor.upper.triu())
    torch.testing.assert_close(factor.upper.mT @ factor.upper, torch.linalg.inv(factor.damped))
    torch.testing.assert_close(factor.damped, damp(hessian, torch.full((3,), 0.01)))


def test_conditional_variance_is_the_schur_complement_of_later_columns() -> None:
    factor = inverse_factor(gram(64, 6), 0.0)
    h = factor.damped
    for i in range(6):
        rest = h[i + 1 :, i + 1 :]
        cross = h[i, i + 1 :]
        expected = h[i, i] - (cross @ torch.linalg.solve(rest, cross) if len(cross) else 0)
        assert float(factor.conditional_variance[i]) == pytest.approx(float(expected), rel=1e-9)


def test_damping_rises_only_for_the_entry_that_needs_it() -> None:
    good = gram(64, 8, dtype=torch.float32)
    bad = good.clone()
    bad[0, 1] = bad[1, 0] = 3 * float(bad.diagonal().max())  # not positive definite
    factor = inverse_factor(torch.stack([good, bad]), 0.01)
    assert float(factor.damping[0]) == pytest.approx(0.01)
    assert float(factor.damping[1]) > 0.01
    assert torch.isfinite(factor.upper).all()


@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_fewer_tokens_than_columns_still_factor(tokens: int) -> None:
    x = torch.randn(tokens, 8)
    factor = inverse_factor(2 * x.T @ x / max(tokens, 1), 0.01)
    assert torch.isfinite(factor.upper).all()


def test_dead_columns_stay_uncoupled() -> None:
    hessian = gram(64, 6)
    hessian[2] = 0
    hessian[:, 2] = 0
    factor = inverse_factor(hessian, 0.01)
    off = factor.upper.clone()
    off[2, 2] = 0
    assert not off[2].any()
    assert not off[:, 2].any()


def test_not_finite_hessian_is_an_error() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        inverse_factor(torch.full((3, 3), float("nan")))


def test_shrink_leaves_rich_experts_and_fills_starved_ones() -> None:
    hessians = torch.stack([gram(256, 4, s, torch.float32) for s in range(3)])
    hessians[2] = 0
    tokens = torch.tensor([10_000_000, 500, 0])
    prior = (hessians * tokens.view(-1, 1, 1)).sum(0) / tokens.sum()
    shrunk = shrink(hessians.clone(), tokens, 1.0, prior)
    torch.testing.assert_close(shrunk[0], hessians[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shrunk[2], prior)
    torch.testing.assert_close(shrink(hessians.clone(), tokens, 0.0, prior)[1], hessians[1])


def test_output_error_equals_the_error_on_the_inputs() -> None:
    x = torch.randn(50, 6, dtype=torch.float64)
    d = torch.randn(3, 6, dtype=torch.float64)
    expected = 2 * (x @ d.T).square().sum() / 50
    torch.testing.assert_close(output_error(d, 2 * x.T @ x / 50), expected)


def test_diagonal_hessians_take_the_short_way_to_the_same_numbers() -> None:
    energy = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    energy[1, 2] = 0  # a dead column
    hessian = torch.diag_embed(energy)
    difference = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1))
    factor, error = inverse_factor(hessian), output_error(difference, hessian)
    almost = hessian.clone()
    almost[..., 0, 1] = almost[..., 1, 0] = 1e-30  # the long way
    long = inverse_factor(almost)
    for ours, theirs in ((factor.root, long.root), (factor.upper, long.upper)):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-29)
    assert torch.equal(factor.energy, long.energy)
    torch.testing.assert_close(error, output_error(difference, almost), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="NaN"):
        inverse_factor(torch.full((2, 2), float("nan")))


def test_who_walks_by_energy_gets_the_same_factor_from_one_cholesky() -> None:
    hessian = torch.stack([gram(64, 12, seed) for seed in range(3)])
    for one in (hessian, hessian[:1].expand(2, -1, -1)):
        plain, ordered = inverse_factor(one), inverse_factor(one, by_energy=True)
        assert plain.ordered is None
        assert ordered.ordered is not None
        assert torch.equal(ordered.ordered[0], plain.energy.argsort(-1, descending=True))
        for ours, theirs in zip(ordered.by_energy, plain.by_energy, strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(ordered.root, plain.root)
        torch.testing.assert_close(ordered.upper, plain.upper)


@pytest.mark.parametrize("by_energy", [False, True])
def test_white_rows_are_plain_squares_in_the_metric_of_the_inverse(by_energy: bool) -> None:
    hessian = torch.stack([gram(64, 12, seed) for seed in range(3)])
    factor = inverse_factor(hessian, by_energy=by_energy)
    rows = torch.randn(3, 5, 12, dtype=hessian.dtype, generator=torch.Generator().manual_seed(0))
    expected = rows @ torch.linalg.inv(factor.damped)
    white = factor.whiten(rows)
    torch.testing.assert_close(white @ white.mT, expected @ rows.mT)
    torch.testing.assert_close(factor.solve_white(white), expected)


def test_a_factor_in_another_order_exists_where_fp32_finds_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    factor = inverse_factor(gram(64, 12, dtype=torch.float32), by_energy=True)
    expected = inverse_factor(factor.damped, 0.0).root
    exact = torch.linalg.cholesky_ex

    def fails(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lower, info = exact(matrix)
        return lower, info + (matrix.dtype == torch.float32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails)
    assert factor.root.dtype == torch.float32
    torch.testing.assert_close(factor.root, expected)


def test_a_repeated_hessian_is_factored_once() -> None:
    hessian = gram(20, 6)
    difference = torch.randn(3, 5, 6, dtype=hessian.dtype)
    for one in (hessian, torch.eye(6, dtype=hessian.dtype)):
        together, apart = one.expand(3, -1, -1), one.repeat(3, 1, 1)
        factor = inverse_factor(together)
        assert factor.root.stride(0) == 0
        torch.testing.assert_close(factor.root, inverse_factor(apart).root)
        assert factor.damping.shape == (3,)
        assert factor.energy.shape == (3, 6)
        error = output_error(difference, together)
        torch.testing.assert_close(error, output_error(difference, apart))


def test_dead_columns_get_the_damping_of_all() -> None:
    hessian = 1e-3 * gram(64, 6)
    hessian[2] = 0
    hessian[:, 2] = 0
    damped = damp(hessian, 0.01)
    assert float(damped[2, 2]) == pytest.approx(0.01 * float(hessian.diagonal().mean()))
    assert torch.equal(damp(torch.zeros(3, 3), 0.01), torch.eye(3))


def test_weighted_tokens_count_as_often_as_their_weight_says() -> None:
    x = torch.randn(5, 4)
    weighted, repeated = (HessianAccumulator(4, torch.device("cpu")) for _ in range(2))
    weighted.update(x[:2], TokenWeights(torch.tensor([1.0, 2.0])))
    weighted.update(x[2:], TokenWeights(torch.tensor([3.0, 1.0, 0.0])))
    repeated.update(x[[0, 1, 1, 2, 2, 2, 3]])
    torch.testing.assert_close(weighted.hessian, repeated.hessian)
    assert weighted.tokens == 5
    assert weighted.mass == 7
    assert weighted.effective_tokens == pytest.approx(49 / 15)


def test_equal_weights_change_neither_the_hessian_nor_the_effective_tokens() -> None:
    x = torch.randn(6, 4)
    plain, weighted = (HessianAccumulator(4, torch.device("cpu")) for _ in range(2))
    plain.update(x)
    weighted.update(x, TokenWeights(torch.full((6,), 0.25)))
    torch.testing.assert_close(weighted.hessian, plain.hessian)
    assert weighted.effective_tokens == plain.effective_tokens == 6


def test_shrinking_weighted_tokens_pools_by_mass_and_trusts_by_effective_number() -> None:
    experts = [HessianAccumulator(6, torch.device("cpu")) for _ in range(3)]
    weights = torch.tensor([0.5, 0.5, 1.0, 4.0])
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    experts[0].update(x[:2], TokenWeights(weights[:2]))
    experts[1].update(x[2:], TokenWeights(weights[2:]))
    prior = pooled(experts)
    assert prior is not None
    torch.testing.assert_close(prior, 2 * (x * weights[:, None]).T @ x / weights.sum())
    before = torch.stack([expert.hessian for expert in experts])
    effective = torch.tensor([expert.effective_tokens for expert in experts])
    found = shrink(before.clone(), effective, 0.5, prior)
    torch.testing.assert_close(found[0], (2 * before[0] + 3 * prior) / 5)
    assert float(effective[1]) == pytest.approx(25 / 17)
    torch.testing.assert_close(found[1], (25 / 17 * before[1] + 3 * prior) / (25 / 17 + 3))
    torch.testing.assert_close(found[2], prior)
    assert pooled(experts[2:]) is None
