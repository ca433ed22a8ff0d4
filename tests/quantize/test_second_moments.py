"""Channel means and second moments of layers, against plain sums over all positions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from float_graphs import Graph, images

from edgeship.quantization.second_moments import BlockedLayer, Moments, collect_moments, im2col
from edgeship.quantization.torch_executor import TorchExecutor


@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "dilation"),
    [
        ((3, 3), 1, (1, 1, 1, 1), 1),
        ((3, 3), 2, (0, 0, 1, 1), 1),
        ((1, 1), 2, (0,) * 4, 1),
        ((3, 2), 1, (2, 1, 0, 1), 2),
        ((3,), 2, (0, 1), 1),
        ((2, 3, 2), 1, (1, 0, 2, 0, 1, 0), 1),
    ],
)
def test_columns_times_weights_are_the_convolution(kernel, stride, pads, dilation):
    generator = torch.Generator().manual_seed(1)
    sides = len(kernel)
    values = torch.randn(2, 3, *(9, 8, 7)[:sides], generator=generator)
    weight = torch.randn(4, 3, *kernel, generator=generator)
    attributes = {"pads": list(pads), "strides": [stride] * sides, "dilations": [dilation] * sides}
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")], attributes=attributes)
    around = [pad for side in reversed(range(sides)) for pad in (pads[side], pads[sides + side])]
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[sides]
    exact = convolution(F.pad(values, around), weight, stride=stride, dilation=dilation)
    result = im2col(node, tuple(weight.shape), values, 10000) @ weight.reshape(4, -1).T
    np.testing.assert_allclose(result, exact.movedim(1, -1).reshape(-1, 4), atol=1e-4)


def test_few_positions_are_spread_over_the_map():
    values = torch.arange(64.0).reshape(1, 1, 8, 8)
    node = ir.node("Conv", [ir.Value(name="x"), ir.Value(name="w")])
    assert im2col(node, (1, 1, 1, 1), values, 4).ravel().tolist() == [0, 4, 32, 36]


def test_moments_of_parts_are_those_of_the_whole():
    """Far from zero, in parts of other sizes and other means: what float32 sums of squares would lose."""
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(2, count, 3, generator=generator) + 1000 + count for count in (5, 1, 40)]
    one, other = Moments(2, 3), Moments(2, 3)
    one.add(parts[0])
    one.add(parts[1])
    other.add(parts[2])
    one.merge(other)
    rows = torch.cat(parts, 1).double()
    centred = rows - rows.mean(1, keepdim=True)
    np.testing.assert_allclose(one.squares, centred.transpose(1, 2) @ centred, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(one.mean, rows.mean(1, keepdim=True), rtol=1e-6)
    np.testing.assert_allclose(one.about_zero(), rows.transpose(1, 2) @ rows, rtol=1e-6)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_float_pass_sees_every_layer(kind):
    """A matrix product has no bias that makes up for a mean: its moments are about zero."""
    graph = Graph(size=8)
    graph.head(graph.unary("Relu", graph.conv("images", 5, 1)), 4, kind)
    network = TorchExecutor(ir.from_proto(graph.model()))
    pixels = torch.from_numpy(images(12))
    conv, *_, last = network.nodes
    result = collect_moments(
        network,
        torch.split(pixels, 5),
        [BlockedLayer(conv, (5, 3, 1, 1), 2), BlockedLayer(last, (4, 5), 5)],
        10**6,
    )
    seen = {}
    network(pixels, lambda name, value: seen.setdefault(name, value))
    np.testing.assert_allclose(result.means["conv0"], seen["conv0"].mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(result.means["logits"], seen["logits"], atol=1e-6)
    rows = pixels.permute(0, 2, 3, 1).reshape(-1, 3).double()
    rows = rows - rows.mean(0)
    exact = F.pad(rows.T @ rows, (0, 1, 0, 1))
    for block, first in enumerate((0, 2)):
        expected = exact[first : first + 2, first : first + 2]
        np.testing.assert_allclose(result.moments[0][block], expected, rtol=1e-4, atol=1e-3)
    features = seen[str(last.inputs[0].name)].double()
    features = features if kind == "MatMul" else features - features.mean(0)
    np.testing.assert_allclose(result.moments[1][0], features.T @ features, rtol=1e-4, atol=1e-5)
