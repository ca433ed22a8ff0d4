"""Random small graphs: what an INT8 runtime computes equals an independent integer reference."""

import tempfile
from dataclasses import replace
from pathlib import Path

import integer_reference
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from float_graphs import Graph, images, residual
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgeship import targets
from edgeship.quantization import QuantizeOptions, qdq, quantize
from edgeship.quantization.calibrate import collect
from edgeship.quantization.clipping import observer_qparams
from edgeship.quantization.placement import place
from edgeship.quantization.qparams import weight_qparams
from edgeship.toolkit.core.quant import QParams
from edgeship.toolkit.graph import edit, io

FAST = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


KINDS = ("conv", "grouped", "shared", "Relu", "add", "concat", "max", "norm")


@st.composite
def graphs(
    draw, kinds=(*KINDS, "average", "Sigmoid", "HardSwish", "Relu"), heads=("Gemm", "MatMul"), joint=""
):
    """Up to seven random steps between the images and a head; `joint` follows or goes before what joins."""
    g = Graph(seed=draw(st.integers(0, 2**16)))
    at = g.conv("images", draw(st.sampled_from([4, 8])), draw(st.sampled_from([1, 3])))
    tensors = [at]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=7)):
        at = step(draw, g, at, tensors, kind)
        if joint and kind in ("add", "concat"):
            at = g.unary(joint, at)
        tensors.append(at)
    return g.head(at, kind=draw(st.sampled_from(heads)))


def step(draw, g, at, tensors, kind):
    channels, side, _ = g.shapes[at]
    bias = draw(st.booleans())
    if kind == "conv":
        outputs, kernel = draw(st.sampled_from([4, 8])), draw(st.sampled_from([1, 3]))
        return g.conv(at, outputs, kernel, stride=2 if side > 4 and draw(st.booleans()) else 1, bias=bias)
    if kind == "grouped":
        return g.conv(at, channels, group=draw(st.sampled_from([2, channels])), bias=bias)
    if kind == "shared":
        first = g.conv(at, channels, 1, bias=bias)
        return g.conv(g.unary("Relu", first), channels, 1, bias=bias, shared=g.nodes[-2].input[1])
    if kind in ("add", "concat"):
        fit = [v for v in tensors if g.shapes[v] == g.shapes[at] and v != at]
        other = draw(st.sampled_from(fit)) if fit else g.conv(at, channels, 1)
        return g.add(at, other) if kind == "add" else g.concat(at, other)
    if kind == "norm":
        return g.batch_norm(at)
    if kind in ("max", "average"):
        return g.pool("MaxPool" if kind == "max" else "AveragePool", at) if side > 2 else g.unary("Relu", at)
    return g.unary(kind, at)


def quantized_integers(model, pixels):
    """Logits and the output of every QuantizeLinear, by ONNX Runtime without any fusion."""
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    names = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    extended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        extended.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    values = session.run(None, {"images": pixels})
    return values[0], dict(zip(names, values[1:], strict=True))


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
@given(graph=graphs())
@FAST
def test_every_integer_is_the_one_that_integer_arithmetic_gives(target, graph):
    """Layer by layer, each from the runtime's own integers; only a tie may fall to the other side."""
    with tempfile.TemporaryDirectory() as folder:
        path, pixels = graph.save(Path(folder) / "float.onnx"), images(3)
        layers = [node.name for node in graph.nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
        left = (layers[graph.random.integers(len(layers))],) if graph.random.random() < 0.5 else ()
        effort = QuantizeOptions(effort="balanced" if len(graph.nodes) % 2 else "fast", float_layers=left)
        quantize(
            path, collect(path, [pixels]), targets.get(target).scheme(), effort, Path(folder) / "int8.onnx"
        )
        model = onnx.load(Path(folder) / "int8.onnx")
    logits, theirs = quantized_integers(model, pixels)
    ours, seen = integer_reference.run(model, pixels, theirs)
    assert seen
    for name, (steps, integers) in seen.items():
        differs = integers != theirs[name]
        from_tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5)
        assert (from_tie[differs] < 1e-3).all(), name
        assert (np.abs(integers - theirs[name].astype(int)) <= 1).all(), name
    np.testing.assert_allclose(logits, ours, rtol=1e-4, atol=1e-5 * np.abs(ours).max())


