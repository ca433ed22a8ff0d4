"""Channel importances, one per file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from edgeship.toolkit.core import plugins
from edgeship.toolkit.prune.second_moments import System


@dataclass(frozen=True, slots=True)
class Reader:
    """A convolution or last layer whose input includes the C channels of a group.

    Attributes:
        system: Its normal equations; the first C * taps columns are the group's, channel by channel;
            the others are not pruned.
        weight: Its weights (columns, outputs), float64, in the same order.
        gain: Weight of each output in the error (outputs).
        taps: Columns per channel.
    """

    system: System
    weight: Tensor
    gain: Tensor
    taps: int

    @property
    def power(self) -> float:
        """Return the weighted power of the outputs."""
        return max(float((self.system.power * self.gain**2).sum()), 1e-30)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Statistics of a group of C channels.

    Attributes:
        norm: Squared norm of the producer's weights per channel (C).
        scale: Absolute gain of the BatchNorms between producer and readers (C).
        readers: All layers that read the channels.
    """

    norm: Tensor
    scale: Tensor
    readers: tuple[Reader, ...]


@dataclass(frozen=True, slots=True)
class Ranking:
    """Channels in the order of removal, least important first.

    Attributes:
        order: Every channel once.
        error: Sum over readers of the error relative to their power, without the first i channels
            (C + 1 values, 0 first).
    """

    order: Tensor
    error: Tensor


class Importance(Protocol):
    """Function that ranks the channels of a group."""

    def __call__(self, evidence: Evidence) -> Ranking:
        """Rank the channels."""
        ...


def names() -> tuple[str, ...]:
    """Return the names of all importances (their file names)."""
    return plugins.names("edgeship.toolkit.prune.importances")


def get(name: str) -> Importance:
    """Return the importance of that name.

    Raises:
        RecipeError: No importance has that name.
    """
    importance: Importance = plugins.get("edgeship.toolkit.prune.importances", name, "rank")
    return importance


def by_score(evidence: Evidence, score: Tensor) -> Ranking:
    """Rank by a score per channel; the error is that of removal without refit."""
    order = torch.argsort(score, stable=True)
    error = torch.zeros(len(order) + 1, dtype=torch.float64)
    for reader in evidence.readers:
        removed = (order[:, None] * reader.taps + torch.arange(reader.taps)).flatten()
        outputs_of = reader.weight[removed] * reader.gain
        gram = reader.system.gram[removed][:, removed]
        # trace(W' H W) over the first i rows grows by the row's own term and its cross terms before it
        grown = (torch.tril(gram, -1) @ outputs_of * outputs_of).sum(1) * 2
        grown += gram.diagonal() * (outputs_of**2).sum(1)
        error[1:] += grown.reshape(-1, reader.taps).sum(1).cumsum(0) / reader.power
    return Ranking(order, error)
