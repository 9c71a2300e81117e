from __future__ import annotations

import torch

from alphaquant.algorithms.router_align import RouterAlignment

CPU = torch.device("cpu")


def pairs(tokens: int, cols: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A router, its inputs in the original, and those inputs through a linear map with noise."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, cols, generator=generator)
    x = torch.randn(tokens, cols, generator=generator)
    mixing = torch.eye(cols) + 0.1 * torch.randn(cols, cols, generator=generator)
    return weight, x, x @ mixing + 0.05 * torch.randn(tokens, cols, generator=generator)


def alignment(x: torch.Tensor, moved: torch.Tensor) -> RouterAlignment:
    found = RouterAlignment(x.shape[-1], CPU)
    found.update(x, moved)
    return found


def test_equal_inputs_leave_the_router_as_it_is() -> None:
    weight, x, _ = pairs(100)
    assert torch.equal(alignment(x, x).aligned(weight, weight), weight)


def test_many_tokens_give_the_least_squares_router_that_stays_near_the_old_one() -> None:
    weight, x, moved = pairs(20_000)
    pull = (0.01 * moved.square().sum(0).mean()).sqrt() * torch.eye(8)
    expected = torch.linalg.lstsq(
        torch.cat([moved, pull]), torch.cat([x @ weight.T, pull @ weight.T])
    ).solution.T
    found = alignment(x, moved).aligned(weight, weight)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    error, before = ((moved @ r.T - x @ weight.T).square().mean() for r in (found, weight))
    assert error < 0.1 * before


def test_batches_add_up() -> None:
    weight, x, moved = pairs(60)
    parts = RouterAlignment(8, CPU)
    parts.update(x[:20].view(2, 10, 8), moved[:20].view(2, 10, 8))
    parts.update(x[20:], moved[20:])
    assert parts.tokens == 60
    torch.testing.assert_close(
        parts.aligned(weight, weight), alignment(x, moved).aligned(weight, weight)
    )


def test_the_correction_grows_with_the_tokens_behind_it() -> None:
    weight, x, moved = pairs(12)
    assert torch.equal(RouterAlignment(8, CPU).aligned(weight, weight), weight)
    # the same means from ten times the tokens: only the share n / (n + 4) differs
    few, many = (
        alignment(x.repeat(n, 1), moved.repeat(n, 1)).aligned(weight, weight) - weight
        for n in (1, 10)
    )
    torch.testing.assert_close(few / (12 / 16), many / (120 / 124), rtol=1e-3, atol=1e-4)


def test_a_router_of_scaled_inputs_is_aligned_as_the_same_router_of_plain_ones() -> None:
    weight, x, moved = pairs(400)
    scale = torch.rand(8, generator=torch.Generator().manual_seed(1)) + 0.5
    plain = alignment(x, moved).aligned(weight, weight)
    scaled = alignment(x, moved / scale).aligned(weight * scale, weight)
    error, before = ((moved @ r.T - x @ weight.T).square().mean() for r in (scaled / scale, weight))
    # the pull towards the old router is another one in another basis
    assert error < 1.05 * (moved @ plain.T - x @ weight.T).square().mean()
    assert error < 0.5 * before
