"""Bias correction: its trimmed mean goes by the size of the errors, not by the order of the images."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from float_graphs import Graph, images

from edgeship import targets
from edgeship.quantization import bias
from edgeship.quantization.calibrate import collect
from edgeship.quantization.clipping import observer_qparams
from edgeship.quantization.fake_quant import fake_quantize
from edgeship.quantization.placement import place
from edgeship.quantization.qparams import weight_qparams
from edgeship.quantization.second_moments import collect_moments
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.graph import edit

SCHEME = targets.get("tensorrt").scheme()
COUNT = 20


@pytest.fixture(scope="module")
def corrections(tmp_path_factory):
    """Corrections of a convolution by images in some order."""
    graph = Graph(size=8)
    graph.head(graph.unary("Relu", graph.conv("images", 4)))
    path = tmp_path_factory.mktemp("bias") / "net.onnx"
    path.write_bytes(graph.model().SerializeToString())
    model = ir.from_proto(graph.model())
    pixels = images(COUNT, 8)
    statistics = collect(path, [pixels])
    placement = place(model, SCHEME)
    activations = {
        n: observer_qparams(statistics.tensors[n], s, "minmax") for n, s in placement.activations.items()
    }
    network = TorchExecutor(model)
    weights = {
        name: fake_quantize(
            network.constants[name], weight_qparams(edit.constant(model.graph.initializers[name]), spec)
        )
        for name, spec in placement.weights.items()
    }

    def corrections(order):
        probe = pixels[order].copy()
        probe[np.asarray(order) == 0] *= 100  # clipped: its errors are far from those of all others
        means = collect_moments(network, [torch.from_numpy(probe)], [], 1).means
        return bias.corrections(network, probe, activations, weights, means)

    return corrections


def test_an_outlier_is_left_out_wherever_it_stands(corrections):
    first = corrections(list(range(COUNT)))
    middle = corrections([*range(1, COUNT // 2), 0, *range(COUNT // 2, COUNT)])
    assert first.keys() == middle.keys() and len(first) > 1
    for name, values in first.items():
        np.testing.assert_allclose(middle[name], values, atol=1e-5)


def test_the_tenth_at_either_end_is_left_out():
    errors = torch.tensor([[50.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0], [-90.0], [8.0]])
    assert bias._trimmed_mean(errors).tolist() == pytest.approx([4.5])


def test_tensors_are_freed_after_their_last_read():
    g = Graph(size=8)
    g.head(g.unary("Relu", g.conv("images", 4)))
    network = TorchExecutor(ir.from_proto(g.model()))
    part = bias._Part(network, torch.zeros(2, 3, 8, 8), {}, {})
    node = network.nodes[0]
    part.run(node)
    part.correct(node, None, unused=["images"])
    assert set(part._values) == {str(node.outputs[0].name)}
