"""Shifted tensors: the same integers as with a zero point of -128, which TensorRT does not read."""

import struct
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeship import targets
from edgeship.quantization import QuantizeOptions, float8, ptq, qdq
from edgeship.quantization.calibrate import collect
from edgeship.targets.tensorrt import dla, lint, rtx_check
from edgeship.toolkit.core.errors import ModelError, TargetError
from edgeship.toolkit.graph import io, shift
from tests import integer_reference
from tests.float_graphs import Graph, images, residual

SCHEME = targets.get("tensorrt").scheme()
SEVEN_BITS = replace(SCHEME, shifted_activation=None)


def relu(g, x):
    return g.unary("Relu", x)


def block(g, x, outputs, *, stride=1, bias=True):
    """A bottleneck block: 1x1, padded 3x3, 1x1, and a projection where the shapes differ."""
    inner = relu(g, g.conv(x, 8, 1, bias=bias))
    main = g.conv(relu(g, g.conv(inner, 8, stride=stride, bias=bias)), outputs, 1, bias=bias)
    shortcut = x if g.shapes[x] == g.shapes[main] else g.conv(x, outputs, 1, stride=stride, bias=bias)
    return relu(g, g.add(main, shortcut))


def bottlenecks(*, bias=True, batch="batch"):
    g = Graph(size=16, batch=batch)
    x = g.pool("MaxPool", relu(g, g.conv("images", 16, bias=bias)))
    for outputs, stride in ((16, 1), (16, 1), (32, 2), (32, 1)):
        x = block(g, x, outputs, stride=stride, bias=bias)
    return g.head(x)


def prepared(g, tmp_path, scheme=SCHEME, effort="fast", **options):
    path, pixels = g.save(tmp_path / "float.onnx"), images(4, size=g.shapes["images"][1])
    statistics = collect(path, [pixels])
    model = io.read_classifier(path).model
    return ptq.prepare(model, statistics, scheme, QuantizeOptions(effort=effort, **options)), pixels


def shifted(quantized):
    return {name for name, q in quantized.activations.items() if q.spec == SCHEME.shifted_activation}


def with_zero_points(quantized):
    return qdq.insert(quantized.model, quantized.activations, quantized.weights, quantized.biases)


def operators(model, kind):
    return [node for node in model.graph if node.op_type == kind]


def zero_points(model):
    nodes = operators(model, "QuantizeLinear")
    return {int(zero) for node in nodes for zero in np.ravel(node.inputs[2].const_value.numpy())}


def cached(file):
    """Tensor -> scale of a calibration cache."""
    lines = (line.rpartition(": ") for line in file.read_text().splitlines()[1:])
    return {name: struct.unpack(">f", bytes.fromhex(digits))[0] for name, _, digits in lines}


