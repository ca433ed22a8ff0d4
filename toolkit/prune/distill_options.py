"""Options of the distillation after pruning."""

from __future__ import annotations

from dataclasses import dataclass

from edgeship.toolkit.core.options import option
from edgeship.toolkit.models.train_options import TrainOptions


@dataclass(frozen=True, slots=True)
class DistillOptions(TrainOptions):
    """Distillation of the unpruned network into the pruned one; needs no labels."""

    epochs: int = option(2, "Passes over the images; 0 = none.", least=0)
    batch: int = option(32, "Images a step.", least=2)
    learning_rate: float = option(0.01, "Highest rate of the one-cycle schedule.", above=0.0, most=1000.0)
    weight_decay: float = option(1e-4, "Decay of the weights.", least=0.0)
    feature_weight: float = option(
        1.0, "Weight of the loss on stage outputs, relative to that on logits.", least=0.0
    )
    label_weight: float = option(0.0, "Weight of the labels; 0 needs none.", least=0.0)
    qat_fraction: float = option(
        0.25,
        "Fraction of the epochs, at the end, with fake INT8 quantization.",
        least=0.0,
        most=1.0,
        renamed_from="int8_part",
    )
    ema_decay: float = option(
        0.999,
        "Decay per step of the moving average of the weights; used with prune.budget_s.",
        least=0.0,
        most=1.0,
    )
