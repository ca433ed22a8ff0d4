"""Magnitude importance: norm of a channel's weights in its producer and its readers."""

from __future__ import annotations

from edgeship.toolkit.prune.importances import Evidence, Ranking, by_score


def rank(evidence: Evidence) -> Ranking:
    """Rank by norm, least first.

    Source:
        Fang et al. 2023, arXiv:2301.12900, sec. 3.3: the norm over all weights coupled to a channel.

    """
    score = evidence.norm / evidence.norm.mean()
    for reader in evidence.readers:
        read = reader.weight[: len(score) * reader.taps].square().reshape(len(score), -1).sum(1)
        score = score + read / read.mean()
    return by_score(evidence, score)
