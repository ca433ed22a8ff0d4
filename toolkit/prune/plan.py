"""Pruning options and the plan that reports a pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.models.resnet import Architecture, Widths

Measure: TypeAlias = Callable[[Architecture], float]  # milliseconds of one inference, in INT8, on the device


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """Pruning goal, method and scope; at most one ratio or max_expected_drop_pp is set.

    Attributes:
        method: none, or the channel importance (a file of toolkit/prune/importances).
        keep_ratio: Ratio of channels that every group keeps, in (0, 1].
        macs_ratio: Ratio of multiply-accumulates to keep, in (0, 1]; widths follow sensitivity.
        latency_ratio: Target as a ratio of the dense INT8 model's latency on the device, in (0, 1].
        max_expected_drop_pp: Largest expected accuracy drop in percentage points, estimated without labels.
        channel_multiple: Channel counts are multiples of it (of a quarter of the width in narrow groups).
        scope: block: channels inside blocks; residual: channels of the residual streams; both.
        drop_blocks: Whether blocks with an identity shortcut may be dropped.
        flip_augment: Whether to add mirrored images: twice the rows from the same images.
        seed: Seed of the sampled positions.
    """

    method: str = "obs"
    keep_ratio: float | None = None
    macs_ratio: float | None = None
    latency_ratio: float | None = None
    max_expected_drop_pp: float | None = None
    channel_multiple: int = 16
    scope: Literal["block", "residual", "both"] = "block"
    drop_blocks: bool = False
    flip_augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        goals = {
            name: getattr(self, name)
            for name in ("keep_ratio", "macs_ratio", "latency_ratio", "max_expected_drop_pp")
            if getattr(self, name) is not None
        }
        if len(goals) > 1:
            raise RecipeError(
                f"prune: {' and '.join(goals)} are given; one goal is expected", hint="delete the others"
            )
        for name, value in goals.items():
            if name != "max_expected_drop_pp" and not 0 < value <= 1:
                raise RecipeError(
                    f"prune.{name}={value} is not in (0, 1]",
                    hint=f"set the ratio to keep: prune.{name}=0.5",
                )
            if name == "max_expected_drop_pp" and value < 0:
                raise RecipeError(f"prune.{name}={value} is negative", hint=f"set prune.{name}=1.0")
        if self.channel_multiple < 1:
            raise RecipeError(
                f"prune.channel_multiple={self.channel_multiple} is below 1",
                hint="set prune.channel_multiple=16 for CPUs, 32 for TensorRT",
            )
        if self.method != "none" and not goals:
            raise RecipeError(
                "prune: no goal is given; one is expected",
                hint="set prune.keep_ratio, macs_ratio, latency_ratio or max_expected_drop_pp",
            )


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
    latency_before_ms: float | None = None
    latency_after_ms: float | None = None
    latency_predicted_ms: float | None = None
    kl: float | None = None
    agreement: float | None = None
    expected_drop_pp: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    frontier: tuple[Candidate, ...] = ()
