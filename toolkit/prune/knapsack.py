"""How wide each block should be: a knapsack over measured costs and label-free errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FREE = 0.01  # a wider option within this part of the cost of a narrower one is free: take it
BUCKETS = 4000


@dataclass(frozen=True, slots=True)
class Option:
    """One way to make a block.

    Attributes:
        inner: Inner widths; () drops the block.
        cost: Milliseconds or multiply-accumulates.
        error: What it costs in accuracy, in nats of KL divergence.
    """

    inner: tuple[int, ...]
    cost: float
    error: float


def right_edges(options: Sequence[Option]) -> tuple[Option, ...]:
    """The options that pay: none that another one beats or, for at most 1 % more cost, has less error.

    Latency is a staircase over the width: of each stair only the widest option is left.
    """
    kept: list[Option] = []
    for option in sorted(options, key=lambda o: (o.cost, o.error)):
        if kept and option.error >= kept[-1].error:
            continue  # no better, and no cheaper
        while kept and option.cost <= kept[-1].cost * (1 + FREE):
            kept.pop()
        kept.append(option)
    return tuple(kept)


def allocate(blocks: Sequence[Sequence[Option]], budget: float) -> tuple[int, ...] | None:
    """Choose one option a block so that the costs stay within the budget and the error is least.

    Costs are rounded up to a bucket, so the budget is never passed; None where it cannot be met.

    Args:
        blocks: The options of each block.
        budget: In the unit of the costs.

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
    found = []
    for choice, weights in reversed(choices):
        number = int(choice[at])
        found.append(number)
        at -= weights[number]
    return tuple(reversed(found))
