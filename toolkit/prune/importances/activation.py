"""Activation importance: power that a channel adds to the outputs of its readers on the images."""

from __future__ import annotations

import torch

from edgeship.toolkit.prune.importances import Evidence, Ranking, by_score


def rank(evidence: Evidence) -> Ranking:
    """Rank by power, least first: trace(W_j' H_jj W_j), with the gains of the outputs."""
    channels = len(evidence.norm)
    score = torch.zeros(channels, dtype=torch.float64)
    for reader in evidence.readers:
        taps, columns = reader.taps, channels * reader.taps
        rows = (reader.weight[:columns] * reader.gain).reshape(channels, taps, -1)
        gram = reader.system.gram[:columns, :columns].reshape(channels, taps, channels, taps)
        own = gram.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        score += ((own @ rows) * rows).sum((1, 2)) / reader.power
    return by_score(evidence, score)
