"""Equalization: the same function, evener channels; bias correction: the same means; both stated as laws."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from float_graphs import Graph, images, residual

from edgeship import targets
from edgeship.quantization import bias
from edgeship.quantization.calibrate import collect
from edgeship.quantization.clipping import logit_aware_clipping, observer_qparams
from edgeship.quantization.equalize import LARGEST_FACTOR, equalize, spaces
from edgeship.quantization.fake_quant import fake_quantize
from edgeship.quantization.placement import place
from edgeship.quantization.qparams import weight_qparams
from edgeship.quantization.second_moments import collect_moments
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.quant import QuantSpec
from edgeship.toolkit.graph import edit, io

SCHEME = targets.get("tensorrt").scheme()


def uneven(seed=0):
    """A residual net whose channels differ by factors of up to a hundred."""
    g = residual(seed=seed)
    model = ir.from_proto(g.model())
    random = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        array = edit.constant(value)
        if array.ndim == 4:
            factor = 10.0 ** random.uniform(-1, 1, (len(array), 1, 1, 1))
            edit.set_constant(value, (array * factor).astype(np.float32))
    return model


def calibrated(model, folder, pixels):
    io.save(model, folder / "m.onnx")
    model = io.read_classifier(folder / "m.onnx").model
    return model, collect(folder / "m.onnx", [pixels], exact=True)


def quantizing(activations):
    """A change of a network that quantizes these activations."""
    return lambda name, value: fake_quantize(value, activations[name]) if name in activations else value


def logits(model, pixels, change=None):
    with torch.inference_mode():
        return TorchExecutor(model)(torch.from_numpy(pixels), change).numpy()


def spread_db(statistics):
    """Mean over tensors of the ratio between the largest and the typical channel range, in dB."""
    ranges = [np.maximum(-t.low, t.high) for n, t in statistics.tensors.items() if n != "images"]
    return np.mean([20 * np.log10(r.max() / np.median(r[r > 0])) for r in ranges if (r > 0).sum() > 1])


@pytest.mark.parametrize("seed", range(3))
def test_the_function_stays_and_ranges_get_closer(seed, tmp_path):
    pixels = images(8, 16)
    model, statistics = calibrated(uneven(seed), tmp_path, pixels)
    changed, scaled = equalize(model, statistics, 0.5)
    before, after = logits(model, pixels), logits(changed, pixels)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    assert spread_db(scaled) < spread_db(statistics) - 1


def test_the_statistics_are_those_the_changed_graph_gives(tmp_path):
    pixels = images(8, 16)
    model, statistics = calibrated(uneven(), tmp_path, pixels)
    changed, scaled = equalize(model, statistics, 0.5)
    again = calibrated(changed, tmp_path, pixels)[1]
    for name, seen in again.tensors.items():
        for part in ("low", "high"):
            got, expected = getattr(scaled.tensors[name], part), getattr(seen, part)
            np.testing.assert_allclose(got, expected, atol=2e-5 * seen.largest, err_msg=name)


def test_a_hand_worked_space():
    """Ranges 1 and 4, half way: factors 1/sqrt(2) and sqrt(2), whose ratio is 2."""
    from edgeship.quantization.equalize import _factor
    from edgeship.quantization.statistics import TensorStatistics

    seen = TensorStatistics(*(np.array(v, np.float32) for v in ([0, 0], [1, 4], [[0, 0]], [[1, 4]])))
    np.testing.assert_allclose(_factor([seen], 0.5), [2**-0.5, 2**0.5], rtol=1e-6)
    dead = TensorStatistics(*(np.array(v, np.float32) for v in ([0, 0], [0, 4], [[0, 0]], [[0, 4]])))
    assert (np.abs(np.log(_factor([dead], 0.5))) <= np.log(LARGEST_FACTOR) + 1e-6).all()


def test_what_is_not_homogeneous_blocks_its_space():
    """Sigmoid, an input, an output and shared weights are left alone."""
    g = Graph()
    smooth = g.unary("Sigmoid", g.conv("images", 4))
    first = g.conv(g.unary("Relu", g.conv(smooth, 4)), 4, 1)
    shared = g.nodes[-1].input[1]
    g.head(g.conv(g.unary("Relu", first), 4, 1, shared=shared))
    result = spaces(ir.from_proto(g.model()))
    assert not {t for s in result for t in s.tensors} & {"images", "logits", "conv0", smooth, first}


@pytest.mark.parametrize(("group", "outputs"), [(2, 8), (4, 12), (8, 8), (8, 16)])
def test_grouped_convolutions_take_part(group, outputs, tmp_path):
    """Of several groups, one channel each, and several outputs of each channel: ResNeXt, depthwise."""
    g = Graph(seed=group)
    weight = g.random.normal(size=(8, 3, 3, 3)) * 10.0 ** g.random.uniform(-1, 1, (8, 1, 1, 1))
    first = g.unary("Relu", g.conv("images", 8, weight=weight))
    shape = (outputs, 8 // group, 3, 3)
    weight = g.random.normal(size=shape) * 10.0 ** g.random.uniform(-1, 1, (outputs, 1, 1, 1))
    second = g.unary("Relu", g.conv(first, outputs, group=group, weight=weight))
    g.head(g.conv(second, 8))
    pixels = images(8)
    model, statistics = calibrated(ir.from_proto(g.model()), tmp_path, pixels)
    changed, scaled = equalize(model, statistics, 0.5)
    before, after = logits(model, pixels), logits(changed, pixels)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
    for name in (first, second):
        seen, now = statistics.tensors[name].high, scaled.tensors[name].high
        assert now.max() / np.median(now) < 0.8 * seen.max() / np.median(seen)


def test_bias_correction_restores_the_means_of_every_channel(tmp_path):
    pixels = images(64, 16)
    model, statistics = calibrated(uneven(), tmp_path, pixels)
    network, placement = TorchExecutor(model), place(model, SCHEME)
    activations = {
        n: observer_qparams(statistics.tensors[n], s, "minmax") for n, s in placement.activations.items()
    }
    coarse = QuantSpec(
        "int8", symmetric=True, axis=0, bits=4
    )  # large errors, so that there is something to see
    weights = {
        name: weight_qparams(edit.constant(model.graph.initializers[name]), coarse)
        for name in placement.weights
    }
    grid = {name: fake_quantize(network.constants[name], q) for name, q in weights.items()}
    means = collect_moments(network, [torch.from_numpy(pixels)], [], 1).means
    result = bias.corrections(network, pixels, activations, grid, means)

    def errors(corrected):
        changed = TorchExecutor(model)
        changed.constants |= grid
        for node in changed.nodes:
            if corrected and str(node.name) in result:
                shift = torch.from_numpy(result[str(node.name)])
                changed.constants[str(node.inputs[2].name)] = (
                    changed.constants[str(node.inputs[2].name)] + shift
                )
        seen, exact = {}, {}
        with torch.inference_mode():
            quantized = quantizing(activations)
            changed(torch.from_numpy(pixels), lambda n, v: seen.setdefault(n, v) * 0 + quantized(n, v))
            network(torch.from_numpy(pixels), lambda n, v: exact.setdefault(n, v))
        axes = {4: (0, 2, 3), 2: (0,)}
        names = [str(n.outputs[0].name) for n in network.nodes if str(n.name) in result]
        return {n: float((seen[n] - exact[n]).mean(axes[seen[n].ndim]).abs().max()) for n in names}

    before, after = errors(corrected=False), errors(corrected=True)
    assert set(before) == {str(n.outputs[0].name) for n in network.nodes if n.op_type in ("Conv", "Gemm")}
    assert sum(after.values()) < 0.2 * sum(before.values())  # what is left is the trimmed tenth


def test_clip_points_by_the_logits_ignore_what_the_logits_ignore(tmp_path):
    """An outlier in a channel whose weights are zero may be clipped; min-max would stretch to hold it."""
    g = Graph(seed=3)
    first = g.conv("images", 8, 1, bias=False)
    weight = g.random.normal(size=(8, 8, 1, 1))
    weight[:, 0] = 0
    g.head(g.conv(g.unary("Relu", first), 8, 1, weight=weight))
    model = ir.from_proto(g.model())
    loud = edit.constant(model.graph.initializers["conv0.weight"]).copy()
    loud[0] *= 30
    edit.set_constant(model.graph.initializers["conv0.weight"], loud)
    pixels = images(16)
    model, statistics = calibrated(model, tmp_path, pixels)
    spec = {"relu1": QuantSpec("int8", symmetric=True)}
    aware = logit_aware_clipping(TorchExecutor(model), pixels, spec, statistics.tensors)["relu1"]
    whole = observer_qparams(statistics.tensors["relu1"], spec["relu1"], "minmax")
    assert aware.scale[0] <= 0.3 * whole.scale[0]

    def noise(q):
        exact = logits(model, pixels)
        return np.square(logits(model, pixels, quantizing({"relu1": q})) - exact).sum()

    assert noise(aware) < 0.2 * noise(whole)


def hidden(kind="Gemm"):
    """Two fully connected layers whose first is stored inputs first."""
    g = Graph(size=4)
    x = g.conv("images", 6)
    x = g.node("Flatten", [g.node("GlobalAveragePool", [x], (6, 1, 1))], (6,), axis=1)
    scale = np.logspace(0, 2, 8)
    weight = g.constant("w1", g.random.normal(size=(6, 8)) * scale)
    bias = [g.constant("b1", g.random.normal(size=8) * scale)] if kind == "Gemm" else []
    x = g.unary("Relu", g.node(kind, [x, weight, *bias], (8,)))
    last = [x, g.constant("w2", g.random.normal(size=(8, 3))), g.constant("b2", np.zeros(3))]
    g.node("Gemm", last, (3,))
    g.nodes[-1].output[0] = "logits"
    g.shapes["logits"] = (3,)
    return g


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_fully_connected_layers_stored_inputs_first_are_evened_out_along_their_outputs(kind, tmp_path):
    pixels = images(8, 4)
    model, statistics = calibrated(ir.from_proto(hidden(kind).model()), tmp_path, pixels)
    changed, scaled = equalize(model, statistics, 1.0)
    np.testing.assert_allclose(logits(changed, pixels), logits(model, pixels), rtol=1e-3, atol=1e-3)
    name = next(str(node.outputs[0].name) for node in model.graph if node.op_type == "Relu")
    before, after = statistics.tensors[name].high, scaled.tensors[name].high
    assert after.max() / after[after > 0].min() < 0.5 * before.max() / before[before > 0].min()


def test_a_tensor_that_another_operation_reads_is_not_scaled(tmp_path):
    g = Graph(size=4)
    x = g.conv("images", 4)
    free, bound = g.conv(g.unary("Relu", g.conv(x, 4)), 4), g.conv(x, 4)
    g.head(g.add(g.add(free, bound), g.unary("Sigmoid", x)))
    names = {name for space in spaces(ir.from_proto(g.model())) for name in space.tensors}
    assert x not in names and len(names) == 2  # between the two convolutions: before and after the Relu


def test_channels_that_are_all_zero_give_no_factors(tmp_path):
    g = Graph(size=8)
    x = g.conv("images", 4, weight=np.zeros((4, 3, 3, 3)), bias=False)
    g.head(g.conv(g.unary("Relu", x), 4))
    pixels = images(4, 8)
    model, statistics = calibrated(ir.from_proto(g.model()), tmp_path, pixels)
    changed, scaled = equalize(model, statistics, 1.0)
    assert np.isfinite(logits(changed, pixels)).all()
    np.testing.assert_allclose(logits(changed, pixels), logits(model, pixels), atol=1e-5)
    assert all(np.isfinite(each.high).all() for each in scaled.tensors.values())


def test_a_channel_that_an_add_repeats_is_not_scaled(tmp_path):
    """One convolution of one channel, added to one of four."""
    g = Graph()
    one = g.conv("images", 1)
    wide = g.conv(
        "images", 4, weight=g.random.normal(size=(4, 3, 3, 3)) * [[[[1.0]]], [[[9.0]]], [[[1.0]]], [[[4.0]]]]
    )
    added = g.unary("Relu", g.node("Add", [wide, one], g.shapes[wide]))
    g.head(g.conv(added, 4))
    pixels = images(8)
    model, statistics = calibrated(ir.from_proto(g.model()), tmp_path, pixels)
    changed, _ = equalize(model, statistics, 0.5)
    before, after = logits(model, pixels), logits(changed, pixels)
    assert np.abs(after - before).max() <= 1e-5 * np.abs(before).max()
