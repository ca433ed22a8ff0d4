"""What to prune for, and what a pruning did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.models.resnet import Architecture, Widths

Measure: TypeAlias = Callable[[Architecture], float]  # milliseconds of one inference, in INT8, on the device


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """Goal and method of pruning; at most one ratio or max_expected_drop_pp is set.

    Attributes:
        method: none, or the importance that chooses channels (a file of toolkit/prune/importances).
        keep_ratio: Part of the channels that every group keeps, in (0, 1].
        macs_ratio: Part of the multiply-accumulates that stays, in (0, 1]; widths follow sensitivity.
        latency_ratio: Part of the dense INT8 model's latency on the device, in (0, 1].
        max_expected_drop_pp: Expected drop in percentage points that must not be passed, estimated without
            labels.
        channel_multiple: Channel counts are multiples of it (of a quarter of the width in narrow groups).
        scope: block: channels inside blocks; residual: what the residual additions carry; both.
        drop_blocks: Whether whole blocks may go where the shortcut is the identity.
        flip_augment: Whether mirrored images count too: twice the rows from the same images.
        seed: Of the sampled positions.
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
                f"prune: {' and '.join(goals)} are given", hint="one goal at a time; delete the others"
            )
        for name, value in goals.items():
            if name != "max_expected_drop_pp" and not 0 < value <= 1:
                raise RecipeError(
                    f"prune.{name}={value} is not in (0, 1]",
                    hint=f"it is the part that stays: prune.{name}=0.5",
                )
            if name == "max_expected_drop_pp" and value < 0:
                raise RecipeError(
                    f"prune.max_expected_drop_pp={value} is negative", hint="prune.max_expected_drop_pp=1.0"
                )
        if self.channel_multiple < 1:
            raise RecipeError(
                f"prune.channel_multiple={self.channel_multiple} is below 1",
                hint="16 suits CPUs, 32 TensorRT",
            )
        if self.method != "none" and not goals:
            raise RecipeError(
                "prune: no goal is given",
                hint="set prune.keep_ratio, macs_ratio, latency_ratio or max_expected_drop_pp",
            )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A network that was pruned on the way to the goal, or the dense one.

    Attributes:
        macs: Multiply-accumulates of an image.
        expected_drop_pp: As of `PrunePlan`.
        latency_ms: In INT8 on the device, measured; None where not asked for.
        chosen: Whether it is the one that is handed on.
    """

    macs: int
    expected_drop_pp: float
    latency_ms: float | None
    chosen: bool


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What was taken out, and what it brought.

    Attributes:
        method: none, or the importance that chose.
        widths_before: Channel counts of the dense network.
        widths_after: Channel counts that are left.
        kept: Group -> indices of the channels that it kept.
        dropped: Names of dropped blocks.
        macs_before: Multiply-accumulates of an image, dense.
        macs_after: And pruned.
        latency_before_ms: Of the dense INT8 model on the device; None where not asked for.
        latency_after_ms: Of the pruned one, measured.
        latency_predicted_ms: What the table said of the pruned one.
        kl: Mean KL divergence from the dense logits, on images held out, in nats.
        agreement: Part of these images on which both put the same class first.
        expected_drop_pp: Estimated without labels: confidence of the dense model in its own first
            class less that in the pruned model's.
        errors: Layer -> held-out error of its refit, as part of the power of its outputs.
        warnings: What the user should know.
        frontier: Every network that was tried on the way, and the dense one; empty where only one was.
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
