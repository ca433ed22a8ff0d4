"""Running statistics of BatchNorm layers: detection of initial values, and re-estimation from images."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.models.resnet import ResNet

BATCH = 50  # images per batch of the running average


def layers_with_initial_statistics(model: ResNet) -> list[str]:
    """Return the names of BatchNorm layers whose running statistics have their initial values."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and module.running_mean is not None
        and module.running_var is not None
        and not bool(module.running_mean.any())
        and bool((module.running_var == 1).all())
    ]


def reestimate_statistics(model: ResNet, images: FloatArray) -> ResNet:
    """Return a copy with running statistics averaged over batches of images (N, C, H, W).

    Source:
        Izmailov et al. 2018, arXiv:1803.05407, sec. 3.2 (a pass over the data after a weight update).
    """
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # cumulative average
            module.train()
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            copied(torch.from_numpy(images[start : start + BATCH]))
    return copied.eval()


def logits(model: ResNet, images: FloatArray) -> FloatArray:
    """Return the logits (N, classes) of images (N, C, H, W)."""
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(images[start : start + BATCH])).numpy()
            for start in range(0, len(images), BATCH)
        ]
    return np.concatenate(parts)