@given(graph=graphs((*KINDS, "average"), heads=["Gemm"]))
@settings(FAST, max_examples=25)
def test_fused_kernels_of_onnx_runtime_give_the_same_integers(graph):
    """But for MatMul: without a Q behind it, it is taken for one with compressed weights only."""
    fused_kernels_agree("onnxruntime", graph)


@given(graph=graphs(KINDS, joint="Relu"))
@settings(FAST, max_examples=25)
def test_fused_kernels_of_openvino_give_the_same_integers(graph):
    """But for an average pool, which it rounds."""
    fused_kernels_agree("openvino", graph)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_fused_kernels_agree_on_residual_blocks(target):
    fused_kernels_agree(target, residual(), size=16)


@given(graph=graphs((*KINDS, "concat")).filter(lambda g: "Concat" in {n.op_type for n in g.nodes}))
@settings(FAST, max_examples=5)
def test_openvino_gets_no_signed_integers_in_a_concat(graph):
    """2026.4 reads them as unsigned; see `QuantScheme.concat_offset`."""
    with tempfile.TemporaryDirectory() as folder:
        model = io.read_classifier(graph.save(Path(folder) / "float.onnx")).model
    placed = place(model, targets.get("openvino").scheme()).activations
    joined = {name for n in graph.nodes if n.op_type == "Concat" for name in (*n.input, *n.output)}
    assert {spec.stored for name, spec in placed.items() if name in joined} <= {"uint8"}


def fused_kernels_agree(target, graph, size=8):
    """With scales that are powers of two every step is exact in float32, ties included.

    Weights of 7 bits: no pair sum saturates, whatever the CPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, pixels = graph.save(Path(folder) / "float.onnx"), images(3, size)
        model = io.read_classifier(path).model
        scheme = targets.get(target).scheme()
        placement, statistics = place(model, scheme), collect(path, [pixels])
        activations = {
            name: powers_of_two(observer_qparams(statistics.tensors[name], spec, "minmax"))
            for name, spec in placement.activations.items()
        }
        weights = {
            name: powers_of_two(
                weight_qparams(edit.constant(model.graph.initializers[name]), replace(spec, bits=7))
            )
            for name, spec in placement.weights.items()
        }
        for name, value in model.graph.initializers.items():
            if name.endswith(".bias"):  # a multiple of every product of scales there is
                edit.set_constant(value, np.round(edit.constant(value) * 64) / np.float32(64))
        io.save(qdq.insert(model, activations, weights, {}), Path(folder) / "int8.onnx")
        compiled = targets.get(target).compile(Path(folder) / "int8.onnx", Path(folder) / "engine", "int8")
        with targets.get(target).open(Path(folder) / "engine" / compiled.file, threads=1) as session:
            theirs = session.infer(pixels)
        unrounded = fused_with_add(graph) if target == "openvino" else set()
        rounded = {name: q for name, q in activations.items() if name not in unrounded}
        reference = ir.to_proto(qdq.insert(model, rounded, weights, {}))
        ours, _ = integer_reference.run(reference, pixels)
    np.testing.assert_allclose(theirs, ours, rtol=1e-5, atol=1e-6 * np.abs(ours).max())


def fused_with_add(graph):
    """Convolutions whose sum with a shortcut OpenVINO rounds once: it passes over the Q between."""
    kinds = {node.output[0]: node.op_type for node in graph.nodes}
    used = [name for node in graph.nodes for name in node.input]
    result = set()
    for node in graph.nodes:
        alone = [v for v in node.input if kinds.get(v) == "Conv" and used.count(v) == 1]
        if node.op_type == "Add" and len(alone) == 1:
            result.update(alone)
    return result


def powers_of_two(qparams: QParams) -> QParams:
    """The next larger power of two for every scale."""
    return replace(qparams, scale=tuple(float(2.0 ** np.ceil(np.log2(s))) for s in qparams.scale))
