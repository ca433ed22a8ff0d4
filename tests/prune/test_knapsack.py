"""The knapsack against brute force, and the stairs of latency."""

import itertools

import numpy as np
import pytest

from edgeship.toolkit.prune.knapsack import Option, allocate, pareto_options


@pytest.mark.parametrize("seed", range(8))
def test_never_over_budget_and_near_the_optimum(seed):
    rng = np.random.default_rng(seed)
    blocks = [
        [Option((i,), float(rng.uniform(0, 10)), float(rng.uniform(0, 1))) for i in range(5)]
        for _ in range(5)
    ]
    budget = float(rng.uniform(10, 30))

    def total(choice, what):
        return sum(getattr(options[n], what) for options, n in zip(blocks, choice, strict=True))

    every = [c for c in itertools.product(range(5), repeat=5) if total(c, "cost") <= budget]
    got = allocate(blocks, budget)
    if not every:
        assert got is None
        return
    assert total(got, "cost") <= budget
    assert total(got, "error") <= 1.02 * min(total(c, "error") for c in every) + 1e-9


def test_a_budget_that_cannot_be_met():
    assert allocate([[Option((1,), 2.0, 0.0)]] * 2, 3.9) is None
    assert allocate([[Option((1,), 2.0, 0.0)]] * 2, 4.0) == (0, 0)
    assert allocate([[Option((1,), 2.0, 0.0)]], 0.0) is None


def test_only_the_right_edge_of_each_stair_is_left():
    stairs = [
        Option((16,), 1.000, 0.9),
        Option((24,), 1.500, 0.7),
        Option((32,), 1.505, 0.5),  # free channels: the same stair as 24
        Option((48,), 2.500, 0.3),
        Option((56,), 2.400, 0.2),  # wider and faster
        Option((64,), 3.000, 0.0),
    ]
    assert [o.inner for o in pareto_options(stairs)] == [(16,), (32,), (56,), (64,)]
