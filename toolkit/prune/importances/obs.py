"""Group OBS importance: error of removing a channel after the remaining weights are refitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeship.toolkit.prune.importances import Evidence, Ranking, Reader
from edgeship.toolkit.prune.least_squares import columns_of, factor

RIDGE = 1e-2  # of the mean diagonal
STEPS = 64  # approximate number of elimination steps; more hardly change the order


@dataclass(slots=True)
class _Elimination:
    """Inverse Gram matrix and refitted weights of one reader; float32 suffices for an order."""

    inverse: Tensor
    weight: Tensor
    taps: int
    power: float

    @classmethod
    def start(cls, reader: Reader) -> _Elimination:
        gram = reader.system.gram
        ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-12)
        lower = factor(gram, ridge)
        weight = torch.cholesky_solve(reader.system.cross + ridge * reader.weight, lower) * reader.gain
        return cls(torch.cholesky_inverse(lower.float()), weight.float(), reader.taps, reader.power)

    def costs(self, remaining: Tensor) -> Tensor:
        """Return the cost of removing each remaining channel; infinite for removed ones."""
        columns = len(remaining) * self.taps
        blocks = self.inverse[:columns, :columns].reshape(
            len(remaining), self.taps, len(remaining), self.taps
        )
        blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[remaining]
        rows = self.weight[:columns].reshape(len(remaining), self.taps, -1)[remaining]
        costs = torch.full((len(remaining),), torch.inf, dtype=torch.float64)
        costs[remaining] = (torch.linalg.solve(blocks, rows) * rows).sum((1, 2)).double() / self.power
        return costs

    def remove(self, removed: Tensor) -> float:
        """Remove some channels together and return the cost; their rows become zero."""
        at = columns_of(removed, self.taps)
        reach = self.inverse[:, at]
        repair = torch.linalg.solve(reach[at], torch.cat([self.weight[at], self.inverse[at]], 1))
        outputs = self.weight.shape[1]
        cost = float((self.weight[at] * repair[:, :outputs]).sum()) / self.power
        self.weight.addmm_(reach, repair[:, :outputs], alpha=-1)
        self.inverse.addmm_(reach, repair[:, outputs:], alpha=-1)
        return cost


def rank(evidence: Evidence) -> Ranking:
    """Eliminate channels from the inverse Gram matrices, cheapest first, with an update after each step.

    With P the inverse of a regularized Gram matrix and W = P G the refitted weights, removing columns J
    costs trace(W_J' inv(P_JJ) W_J) and updates W to W - P_J inv(P_JJ) W_J, and P alike.

    Source:
        Hassibi and Stork 1993; for groups, Frantar and Alistarh 2022, arXiv:2208.11580, sec. 4.
    """
    channels = len(evidence.norm)
    readers = [_Elimination.start(reader) for reader in evidence.readers]
    step = max(1, channels // STEPS)
    remaining = torch.ones(channels, dtype=torch.bool)
    order, error = [], [torch.zeros(1, dtype=torch.float64)]
    while bool(remaining.any()):
        costs = torch.stack([reader.costs(remaining) for reader in readers]).sum(0)
        removed = torch.argsort(costs, stable=True)[: min(step, int(remaining.sum()))]
        total_cost = sum(reader.remove(removed) for reader in readers)
        cumulative = costs[removed].clamp_min(1e-30).cumsum(0)
        error.append(error[-1][-1] + total_cost * cumulative / cumulative[-1])
        order.append(removed)
        remaining[removed] = False
    return Ranking(torch.cat(order), torch.cat(error))
