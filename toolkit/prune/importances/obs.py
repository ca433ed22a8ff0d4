"""Group OBS: what is lost by a channel after everything that is left has been refitted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeship.toolkit.prune.importances import Evidence, Ranking, Reader
from edgeship.toolkit.prune.least_squares import columns_of, factor

RIDGE = 1e-2  # of the mean diagonal
STEPS = 64  # channels leave in about as many steps: beyond, the order hardly changes, the time does


@dataclass(slots=True)
class _Elimination:
    """Inverse Gram matrix and refitted weights of one reader, in float32: only an order is wanted."""

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

    def costs(self, left: Tensor) -> Tensor:
        """What each of the remaining channels would cost alone; infinite for those that are gone."""
        columns = len(left) * self.taps
        blocks = self.inverse[:columns, :columns].reshape(len(left), self.taps, len(left), self.taps)
        blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[left]
        rows = self.weight[:columns].reshape(len(left), self.taps, -1)[left]
        costs = torch.full((len(left),), torch.inf, dtype=torch.float64)
        costs[left] = (torch.linalg.solve(blocks, rows) * rows).sum((1, 2)).double() / self.power
        return costs

    def remove(self, gone: Tensor) -> float:
        """Give up some channels together; returns what that costs. Their rows become zero."""
        at = columns_of(gone, self.taps)
        reach = self.inverse[:, at]
        repair = torch.linalg.solve(reach[at], torch.cat([self.weight[at], self.inverse[at]], 1))
        outputs = self.weight.shape[1]
        cost = float((self.weight[at] * repair[:, :outputs]).sum()) / self.power
        self.weight.addmm_(reach, repair[:, :outputs], alpha=-1)
        self.inverse.addmm_(reach, repair[:, outputs:], alpha=-1)
        return cost


def rank(evidence: Evidence) -> Ranking:
    """Eliminate channels from the inverse Gram matrices, cheapest first, updating the rest each time.

    With P the inverse of a regularized Gram matrix and W = P G the refitted weights, giving up the
    columns J costs trace(W_J' inv(P_JJ) W_J), and leaves W - P_J inv(P_JJ) W_J and the like for P.

    Source:
        Hassibi and Stork 1993; for groups, Frantar and Alistarh 2022, arXiv:2208.11580, sec. 4.
    """
    channels = len(evidence.norm)
    readers = [_Elimination.start(reader) for reader in evidence.readers]
    step = max(1, channels // STEPS)
    left = torch.ones(channels, dtype=torch.bool)
    order, error = [], [torch.zeros(1, dtype=torch.float64)]
    while bool(left.any()):
        alone = torch.stack([reader.costs(left) for reader in readers]).sum(0)
        gone = torch.argsort(alone, stable=True)[: min(step, int(left.sum()))]
        together = sum(reader.remove(gone) for reader in readers)
        share = alone[gone].clamp_min(1e-30).cumsum(0)
        error.append(error[-1][-1] + together * share / share[-1])
        order.append(gone)
        left[gone] = False
    return Ranking(torch.cat(order), torch.cat(error))
