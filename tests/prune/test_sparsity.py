"""2:4 sparsity: the pattern TensorRT reads, and less error than masking alone."""

import numpy as np
import torch
from prune.nets import lively, pictures

from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.models.resnet import architecture
from edgeship.toolkit.prune import advise, sparsify


def masked(model):
    """The two smallest of every four input channels at a tap, without repair."""
    for _, _, _, block in model.blocks():
        for i in range(1, block.depth + 1):
            weight = block.conv(i).weight.data
            groups = weight.reshape(len(weight), -1, 4, *weight.shape[2:])
            least = groups.abs().argsort(2)[:, :, :2]
            groups.scatter_(2, least, 0.0)
    return model


def test_two_of_four_channels_at_every_tap_and_repaired():
    dense = lively("resnet18")
    sparse = sparsify(dense, pictures(40))
    for name, _, _, block in sparse.blocks():
        for i in range(1, block.depth + 1):
            weight = block.conv(i).weight
            groups = weight.reshape(len(weight), -1, 4, *weight.shape[2:])
            assert int((groups != 0).sum(2).max()) <= 2, name
    images = torch.from_numpy(np.concatenate(pictures(40, seed=5)))
    with torch.inference_mode():
        reference, ours = dense(images).numpy(), sparse(images).numpy()
        cut = masked(lively("resnet18"))(images).numpy()
    assert kl_divergence(reference, ours) < 0.7 * kl_divergence(reference, cut)


def test_channels_that_are_no_multiple_of_four_stay_dense():
    model = lively("resnet20", width=6)
    assert bool((sparsify(model, pictures(10)).layer1[0].conv1.weight != 0).all())


def test_advice_follows_shapes_and_kernels():
    wide, narrow = architecture("resnet50"), architecture("resnet20")
    assert not advise(wide, size=224, sparse_kernels=False).worthwhile
    assert not advise(narrow, size=32, sparse_kernels=True).worthwhile
    good = advise(wide, size=224, sparse_kernels=True)
    assert good.worthwhile
    assert 0.3 < good.eligible_part < 0.7
