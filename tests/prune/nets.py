"""Small networks and images that the pruning tests share."""

import numpy as np
import torch

from edgeship.toolkit.models.resnet import architecture, build


def lively(name="resnet18", seed=0, **options):
    """A small network whose BatchNorms do something."""
    model = build(architecture(name, **{"width": 8, "classes": 6, **options}), seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def pictures(count=40, size=32, seed=0):
    """Smooth random images in batches of 10."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 3, 4, 4))
    images = coarse.repeat(size // 4, 2).repeat(size // 4, 3) + 0.3 * rng.normal(size=(count, 3, size, size))
    return [images[i : i + 10].astype(np.float32) for i in range(0, count, 10)]


def settled(model):
    """The same network with BatchNorm statistics that fit the pictures, as after training, decided logits."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in pictures(60, seed=7):
            model.train()(torch.from_numpy(batch))
    for norm in norms:
        norm.momentum = 0.1
    model.fc.weight.data *= 20  # logits that differ from image to image
    return model.eval()
