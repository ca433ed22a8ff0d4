"""Mixed precision: the one bad layer is found, what is dear is spared, the graph is what was promised."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from float_graphs import Graph, images, residual

from edgeship import targets
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.quantization.mixed_precision import (
    LEAST_GAIN,
    AccuracyConstraint,
    Verdict,
    by_gain,
    search_float_layers,
)
from edgeship.quantization.placement import is_weighted, place
from edgeship.quantization.ptq import fit_weights, prepare
from edgeship.quantization.sensitivity import analyse, divergences
from edgeship.targets.tensorrt import lint
from edgeship.toolkit.core.errors import QuantizationError
from edgeship.toolkit.core.parallel import ONE
from edgeship.toolkit.core.statistics import kl_divergence
from edgeship.toolkit.graph import edit, io

PLAIN = QuantizeOptions(effort="fast", observer="minmax")  # nothing that would mend a bad layer


def chain(loud=1000.0):
    """conv0, conv2, conv4, conv6, fc; one channel that conv4 reads is `loud` times the others."""
    g = Graph(size=16)
    x = "images"
    for _ in range(4):
        x = g.unary("Relu", g.conv(x, 8))
    for tensor in g.initializers:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name in ("conv2.weight", "conv2.bias"):
            array[0] = np.abs(array[0]) * loud
        if tensor.name == "conv4.weight":
            array[:, 0] /= loud
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return g.head(x)


def run(model, pixels):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    source = model if isinstance(model, bytes) else str(model)
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})[0]


class Judge:
    """Agreement with the float graph on other images, by ONNX Runtime; every call is counted."""

    def __init__(self, path, least):
        self.pixels, self.least, self.calls = images(256, 16, seed=5), least, 0
        self.exact = run(path, self.pixels).argmax(1)

    def __call__(self, graph):
        self.calls += 1
        value = float((run(graph, self.pixels).argmax(1) == self.exact).mean())
        return Verdict(value, value >= self.least)


def tried(graph, folder, least, costs, target="openvino", options=PLAIN, probe=16):
    path, pixels = graph.save(folder / "m.onnx"), images(32, 16)
    judge, statistics = Judge(path, least), collect(path, [pixels])
    goal = AccuracyConstraint("min_agreement", least, "ms", lambda graph: costs, judge)
    result = prepare(io.read_classifier(path).model, statistics, targets.get(target).scheme(), options)
    result, summary = search_float_layers(
        result, goal, pixels[:probe], ONE, lambda trial: fit_weights(trial, options)
    )
    return result, summary, judge


EVEN = dict.fromkeys(("conv0", "conv2", "conv4", "conv6", "fc"), 1.0)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
def test_exactly_the_bad_layer_stays_in_float(target, tmp_path):
    result, summary, judge = tried(chain(), tmp_path, 0.95, EVEN, target)
    assert [layer["name"] for layer in summary["layers"]] == ["conv4"]
    assert summary["int8"] < 0.9 and summary["reached"] >= 0.95 and summary["met"]
    assert (summary["cost"], summary["unit"], summary["value"]) == (1.0, "ms", 0.95)
    assert judge.calls == summary["judged"] == 3
    assert "relu3" not in result.activations and "conv4.weight" not in result.weights
    assert {"relu1", "relu5"} <= set(result.activations)
    assert any("conv4 left in float for 1 ms" in warning for warning in result.warnings)


def test_nothing_is_given_up_where_the_limit_holds(tmp_path):
    def never(graph):
        raise AssertionError("nothing needs to be timed")

    path, pixels = chain(1.0).save(tmp_path / "m.onnx"), images(32, 16)
    judge = Judge(path, 0.9)
    goal = AccuracyConstraint("min_agreement", 0.9, "ms", never, judge)
    scheme = targets.get("tensorrt").scheme()
    summary = quantize(path, collect(path, [pixels]), scheme, PLAIN, tmp_path / "o.onnx", goal)
    assert (summary["mixed"]["layers"], summary["mixed"]["met"], judge.calls) == ([], True, 1)
    assert summary["float_layers"] == [] and summary["warnings"] == []


def test_of_two_ways_the_cheaper_is_taken(tmp_path):
    """The layer that gains most a millisecond comes first: what is dear must gain as much more."""
    path, pixels = residual().save(tmp_path / "m.onnx"), images(32, 16)
    result = prepare(
        io.read_classifier(path).model, collect(path, [pixels]), targets.get("openvino").scheme(), PLAIN
    )
    names = [str(node.name) for node in result.exact.graph if is_weighted(node)]
    even = list(by_gain(result, dict.fromkeys(names, 1.0), pixels, ONE))
    assert sorted(even) == sorted(names)
    whole, left = divergences(result, names, pixels)
    assert even[0] == max(names, key=lambda name: whole - left[name])
    dear = {**dict.fromkeys(names, 1.0), even[0]: 1e6}
    assert list(by_gain(result, dear, pixels, ONE))[-1] == even[0]


def test_every_choice_is_the_best_after_those_before_it(tmp_path):
    path, pixels = residual(seed=3).save(tmp_path / "m.onnx"), images(16, 16)
    result = prepare(
        io.read_classifier(path).model, collect(path, [pixels]), targets.get("tensorrt").scheme(), PLAIN
    )
    names = [str(node.name) for node in result.exact.graph if is_weighted(node)]
    order = list(by_gain(result, dict.fromkeys(names, 1.0), pixels, ONE))
    for name in order:
        whole, left = divergences(result, set(names) - result.placement.float_layers, pixels)
        gains = {other: max(whole - left[other], LEAST_GAIN) for other in left}
        assert gains[name] == max(gains.values())
        result = result.with_float_layers({name})


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
@pytest.mark.parametrize("seed", range(3))
def test_what_the_search_measures_is_what_the_graph_does(seed, target, tmp_path):
    """The divergence with one more layer in float equals that of the graph ONNX Runtime runs."""
    path, pixels = residual(seed=seed).save(tmp_path / "m.onnx"), images(12, 16)
    result = prepare(
        io.read_classifier(path).model, collect(path, [pixels]), targets.get(target).scheme(), PLAIN
    )
    names = [str(node.name) for node in result.exact.graph if is_weighted(node)]
    taken = [names[(seed * 3) % len(names)]]
    result = result.with_float_layers(taken)
    whole, left = divergences(result, set(names) - set(taken), pixels)
    exact = run(path, pixels)

    def reached(graph):
        return kl_divergence(exact, run(ir.to_proto(graph).SerializeToString(), pixels))

    assert whole == pytest.approx(reached(result.graph()), rel=0.4)
    for name, divergence in left.items():
        assert divergence == pytest.approx(
            reached(result.with_float_layers({name}).graph()), rel=0.4, abs=1e-7
        ), name


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
def test_with_every_layer_in_float_nothing_is_quantized(target, tmp_path):
    path, pixels = residual().save(tmp_path / "m.onnx"), images(8, 16)
    names = [node.name for node in residual().nodes if node.op_type in ("Conv", "Gemm")]
    options = QuantizeOptions(float_layers=tuple(names))
    quantize(path, collect(path, [pixels]), targets.get(target).scheme(), options, tmp_path / "o.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node}
    assert not kinds & {"QuantizeLinear", "DequantizeLinear", "Identity"}
    np.testing.assert_allclose(run(tmp_path / "o.onnx", pixels), run(path, pixels), atol=1e-4)


def test_a_float_layer_reads_what_others_read_quantized(tmp_path):
    """The first convolution of the downsampling block and its projection share a tensor; both free it."""
    graph = residual()
    adds = [node for node in graph.nodes if node.op_type == "Add"]
    makers = {node.output[0]: node for node in graph.nodes}
    projection = makers[adds[1].input[1]]
    shared = projection.input[0]
    path, pixels = graph.save(tmp_path / "m.onnx"), images(8, 16)
    options = QuantizeOptions(float_layers=(projection.name,))
    for target in ("openvino", "onnxruntime", "tensorrt"):
        quantize(path, collect(path, [pixels]), targets.get(target).scheme(), options, tmp_path / "o.onnx")
        nodes = {node.name: node for node in onnx.load(tmp_path / "o.onnx").graph.node}
        assert nodes[projection.name].input[0] == f"{shared}/dequantized"
        assert nodes[projection.name].input[1] == projection.input[1]
        both = {
            projection.name,
            next(n.name for n in graph.nodes if shared in n.input and n is not projection),
        }
        model, scheme = io.read_classifier(path).model, targets.get(target).scheme()
        assert shared not in place(model, scheme, both).activations


def test_an_add_whose_main_branch_is_in_float_is_in_float_too():
    graph = residual()
    first, second = (node for node in graph.nodes if node.op_type == "Add")
    makers = {node.output[0]: node.name for node in graph.nodes}
    for target in ("openvino", "onnxruntime", "tensorrt"):
        model, scheme = ir.from_proto(graph.model()), targets.get(target).scheme()
        for add in (first, second):
            placed = place(model, scheme, {makers[add.input[0]]}).activations
            assert add.input[0] not in placed
            if add is second:
                assert add.input[1] not in placed, "only the Add reads the projection"


def test_shared_weights_stay_whole_for_the_layer_in_float(tmp_path):
    g = Graph(size=16)
    first = g.conv("images", 3, bias=False)
    shared = g.nodes[-1].input[1]
    second = g.conv(g.unary("Relu", first), 3, shared=shared)
    path, pixels = g.head(second).save(tmp_path / "m.onnx"), images(8, 16)
    options = QuantizeOptions(float_layers=("conv2",))
    for target in ("openvino", "tensorrt"):
        quantize(path, collect(path, [pixels]), targets.get(target).scheme(), options, tmp_path / "o.onnx")
        model = onnx.load(tmp_path / "o.onnx")
        inputs = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
        arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        original = next(t for t in g.initializers if t.name == "conv0.weight")
        np.testing.assert_array_equal(arrays[inputs["conv2"]], onnx.numpy_helper.to_array(original))
        assert inputs["conv0"].endswith("/dequantized")


def test_tensorrt_reads_every_graph_with_layers_in_float(tmp_path):
    path, pixels = residual().save(tmp_path / "m.onnx"), images(4, 16)
    statistics = collect(path, [pixels])
    for node in residual().nodes:
        if node.op_type in ("Conv", "Gemm"):
            options = QuantizeOptions(effort="fast", float_layers=(node.name,))
            quantize(path, statistics, targets.get("tensorrt").scheme(), options, tmp_path / "o.onnx")
            refused = [f for f in lint.lint(tmp_path / "o.onnx", "8.5") if f.severity == "error"]
            assert refused == []


def test_openvino_runs_all_but_the_float_layer_in_int8(tmp_path):
    path, pixels = residual(1).save(tmp_path / "m.onnx"), images(4, 16)
    convolutions = [node.name for node in residual().nodes if node.op_type == "Conv"]
    for name in convolutions:
        options = QuantizeOptions(effort="fast", float_layers=(name,))
        quantize(
            path, collect(path, [pixels]), targets.get("openvino").scheme(), options, tmp_path / "o.onnx"
        )
        built = targets.get("openvino").compile(tmp_path / "o.onnx", tmp_path / "engine", "int8")
        runs = {layer.name: layer.precision for layer in built.audit if layer.kind == "Convolution"}
        assert runs == {other: "fp32" if other == name else "int8" for other in convolutions}


def test_a_limit_that_float_misses_too_is_said_and_costs_nothing(tmp_path):
    path, pixels = chain().save(tmp_path / "m.onnx"), images(32, 16)
    goal = AccuracyConstraint(
        "min_agreement", 1.0, "ms", lambda graph: EVEN, lambda graph: Verdict(0.5, met=False)
    )
    scheme = targets.get("openvino").scheme()
    summary = quantize(path, collect(path, [pixels]), scheme, PLAIN, tmp_path / "o.onnx", goal)
    assert not summary["mixed"]["met"] and summary["mixed"]["layers"] == [] == summary["float_layers"]
    assert any("missed by 0.5 in INT8" in warning for warning in summary["warnings"])


def test_a_layer_that_turns_out_superfluous_goes_back(tmp_path):
    """The constraint requires two layers; the first choice is then not among them."""
    path, pixels = chain().save(tmp_path / "m.onnx"), images(32, 16)
    statistics = collect(path, [pixels])
    result = prepare(io.read_classifier(path).model, statistics, targets.get("openvino").scheme(), PLAIN)
    order = list(by_gain(result, EVEN, pixels, ONE))
    needed = set(order[1:3])

    def judge(graph):
        quantized = {n.input[0] for n in onnx.load(graph).graph.node if n.op_type == "DequantizeLinear"}
        left = {name for name in EVEN if f"{name}.weight/quantized" not in quantized}
        return Verdict(len(left & needed), needed <= left)

    _, summary = search_float_layers(
        result,
        AccuracyConstraint("x", 2, "ms", lambda graph: EVEN, judge),
        pixels,
        ONE,
        lambda trial: trial,
    )
    assert {layer["name"] for layer in summary["layers"]} == needed


def test_learned_weights_stay_with_the_layers_that_are_quantized(tmp_path):
    result, _, _ = tried(chain(), tmp_path, 0.95, EVEN)
    result.model = io.copy(result.exact)
    learned = result.model.graph.initializers["conv6.weight"]
    edit.set_constant(learned, edit.constant(learned) + np.float32(1))
    again = result.with_float_layers({"conv2"})
    for name in ("conv2.weight", "conv6.weight"):
        before = edit.constant(result.exact.graph.initializers[name])
        after = edit.constant(again.model.graph.initializers[name])
        np.testing.assert_array_equal(after, before + (name == "conv6.weight"))


def test_biases_fit_what_is_quantized(tmp_path):
    options = QuantizeOptions()
    path, pixels = residual().save(tmp_path / "m.onnx"), images(16, 16)
    result = prepare(
        io.read_classifier(path).model, collect(path, [pixels]), targets.get("openvino").scheme(), options
    )
    names = {str(node.name) for node in result.exact.graph if is_weighted(node)}
    again = fit_weights(result.with_float_layers(names), options)
    assert all(np.abs(shift).max() < 1e-5 for shift in again.biases.values())
    assert max(np.abs(shift).max() for shift in result.biases.values()) > 1e-3


def test_a_layer_that_is_not_there_gets_the_nearest_name(tmp_path):
    path, pixels = residual().save(tmp_path / "m.onnx"), images(2, 16)
    options = QuantizeOptions(float_layers=("conv00",))
    with pytest.raises(QuantizationError, match="no layer named 'conv00'") as caught:
        quantize(
            path, collect(path, [pixels]), targets.get("openvino").scheme(), options, tmp_path / "o.onnx"
        )
    assert "conv0" in caught.value.hint


def test_rows_of_layers_in_float_show_no_cost(tmp_path):
    result, _, _ = tried(chain(), tmp_path, 0.95, EVEN)
    rows = {row.name: row for row in analyse(result, result.exact, images(4, 16), quantizers=False)}
    assert rows["conv4"].alone_kl == pytest.approx(0, abs=1e-12)
    assert rows["conv4"].drop_db == pytest.approx(0, abs=1e-6)
    assert rows["conv2"].alone_kl > 0
