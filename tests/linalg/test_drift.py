from __future__ import annotations

import torch

from alphaquant.linalg.drift import DriftAccumulator, Shortfall, corrected, trusted_share
from alphaquant.linalg.hessian import HessianAccumulator, TokenWeights, inverse_factor


def pair(tokens: int = 400, cols: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs of the original, those of the quantized model, and a weight that reads them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, cols, generator=generator, dtype=torch.float32)
    mix = torch.eye(cols) + 0.2 * torch.randn(cols, cols, generator=generator)
    now = x @ mix + 0.1 * torch.randn(tokens, cols, generator=generator)
    return x, now, torch.randn(5, cols, generator=generator)


def test_the_whole_correction_solves_the_least_squares_problem() -> None:
    x, now, weight = pair()
    hessian, drift = HessianAccumulator(12, x.device), DriftAccumulator(12, x.device)
    for at in range(0, 400, 100):
        hessian.update(now[at : at + 100])
        drift.update_pair(x[at : at + 100], now[at : at + 100])
    assert drift.tokens == hessian.tokens == 400
    factor = inverse_factor(hessian.hessian, 0.0)
    found = corrected(weight, weight @ drift.hessian, factor, torch.tensor(1.0))
    expected = torch.linalg.lstsq(now, x @ weight.T).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    half = corrected(weight, weight @ drift.hessian, factor, torch.tensor(0.5))
    torch.testing.assert_close(half, (weight + found) / 2)


def test_inputs_that_have_not_drifted_leave_the_weight_alone() -> None:
    x, _, weight = pair()
    drift = DriftAccumulator(12, x.device)
    drift.update_pair(x.view(4, 100, 12), x.view(4, 100, 12))
    factor = inverse_factor(2 * x.T @ x / 400)
    assert torch.equal(corrected(weight, weight @ drift.hessian, factor, torch.tensor(1.0)), weight)


def test_few_tokens_are_trusted_little_and_none_not_at_all() -> None:
    share = trusted_share(torch.tensor([0, 64, 6400]), 64, 0.5)
    torch.testing.assert_close(share, torch.tensor([0.0, 2 / 3, 200 / 201]))
    assert trusted_share(torch.tensor([0, 1]), 64, 0.0).tolist() == [0.0, 1.0]


def test_a_token_that_counts_twice_is_as_good_as_two() -> None:
    x, now, _ = pair()
    twice = torch.arange(400) % 2 == 0
    weighted, repeated = DriftAccumulator(12, x.device), DriftAccumulator(12, x.device)
    weighted.update_pair(x, now, TokenWeights(1.0 + twice))
    repeated.update_pair(torch.cat([x, x[twice]]), torch.cat([now, now[twice]]))
    torch.testing.assert_close(weighted.hessian, repeated.hessian)
    assert weighted.mass == repeated.mass == 600


def test_what_is_missing_in_the_stream_is_supplied_as_far_as_inputs_tell() -> None:
    x, now, weight = pair()
    generator = torch.Generator().manual_seed(1)
    stream = now @ torch.randn(12, 5, generator=generator)
    stream += 0.1 * torch.randn(400, 5, generator=generator)
    hessian, short = HessianAccumulator(12, x.device), Shortfall(5, 12, x.device)
    gap = stream + (x - now) @ weight.T
    weights = TokenWeights(1.0 + torch.arange(400) % 2)
    for at in range(0, 400, 100):
        part = TokenWeights(weights.values[at : at + 100])
        hessian.update(now[at : at + 100], part)
        short.update(gap[at : at + 100].view(4, 25, 5), now[at : at + 100].view(4, 25, 12), part)
    factor = inverse_factor(hessian.hessian, 0.0)
    lacking = short.total * hessian.scale
    found = corrected(weight, lacking, factor, torch.tensor(1.0))
    root = weights.values.sqrt().float()[:, None]
    expected = torch.linalg.lstsq(root * now, root * (x @ weight.T + stream)).solution.T
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