def same_integers(quantized, pixels):
    """Integers and logits of the graph are those of the graph with zero points."""
    reference, seen = integer_reference.run(ir.to_proto(with_zero_points(quantized)), pixels)
    # every tensor from the same integers: a tie of one does not move the next
    forced = {name: integers for name, (_, integers) in seen.items()}
    logits, mine = integer_reference.run(ir.to_proto(quantized.graph()), pixels, forced)
    assert mine.keys() == seen.keys()
    for name, (steps, integers) in mine.items():
        differs = integers != seen[name][1]
        assert (np.abs(np.abs(steps - np.floor(steps)) - 0.5)[differs] < 1e-3).all(), name
    np.testing.assert_allclose(logits, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_the_graph_without_zero_points_computes_the_same_integers(tmp_path, effort, bias):
    quantized, pixels = prepared(bottlenecks(bias=bias), tmp_path, effort=effort)
    assert len(shifted(quantized)) == 8  # pool, three block outputs, four inputs of a block's last layer
    assert zero_points(with_zero_points(quantized)) == {0, -128}
    assert zero_points(quantized.graph()) == {0}
    same_integers(quantized, pixels)


def test_a_shifted_tensor_has_all_256_integers_and_no_relu(tmp_path):
    quantized, pixels = prepared(bottlenecks(), tmp_path, effort="fast", observer="minmax")
    graph = quantized.graph()
    _, seen = integer_reference.run(ir.to_proto(graph), pixels)
    for name in shifted(quantized):
        integers = seen[f"{name}/quantized"][1]
        assert integers.min() == -128, name
        assert integers.max() > 120, name  # calibrated in bfloat16: a few steps may be missing
    assert len(operators(quantized.model, "Relu")) - len(operators(graph, "Relu")) == 8


def test_half_the_steps_for_the_same_range(tmp_path):
    shifts, _ = prepared(bottlenecks(), tmp_path, observer="minmax")
    seven, _ = prepared(bottlenecks(), tmp_path, SEVEN_BITS, observer="minmax")
    assert not shifted(seven)
    for name, q in shifts.activations.items():
        ratio = 255 / 127 if name in shifted(shifts) else 1.0
        assert seven.activations[name].scale[0] / q.scale[0] == pytest.approx(ratio), name


def test_no_shift_where_a_reader_has_padding_or_is_a_pool(tmp_path):
    assert not shifted(prepared(residual(), tmp_path)[0])  # every tensor has a padded reader
    g = Graph()
    x = relu(g, g.conv("images", 8))
    quantized, _ = prepared(g.head(g.add(g.conv(x, 8, 1), g.conv(x, 8))), tmp_path)
    assert not shifted(quantized)  # one reader of two


def test_no_shift_without_a_relu_or_a_layer_before_it(tmp_path):
    g = Graph()
    x = g.conv(g.conv("images", 8), 8, 1)  # no ReLU
    x = relu(g, g.concat(relu(g, x), x))  # a ReLU after a Concat
    quantized, _ = prepared(g.head(relu(g, g.conv(x, 8, 1))), tmp_path)
    assert not shifted(quantized)


def test_no_shift_of_a_sum_of_two_activations(tmp_path):
    """No bias before the Add: both its inputs have pairs."""
    g = Graph()
    first, second = relu(g, g.conv("images", 8)), relu(g, g.conv("images", 8))
    quantized, _ = prepared(g.head(g.conv(relu(g, g.add(first, second)), 8, 1)), tmp_path)
    assert not shifted(quantized)


def test_grouped_strided_batch_normalized_and_shared_layers_absorb_a_shift(tmp_path):
    g = Graph()
    x = relu(g, g.batch_norm(relu(g, g.conv("images", 8))))
    first = relu(g, g.conv(x, 8, 1, group=2, stride=2))
    weight = g.nodes[-2].input[1]
    second = relu(g, g.conv(first, 8, 1, group=2, shared=weight))
    g.nodes[-2].input[2] = g.nodes[-4].input[2]  # a bias that two layers read
    quantized, pixels = prepared(g.head(g.conv(second, 8, 1)), tmp_path)
    assert shifted(quantized) == {x, first, second}
    same_integers(quantized, pixels)


def test_fully_connected_layer_behind_a_flatten_absorbs_a_shift(tmp_path):
    g = Graph(size=2)
    x = relu(g, g.conv("images", 8))
    flat = g.node("Flatten", [x], (32,), axis=1)
    weight = g.constant("fc.weight", g.random.normal(0, 0.3, (5, 32)))
    g.nodes.append(onnx.helper.make_node("Gemm", [flat, weight], ["logits"], name="fc", transB=1))
    g.shapes["logits"] = (5,)
    quantized, pixels = prepared(g, tmp_path)
    assert shifted(quantized) == {x}
    same_integers(quantized, pixels)


def test_layers_in_float_absorb_a_shift_too(tmp_path):
    g = bottlenecks()
    layers = [node.name for node in g.nodes if node.op_type == "Conv"]
    for name in layers:
        quantized, pixels = prepared(g, tmp_path, float_layers=(name,))
        assert zero_points(quantized.graph()) == {0}
        same_integers(quantized, pixels)


def test_float_adds_keep_their_relu_and_the_copy_is_shifted(tmp_path):
    scheme = replace(SCHEME, float_adds=True)
    quantized, pixels = prepared(bottlenecks(), tmp_path, scheme)
    assert len(shifted(quantized)) == 8
    same_integers(quantized, pixels)
    graph = quantized.graph()
    # the tensors that Adds read in float keep the ReLU: pool and block outputs but those before a projection
    assert len(operators(quantized.model, "Relu")) - len(operators(graph, "Relu")) == 5
    assert len(operators(graph, "Add")) - len(operators(quantized.model, "Add")) == 3


def test_a_zero_point_that_no_layer_absorbs_is_an_error(tmp_path):
    quantized, _ = prepared(bottlenecks(), tmp_path)
    padded = next(iter(quantized.activations.keys() - shifted(quantized) - {"images"}))
    name = next(iter(shifted(quantized)))
    activations = {**quantized.activations, padded: quantized.activations[name]}
    with pytest.raises(ModelError, match="-128"):
        replace(quantized, activations=activations).graph()


@pytest.mark.parametrize("float_adds", [False, True])
def test_restore_gives_the_graph_of_seven_bits(tmp_path, float_adds):
    scheme = replace(SCHEME, float_adds=float_adds)
    quantized, pixels = prepared(bottlenecks(), tmp_path, scheme, observer="minmax")
    seven = prepared(bottlenecks(), tmp_path, replace(scheme, shifted_activation=None), observer="minmax")[0]
    restored, expected = quantized.graph(), seven.graph()
    assert shifted(quantized)
    shift.restore(restored)
    for kind in ("Relu", "Add", "QuantizeLinear"):
        assert len(operators(restored, kind)) == len(operators(expected, kind))
    logits, seen = integer_reference.run(ir.to_proto(expected), pixels)
    forced = {name: integers for name, (_, integers) in seen.items()}
    mine, again = integer_reference.run(ir.to_proto(restored), pixels, forced)
    np.testing.assert_allclose(mine, logits, rtol=1e-4, atol=1e-4)
    assert again.keys() == seen.keys()
    for name, (steps, _) in again.items():
        np.testing.assert_allclose(steps, seen[name][0], rtol=1e-4, atol=1e-2, err_msg=name)
    before = ir.to_proto(restored).SerializeToString()
    shift.restore(restored)  # nothing is left
    assert ir.to_proto(restored).SerializeToString() == before


def test_dla_gets_the_graph_of_seven_bits(tmp_path):
    """A DLA runs some layers in FP16, where nothing saturates."""
    for scheme, folder in ((SCHEME, "shifted"), (SEVEN_BITS, "seven")):
        quantized, pixels = prepared(bottlenecks(batch=1), tmp_path, scheme, observer="minmax")
        io.save(quantized.graph(), tmp_path / f"{folder}.onnx")
        board = {"module": "AGX Orin", "version": "8.5.2", "images": pixels}
        dla.write(tmp_path / f"{folder}.onnx", tmp_path / folder, **board)
    mine, expected = (cached(tmp_path / folder / dla.CACHE) for folder in ("shifted", "seven"))
    tensors = expected.keys() & mine.keys()
    assert shifted(prepared(bottlenecks(batch=1), tmp_path)[0]) <= tensors
    for name in tensors:
        assert mine[name] == pytest.approx(expected[name], rel=1e-3), name
    graphs = [onnx.load(tmp_path / f / dla.GRAPH).graph for f in ("shifted", "seven")]
    counts = [sum(node.op_type == "Relu" for node in graph.node) for graph in graphs]
    assert counts[0] == counts[1] > 0


def test_fp8_graphs_have_no_shift(tmp_path):
    path, pixels = bottlenecks().save(tmp_path / "float.onnx"), images(4, size=16)
    statistics = collect(path, [pixels])
    written = []
    for scheme in (SCHEME, SEVEN_BITS):
        float8.write(path, statistics, scheme, tmp_path / "fp8.onnx")
        written.append((tmp_path / "fp8.onnx").read_bytes())
    assert written[0] == written[1]


def test_other_targets_have_no_shift():
    assert all(targets.get(name).scheme().shifted_activation is None for name in ("openvino", "onnxruntime"))


def test_every_tensorrt_reads_the_graph(tmp_path):
    quantized, _ = prepared(bottlenecks(), tmp_path)
    io.save(quantized.graph(), tmp_path / "int8.onnx")
    for version in ("8.5.2", "10.3", "11.4"):
        findings = lint.lint(tmp_path / "int8.onnx", version)
        assert not [found for found in findings if found.severity == "error"]


@pytest.mark.slow
@pytest.mark.parametrize("float_adds", [False, True])
def test_builder_lists_the_same_layers_as_with_seven_bits(tmp_path, float_adds):
    """The shift costs no layer and no precision, by the listing of NVIDIA's builder."""
    try:
        rtx_check.sdk()
    except TargetError as absent:
        pytest.skip(str(absent))
    listings = []
    for scheme in (SCHEME, SEVEN_BITS):
        scheme = replace(scheme, float_adds=float_adds)
        quantized, _ = prepared(bottlenecks(batch=1), tmp_path, scheme)
        io.save(quantized.graph(), tmp_path / "int8.onnx")
        verdict = rtx_check.check(tmp_path / "int8.onnx")
        assert verdict.accepted
        assert verdict.engine_layers > len(verdict.layers)
        listings.append((verdict.engine_layers, [(layer.name, layer.precision) for layer in verdict.layers]))
    assert listings[0] == listings[1]
