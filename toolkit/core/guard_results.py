"""Define the threshold of a guard, and the part of a report's row that is about its guard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Threshold:
    """Threshold of a guard and what it promises: see `quantization.guard`.

    Attributes:
        threshold: Largest INT8 margin (largest logit minus the second) of an image that runs again, in the
            unit of the logits.
        bound: Bound of the expected share of flips of images like those of the threshold.
        bound95: The same for this draw of images, at 95 % confidence.
        images: Images that the threshold is set on.
        flips: Flips of INT8 among them; `left`: those that the threshold leaves.
        rerun_share: Share of them that runs again.
    """

    threshold: float
    bound: float
    bound95: float
    images: int
    flips: int
    left: int
    rerun_share: float


@dataclass(frozen=True, slots=True)
class GuardSummary:
    """Guard of a variant: what it promises, and what it did on the evaluation images.

    Attributes:
        reference: Precision of the second run.
        threshold: Largest INT8 margin of an image that runs again, in the unit of the logits.
        max_flips: Limit of the recipe: share of images with another class than FP32's on the same target.
        bound: Bound of the expected share, for images like those of the threshold; `bound95`: of the share
            with this draw of them, at 95 % confidence.
        images: Images that the threshold is set on; `source`: their name.
        own_images: False: they are from the calibration source, which the network may have been trained on.
        simulated: True if an engine was simulated.
        promised_rerun_share: Share of these images that runs again.
        evaluated: Evaluated images; `rerun`: those that ran again; `flips`: those with another class than
            FP32's; `int8_flips`: the same of INT8 alone. None where not evaluated.
        flips_ci95: Exact 95 % interval of the share of flips.
        timed_rerun_share: Share of the timed images that ran twice.
        mean_ratio: Mean latency over that of INT8.
    """

    reference: Literal["fp32", "fp16", "bf16"]
    threshold: float
    max_flips: float
    bound: float
    bound95: float
    images: int
    source: str
    own_images: bool
    simulated: bool
    promised_rerun_share: float
    evaluated: int | None = None
    rerun: int | None = None
    flips: int | None = None
    int8_flips: int | None = None
    flips_ci95: tuple[float, float] | None = None
    timed_rerun_share: float | None = None
    mean_ratio: float | None = None

    @property
    def broken(self) -> bool:
        """Return True if the evaluation images contradict the limit: the whole interval is above it."""
        return self.flips_ci95 is not None and self.flips_ci95[0] > self.max_flips
