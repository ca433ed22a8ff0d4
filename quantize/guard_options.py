"""Options of guarded INT8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgeship.toolkit.core.options import option


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """Guarded INT8: images whose two best classes are close run again in the reference.

    Off unless `max_flips` is set. The images of the threshold need no labels, are neither calibration nor
    evaluation images, and should be like the traffic: images that the network was trained on are not.
    """

    max_flips: float | None = option(
        None,
        "Largest expected share of images with another class than FP32's; needs 1 / share images.",
        above=0.0,
        most=0.1,
        flag="--guard",
        metavar="SHARE",
    )
    source: str = option(
        "",
        "Unlabelled images like the traffic, for the threshold; default: the calibration source.",
        path=True,
        flag="--guard-data",
    )
    images: int | Literal["all"] | None = option(
        None, "Number of images, or all; default: the fewest that support max_flips.", least=1
    )
    seed: int = option(0, "Seed of the selection.", least=0)
    reference: Literal["fp32", "fp16", "bf16"] = option(
        "fp32", "Precision of the second run; flips of a 16-bit float count in the bound."
    )
