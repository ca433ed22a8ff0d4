"""Which channels of a group matter: one file is one importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edgeship.toolkit.core import plugins
from edgeship.toolkit.prune.second_moments import System


@dataclass(frozen=True, slots=True)
class Reader:
    """A convolution or last layer that reads the C channels of a group.

    Attributes:
        system: Its normal equations; the first C * taps columns are the group's, channel by channel,
            what follows is read too but stays.
        weight: Its weights (columns, outputs), float64, in the same order.
        gain: How much each output counts (outputs).
        taps: Columns a channel.
    """

    system: System
    weight: Tensor
    gain: Tensor
    taps: int

    @property
    def power(self) -> float:
        """What the outputs carry."""
        return max(float((self.system.power * self.gain**2).sum()), 1e-30)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a group of C channels.

    Attributes:
        norm: Squared norm of the weights that make each channel (C).
        scale: Absolute gain of the BatchNorms between (C).
        readers: Everything that reads the channels.
    """

    norm: Tensor
    scale: Tensor
    readers: tuple[Reader, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Channels in the order in which they are given up, least important first.

    Attributes:
        order: Every channel once.
        error: Error of the readers once the first i are gone (C + 1 values, 0 first), each as part of
            its power, summed.
    """

    order: Tensor
    error: Tensor


class Importance(Protocol):
    """A way to rank the channels of a group."""

    def __call__(self, evidence: Evidence) -> Ranking:
        """Rank the channels."""
        ...


def names() -> tuple[str, ...]:
    """Every importance, by the name of its file."""
    return plugins.names("edgeship.toolkit.prune.importances")


def get(name: str) -> Importance:
    """The importance of that name.

    Raises:
        RecipeError: There is none.
    """
    found: Importance = plugins.get("edgeship.toolkit.prune.importances", name, "rank")
    return found


def by_score(evidence: Evidence, score: Tensor) -> Ranking:
    """Rank by one score a channel; the error is that of leaving the channels out, without repair."""
    order = torch.argsort(score, stable=True)
    error = torch.zeros(len(order) + 1, dtype=torch.float64)
    for reader in evidence.readers:
        gone = (order[:, None] * reader.taps + torch.arange(reader.taps)).flatten()
        removed = reader.weight[gone] * reader.gain
        gram = reader.system.gram[gone][:, gone]
        # trace(W' H W) over the first i rows grows by the row's own term and its cross terms before it
        grown = (torch.tril(gram, -1) @ removed * removed).sum(1) * 2
        grown += gram.diagonal() * (removed**2).sum(1)
        error[1:] += grown.reshape(-1, reader.taps).sum(1).cumsum(0) / reader.power
    return Ranking(order, error)
