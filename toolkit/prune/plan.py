"""The plan that reports a pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from edgeship.toolkit.models.resnet import Architecture, Widths

Measure: TypeAlias = Callable[[Architecture], float]  # milliseconds of one inference, in INT8, on the device


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate network of the search, or the dense one.

    Attributes:
        macs: Multiply-accumulates of an image.
        expected_drop_pp: As in `PrunePlan`.
        latency_ms: Measured INT8 latency on the device; None if not measured.
        chosen: Whether this candidate is the result.
    """

    macs: int
    expected_drop_pp: float
    latency_ms: float | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """Removed channels, and their effect on cost and accuracy.

    Attributes:
        method: none, or the channel importance.
        widths_before: Channel counts of the dense network.
        widths_after: Channel counts of the pruned network.
        macs_before: Multiply-accumulates of an image, dense.
        macs_after: Multiply-accumulates of an image, pruned.
        kept: Group -> indices of the kept channels.
        dropped: Names of dropped blocks.
        stem_strides: Strides of the first convolution and of the max pool, if they were changed.
        latency_before_ms: Latency of the dense INT8 model on the device; None if not measured.
        latency_after_ms: Measured latency of the pruned INT8 model.
        latency_predicted_ms: Latency of the pruned INT8 model predicted from the block table.
        kl: Mean KL divergence from the dense logits on held-out images, in nats.
        agreement: Top-1 agreement with the dense network on held-out images, in [0, 1].
        expected_drop_pp: Estimated without labels: the dense model's mean probability of its own
            top-1 class minus that of the pruned model's.
        errors: Layer -> held-out error of its refit, relative to the power of its outputs.
        warnings: Warnings for the user.
        frontier: The dense network and every candidate; empty for a single candidate.
    """

    method: str
    widths_before: Widths
    widths_after: Widths
    macs_before: int
    macs_after: int
    kept: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    stem_strides: tuple[int, int] | None = None
    latency_before_ms: float | None = None
    latency_after_ms: float | None = None
    latency_predicted_ms: float | None = None
    kl: float | None = None
    agreement: float | None = None
    expected_drop_pp: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    frontier: tuple[Candidate, ...] = ()
