"""Define what is read of quantized graphs and of pruning: quantize.json, sensitivity.json and plan.json.

The files have more fields, for experts; a field that an earlier version did not write is None or empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True)
class ActivationScale:
    """Quantization of an activation; `counts` is the histogram in equal bins from `low` to `high`."""

    dtype: Literal["int8", "uint8"]
    scale: float
    zero_point: int
    low: float
    high: float
    counts: tuple[float, ...] = ()

    @property
    def clip_points(self) -> tuple[float, float]:
        """Return the lowest and highest value that the integers represent."""
        lowest, highest = (-128, 127) if self.dtype == "int8" else (0, 255)
        return (lowest - self.zero_point) * self.scale, (highest - self.zero_point) * self.scale


@dataclass(frozen=True, slots=True)
class WeightScales:
    """Scales of the output channels of a weight tensor."""

    largest_scale: float
    median_scale: float | None = None
    smallest_scale: float | None = None


@dataclass(frozen=True, slots=True)
class QuantizationSummary:
    """A quantized graph of quantize.json, by name of the graph.

    Attributes:
        activations: Tensor -> quantization; `weights`: initializer -> scales.
        warnings: Warnings for the report.
        int8_sums: Accumulation of INT8 products that the graph is safe for; None: any.
    """

    FILE: ClassVar[str] = "quantize.json"
    activations: dict[str, ActivationScale] = field(default_factory=dict)
    weights: dict[str, WeightScales] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    int8_sums: Literal["exact", "pairs"] | None = None


@dataclass(frozen=True, slots=True)
class LayerSensitivity:
    """Error by a layer, in dB of SQNR.

    Attributes:
        sqnr_db: Of the layer's output with all layers quantized.
        alone_sqnr_db: Of the logits with this layer alone quantized; `float_sqnr_db`: alone in float.
        drop_db: Gain of the logits with this layer alone in float.
        reverted: True if the layer is left in float; `why`: the reason.
    """

    name: str
    kind: str = ""
    sqnr_db: float | None = None
    alone_sqnr_db: float | None = None
    float_sqnr_db: float | None = None
    drop_db: float | None = None
    reverted: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """A graph of sensitivity.json, by name: layers in order, and the number of calibration images."""

    FILE: ClassVar[str] = "sensitivity.json"
    layers: tuple[LayerSensitivity, ...] = ()
    images: int | None = None


@dataclass(frozen=True, slots=True)
class ChannelCounts:
    """Channels of a network: stem, stream of each stage, and inside each block of each stage."""

    stem: int
    streams: tuple[int, ...]
    inner: tuple[tuple[tuple[int, ...], ...], ...]

    def by_position(self) -> dict[str, int]:
        """Return the channel counts by position; a dropped block has none."""
        counts = {"stem": self.stem}
        for stage, (stream, blocks) in enumerate(zip(self.streams, self.inner, strict=True), 1):
            counts[f"stream{stage}"] = stream
            for block, inner in enumerate(blocks):
                counts |= {f"layer{stage}.{block}.inner{i}": count for i, count in enumerate(inner, 1)}
        return counts


@dataclass(frozen=True, slots=True)
class PruningCandidate:
    """A candidate of the search: cost in ms or multiply-accumulates, top-1 or expected drop."""

    macs: float | None = None
    latency_ms: float | None = None
    top1: float | None = None
    expected_drop_pp: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class PruningSummary:
    """The part of plan.json that is shown; see `prune.plan.PrunePlan`."""

    method: str = "none"
    widths_before: ChannelCounts | None = None
    widths_after: ChannelCounts | None = None
    macs_before: int | None = None
    macs_after: int | None = None
    dropped: tuple[str, ...] = ()
    stem_strides: tuple[int, int] | None = None
    latency_before_ms: float | None = None
    latency_after_ms: float | None = None
    latency_predicted_ms: float | None = None
    agreement: float | None = None
    expected_drop_pp: float | None = None
    errors: dict[str, float | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    frontier: tuple[PruningCandidate, ...] = ()
