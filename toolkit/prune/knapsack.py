"""Allocation of block widths: a multiple-choice knapsack over measured costs and label-free errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FREE = 0.01  # a wider option replaces a narrower one whose cost is less by at most this ratio
BUCKETS = 4000


@dataclass(frozen=True, slots=True)
class Option:
    """Candidate widths of one block.

    Attributes:
        inner: Inner widths; () drops the block.
        cost: Milliseconds or multiply-accumulates.
        error: KL divergence from the dense network in nats.
    """

    inner: tuple[int, ...]
    cost: float
    error: float


def pareto_options(options: Sequence[Option]) -> tuple[Option, ...]:
    """Return the Pareto-optimal options, without those that have a better one for at most 1 % more cost.

    Latency is a step function of the width: only the widest option of each step remains.
    """
    frontier: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if frontier and option.error >= frontier[-1].error:
            continue  # dominated
        while frontier and option.cost <= frontier[-1].cost * (1 + FREE):
            frontier.pop()
        frontier.append(option)
    return tuple(frontier)


def allocate(blocks: Sequence[Sequence[Option]], budget: float) -> tuple[int, ...] | None:
    """Choose one option per block: the least total error within the budget.

    Costs are rounded up to a bucket, so the budget is never exceeded; None if it cannot be met.

    Args:
        blocks: The options of each block.
        budget: Largest total cost, in the unit of the costs.

    Source:
        Multiple-choice knapsack by dynamic programming, as Frantar and Alistarh 2022 (SPDY),
        arXiv:2201.13096, sec. 3.
    """
    if budget <= 0:
        return None
    unit = budget / BUCKETS
    best = np.full(BUCKETS + 1, np.inf)
    best[0] = 0.0
    choices = []
    for options in blocks:
        weights = [max(0, math.ceil(option.cost / unit - 1e-9)) for option in options]
        grown = np.full(BUCKETS + 1, np.inf)
        choice = np.full(BUCKETS + 1, -1)
        for number, (option, weight) in enumerate(zip(options, weights, strict=True)):
            if weight > BUCKETS:
                continue
            candidate = np.full(BUCKETS + 1, np.inf)
            candidate[weight:] = best[: BUCKETS + 1 - weight] + option.error
            better = candidate < grown
            grown[better], choice[better] = candidate[better], number
        best = grown
        choices.append((choice, weights))
    at = int(np.argmin(best))
    if not np.isfinite(best[at]):
        return None
    selected = []
    for choice, weights in reversed(choices):
        number = int(choice[at])
        selected.append(number)
        at -= weights[number]
    return tuple(reversed(selected))
