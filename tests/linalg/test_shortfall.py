from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from alphaquant.linalg.hessian import HessianAccumulator, TokenWeights, inverse_factor
from alphaquant.linalg.shortfall import Shortfall, agreement, move, trusted_share

ROWS, COLS, TOKENS = 5, 12, 400


def pair(tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the original, those of the quantized model, and a weight that reads them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, COLS, generator=generator)
    mix = torch.eye(COLS) + 0.2 * torch.randn(COLS, COLS, generator=generator)
    now = x @ mix + 0.1 * torch.randn(tokens, COLS, generator=generator)
    return x, now, torch.randn(ROWS, COLS, generator=generator)


@dataclass
class Gathered:
    """Sums over both halves of the tokens, in batches of 100."""

    hessian: HessianAccumulator
    short: Shortfall
    first: Tensor

    @classmethod
    def of(
        cls,
        gap: Tensor,
        now: Tensor,
        weights: Tensor | None = None,
        *,
        of_inputs: bool = False,
        middle: int | None = None,
    ) -> Gathered:
        """What tokens with a `gap` lack, the first half of which ends at the `middle`."""
        hessian = HessianAccumulator(COLS, now.device)
        short = Shortfall(gap.shape[-1], COLS, now.device, of_inputs=of_inputs)
        first = torch.zeros(COLS, COLS)
        middle = len(now) // 2 if middle is None else middle
        for at in range(0, len(now), 100):
            part = slice(at, at + 100)
            counts = None if weights is None else TokenWeights(weights[part])
            if at == middle:
                first = hessian.total.clone()
            hessian.update(now[part], counts)
            batch = gap[part].view(4, 25, -1), now[part].view(4, 25, -1)
            short.update(int(at >= middle), *batch, counts)
        return cls(hessian, short, first)

    def supplied(self, weight: Tensor | None = None) -> tuple[Tensor, float]:
        """The whole move, and the share of it that is not chance."""
        factor = inverse_factor(self.hessian.hessian, 0.0)
        inputs = torch.stack([self.first, self.hessian.total - self.first])
        most, _ = agreement(inputs * self.hessian.scale, factor)
        halves = self.short.halves * self.hessian.scale
        found, share = move(halves if weight is None else weight @ halves, most, factor)
        return found, float(share)


def test_what_is_missing_in_the_stream_is_supplied_as_far_as_inputs_tell() -> None:
    x, now, weight = pair()
    generator = torch.Generator().manual_seed(1)
    stream = now @ torch.randn(COLS, ROWS, generator=generator)
    stream += 0.1 * torch.randn(TOKENS, ROWS, generator=generator)
    counts = 1.0 + torch.arange(TOKENS) % 2
    found, _ = Gathered.of(stream + (x - now) @ weight.T, now, counts).supplied()
    root = counts.sqrt()[:, None]
    expected = torch.linalg.lstsq(root * now, root * (x @ weight.T + stream)).solution.T
    torch.testing.assert_close(weight + found, expected, rtol=1e-3, atol=1e-3)


def test_drifted_inputs_tell_of_every_weight_that_reads_them() -> None:
    x, now, weight = pair()
    found, share = Gathered.of(x - now, now, of_inputs=True).supplied(weight)
    expected = torch.linalg.lstsq(now, x @ weight.T).solution.T
    torch.testing.assert_close(weight + found, expected, rtol=1e-3, atol=1e-4)
    assert share > 0.98


def test_inputs_that_have_not_drifted_leave_the_weight_alone() -> None:
    x, _, weight = pair()
    found, share = Gathered.of(x - x, x, of_inputs=True).supplied(weight)
    assert not found.any()
    assert share == 0


def test_the_share_is_what_makes_a_noisy_move_come_nearest_to_the_true_one() -> None:
    """Over many draws of noise: no other share of the same moves would be better by more than what draws differ by."""
    generator = torch.Generator().manual_seed(2)
    errors, shares = [], []
    tried = torch.linspace(0, 1, 21)
    truth = 0.15 * torch.randn(ROWS, COLS, generator=generator)
    for _ in range(60):
        now = torch.randn(TOKENS, COLS, generator=generator)
        noise = 4 * torch.randn(TOKENS, ROWS, generator=generator)
        found, share = Gathered.of(now @ truth.T + noise, now).supplied()
        shares.append(share)
        errors.append([float((s * found - truth).square().sum()) for s in [*tried, share]])
    mean = torch.tensor(errors).mean(0)
    best = float(tried[mean[:-1].argmin()])
    assert 0.2 < best < 0.8
    assert abs(sum(shares) / len(shares) - best) < 0.1
    assert float(mean[-1]) < 1.1 * float(mean[:-1].min())


def test_chance_alone_is_hardly_followed() -> None:
    generator = torch.Generator().manual_seed(3)
    shares = []
    for _ in range(20):
        now = torch.randn(TOKENS, COLS, generator=generator)
        shares.append(
            Gathered.of(torch.randn(TOKENS, ROWS, generator=generator), now).supplied()[1]
        )
    assert min(shares) == 0
    assert sum(shares) / len(shares) < 0.2


def test_where_one_half_has_no_token_nothing_is_known_to_be_more_than_chance() -> None:
    _, now, _ = pair(100)
    assert Gathered.of(now[:, :ROWS], now, middle=0).supplied()[1] == 0
    assert Gathered.of(now[:, :ROWS], now, middle=100).supplied()[1] == 0


@pytest.mark.parametrize(("tokens", "middle"), [(400, 100), (400, 300), (200, 100)])
def test_what_inputs_tell_wholly_is_followed_wholly_however_few_they_are(
    tokens: int, middle: int
) -> None:
    """Halves whose own X̃X̃ᵀ differ agree on less than all, which is not the doing of chance."""
    _, now, weight = pair(tokens)
    found, share = Gathered.of(now @ weight.T, now, middle=middle).supplied()
    torch.testing.assert_close(found, weight, rtol=1e-3, atol=1e-3)
    assert share > 0.95


def test_few_tokens_are_trusted_little_and_none_not_at_all() -> None:
    share = trusted_share(torch.tensor([0, 64, 6400]), 64, 0.5)
    torch.testing.assert_close(share, torch.tensor([0.0, 2 / 3, 200 / 201]))
    assert trusted_share(torch.tensor([0, 1]), 64, 0.0).tolist() == [0.0, 1.0]


def test_gaps_in_bf16_lose_next_to_nothing() -> None:
    x, now, _ = pair()
    gap, narrow = x - now, now.bfloat16()
    expected, found = (Shortfall(COLS, COLS, torch.device("cpu"), of_inputs=True) for _ in range(2))
    expected.update(1, gap, narrow.float())
    found.update(1, gap, narrow)
    assert not found.halves[0].any()
    off = (found.halves - expected.halves).norm() / expected.halves.norm()
    assert off < 1e-3
