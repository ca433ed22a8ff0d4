"""BatchNorm importance: absolute gain of the BatchNorm after a channel."""

from __future__ import annotations

from edgeship.toolkit.prune.importances import Evidence, Ranking, by_score


def rank(evidence: Evidence) -> Ranking:
    """Rank by gain, least first.

    Source:
        Liu et al. 2017, arXiv:1708.06519, sec. 3.
    """
    return by_score(evidence, evidence.scale)
