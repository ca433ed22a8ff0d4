"""Running statistics of BatchNorm layers: untouched, or re-estimated from images."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.models.resnet import ResNet

BATCH = 50  # images whose statistics are one sample of the running mean


def untouched(model: ResNet) -> list[str]:
    """Return the BatchNorm layers whose running statistics are those of a new network."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        and module.running_mean is not None
        and module.running_var is not None
        and not bool(module.running_mean.any())
        and bool((module.running_var == 1).all())
    ]


def reestimated(model: ResNet, images: FloatArray) -> ResNet:
    """Return a copy whose running statistics are the averages over batches of (N, C, H, W) images.

    Source:
        Izmailov et al. 2018, arXiv:1803.05407, sec. 3.2 (a pass over the data after weights have changed).
    """
    own = copy.deepcopy(model)
    for module in own.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a plain average
            module.train()
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            own(torch.from_numpy(images[start : start + BATCH]))
    return own.eval()


def logits(model: ResNet, images: FloatArray) -> FloatArray:
    """Return (N, classes) logits of (N, C, H, W) images."""
    with torch.inference_mode():
        parts = [
            model(torch.from_numpy(images[start : start + BATCH])).numpy()
            for start in range(0, len(images), BATCH)
        ]
    return np.concatenate(parts)
