from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from alphaquant.algorithms.knapsack import Selection, solve

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
BITS = np.array([2.125, 3.125, 4.125, 4.25, 6.125, 6.25, 8.125, 8.25, 16.0])


def model_like(groups: int, seed: int) -> tuple[Ints, Floats]:
    """Costs and losses as formats have them: a factor of 4 per bit, uneven, over mixed sizes."""
    random = np.random.default_rng(seed)
    sizes = random.choice([2**12, 3 * 2**12, 2**14, 5 * 2**10], groups)[:, None]
    losses = random.lognormal(0, 1.5, (groups, 1)) * sizes * 4.0**-BITS
    losses = losses * random.uniform(0.6, 1.4, (groups, len(BITS)))
    losses[:, -1] = 0.0
    return np.round(sizes * BITS).astype(np.int64), losses


def exhaustive(costs: Ints, losses: Floats, budget: int) -> float:
    index = np.arange(len(costs))
    return min(
        losses[index, picks].sum()
        for picks in itertools.product(range(costs.shape[1]), repeat=len(costs))
        if costs[index, picks].sum() <= budget
    )


def highs(costs: Ints, losses: Floats, budget: int) -> float:
    groups, options = costs.shape
    scale = losses.max() / 1e6
    one_each = np.kron(np.eye(groups), np.ones(options))
    result = milp(
        losses.ravel() / scale,
        integrality=np.ones(groups * options),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(costs.reshape(1, -1) / 128.0, -np.inf, budget / 128.0),
        ],
        options={"mip_rel_gap": 0.0},
    )
    assert result.status == 0
    return float(result.fun * scale)


def check(selection: Selection, costs: Ints, losses: Floats, budget: int) -> None:
    index = np.arange(len(costs))
    assert selection.cost == costs[index, selection.picks].sum() <= budget
    assert selection.loss == pytest.approx(losses[index, selection.picks].sum())
    assert selection.bound <= selection.loss * (1 + 1e-12)


small = st.integers(0, 10**6).flatmap(
    lambda seed: st.tuples(st.just(seed), st.integers(1, 6), st.integers(1, 5), st.floats(0, 1))
)


@given(small)
@settings(deadline=None)
def test_it_finds_what_exhaustive_search_finds(case: tuple[int, int, int, float]) -> None:
    seed, groups, options, room = case
    random = np.random.default_rng(seed)
    costs = random.integers(1, 40, (groups, options))
    losses = random.integers(0, 30, (groups, options)) / 7
    least, most = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    budget = int(least + room * (most - least))
    selection = solve(costs, losses, budget)
    check(selection, costs, losses, budget)
    assert selection.exact
    assert selection.loss == pytest.approx(exhaustive(costs, losses, budget), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_eight_groups_equal_exhaustive_search(seed: int) -> None:
    costs, losses = model_like(8, seed)
    costs, losses = costs[:, ::2], losses[:, ::2]
    budget = int(costs.mean() * 8 * 0.6)
    selection = solve(costs, losses, budget)
    assert selection.loss == pytest.approx(exhaustive(costs, losses, budget), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [2.5, 4.25, 7.0])
def test_two_hundred_groups_equal_an_exact_solver(seed: int, bits: float) -> None:
    costs, losses = model_like(200, seed)
    budget = int(bits * costs[:, -1].sum() / 16)
    selection = solve(costs, losses, budget)
    check(selection, costs, losses, budget)
    assert selection.exact
    assert selection.loss == pytest.approx(highs(costs, losses, budget), rel=1e-7)


def test_thousands_of_groups_are_solved_exactly() -> None:
    costs, losses = model_like(3136, 0)
    budget = int(4.25 * costs[:, -1].sum() / 16)
    selection = solve(costs, losses, budget)
    check(selection, costs, losses, budget)
    assert selection.exact
    assert selection.gap < 1e-5


def test_a_larger_budget_never_costs_loss() -> None:
    costs, losses = model_like(40, 1)
    budgets = np.linspace(costs.min(axis=1).sum(), costs.max(axis=1).sum(), 60).astype(int)
    found = [solve(costs, losses, int(budget)).loss for budget in budgets]
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] == 0


def test_when_the_search_is_cut_short_the_loss_is_within_one_move_of_the_bound() -> None:
    random = np.random.default_rng(0)
    costs = random.integers(1, 10**7, (60, 4))
    losses = (10**8 - costs).astype(float)  # every option costs the same per loss saved
    budget = int(costs.mean(axis=1).sum())
    selection = solve(costs, losses, budget)
    check(selection, costs, losses, budget)
    assert not selection.exact
    assert selection.loss - selection.bound <= np.ptp(losses, axis=1).max()
    assert selection.gap < 1e-4


def test_the_smallest_budget_gives_the_cheapest_options() -> None:
    costs, losses = model_like(10, 0)
    assert solve(costs, losses, int(costs.min(axis=1).sum())).picks == [0] * 10


def test_an_option_that_is_dearer_and_worse_is_never_taken() -> None:
    costs = np.array([[10, 20, 15], [10, 20, 15]])
    losses = np.array([[3.0, 1.0, 4.0], [3.0, 1.0, 4.0]])
    assert 2 not in solve(costs, losses, 35).picks


def test_losses_that_are_all_zero_cost_as_little_as_possible() -> None:
    costs, losses = model_like(5, 0)
    assert solve(costs, np.zeros_like(losses), 10**9).picks == [0] * 5


def test_no_groups_are_no_picks() -> None:
    selection = solve(np.zeros((0, 3), dtype=np.int64), np.zeros((0, 3)), 5)
    assert (selection.picks, selection.loss, selection.cost) == ([], 0.0, 0)
