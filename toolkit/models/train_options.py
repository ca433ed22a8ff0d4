"""Options of training."""

from __future__ import annotations

from dataclasses import dataclass

from edgeship.toolkit.core.options import check_bounds, option


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Training with labels: SGD with a one-cycle rate."""

    epochs: int = option(12, "Passes over the images.", least=1)
    batch: int = option(64, "Images a step.", least=2)
    learning_rate: float = option(0.05, "Highest rate of the one-cycle schedule.", above=0.0, most=1000.0)
    weight_decay: float = option(5e-4, "Decay of the weights; BatchNorm and biases have none.", least=0.0)
    flip: bool = option(True, "Mirror half of the images.")
    crop_px: int = option(4, "Random shift, in pixels; the border has the mean colour.", least=0, most=256)
    seed: int = option(0, "Seed of weights, order and augmentation.", least=0)

    def __post_init__(self) -> None:
        check_bounds(self)
