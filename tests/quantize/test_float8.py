"""FP8 graphs: E4M3 numbers as ml_dtypes has them, in every type, in the simulation, in NVIDIA's parser."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from qdq_graphs import FLOAT, images, residual_net, save

from edgeship import targets
from edgeship.calibration.preprocess import normalize
from edgeship.quantization import calibrate, float8
from edgeship.quantization.qparams import choose_qparams, stored_array, weight_qparams
from edgeship.targets import onnxruntime
from edgeship.targets.tensorrt import GRAPH, fp16_graph, lint, local_gpu, rtx_check
from edgeship.toolkit.core.errors import DeviceError, QuantizationError
from edgeship.toolkit.core.quant import QuantSpec, Range
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.pixels import add_pixel_input

SPEC = QuantSpec("float8e4m3fn", symmetric=True)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float8")
    path = save(residual_net(FLOAT, batch="batch"), folder / "net.onnx")
    statistics = calibrate.collect(path, [images(16)])
    float8.write(path, statistics, targets.get("tensorrt").scheme(), folder / "fp8.onnx")
    return folder / "fp8.onnx"


def constants(path):
    return {item.name: item for item in onnx.load(path).graph.initializer}


def test_scales_map_the_largest_value_to_448():
    assert choose_qparams(Range((-2.0,), (3.0,)), SPEC).scale == (3.0 / 448,)
    assert SPEC.quant_min == -448 and choose_qparams(Range((-2.0,), (3.0,)), SPEC).zero_point == (0,)


def test_stored_weights_are_the_nearest_e4m3_numbers():
    weight = np.random.default_rng(0).normal(size=(8, 4, 3, 3)).astype(np.float32)
    qparams = weight_qparams(weight, QuantSpec("float8e4m3fn", symmetric=True, axis=0))
    stored = stored_array(weight, qparams)
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    every = every[np.isfinite(every)]
    scaled = (weight / np.float32(qparams.scale).reshape(-1, 1, 1, 1)).reshape(-1)
    best = np.abs(scaled[:, None] - every[None]).min(1)
    np.testing.assert_allclose(np.abs(stored.astype(np.float32).reshape(-1) - scaled), best, atol=1e-6)
    assert np.abs(stored.astype(np.float32)).reshape(8, -1).max(1).tolist() == [448.0] * 8


def test_types_are_explicit_throughout(graph):
    model = onnx.load(graph)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 19
    pairs = [node for node in model.graph.node if node.op_type.endswith("izeLinear")]
    kinds = {constants(graph)[node.input[2]].data_type for node in pairs}
    assert kinds == {TensorProto.FLOAT8E4M3FN}  # every zero point, which states the type
    weighted = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in weighted:
        data, weight = (producers[name] for name in node.input[:2])
        data = producers[data.input[0]] if data.op_type == "Flatten" else data
        assert data.op_type == weight.op_type == "DequantizeLinear"
        stored, scale = (constants(graph)[name] for name in weight.input[:2])
        assert stored.data_type == TensorProto.FLOAT8E4M3FN and list(scale.dims) == [stored.dims[0]]
        assert list(constants(graph)[data.input[1]].dims) == []
    assert {finding.rule for finding in lint.lint(graph, "10.13") if finding.severity == "error"} == set()


def test_the_simulation_is_the_reference_evaluators(graph):
    """Regression: ONNX Runtime's extended optimizations remove a ReLU before an FP8 QuantizeLinear."""
    model = onnx.load(graph)
    wanted = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: images(3)})[0]
    with onnxruntime.simulate(graph) as session:
        np.testing.assert_allclose(session.infer(images(3)), wanted, atol=1e-3 * np.abs(wanted).max())


def test_float8_quantization_of_the_runtime_is_that_of_ml_dtypes(tmp_path):
    random = np.random.default_rng(0)
    x = (random.normal(size=40_000) * 10.0 ** random.uniform(-4, 3, 40_000)).astype(np.float32)
    x = np.concatenate([x, np.float32([0, 448, 464, 1e9, -1e9, 2**-9, 2**-10, 1.0001 * 2**-10])]).reshape(
        1, -1
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", x.size]) for name in ("x", "y")]
    scale = np.float32(0.037)
    stored = [
        numpy_helper.from_array(scale, "scale"),
        helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0.0]),
    ]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], stored)
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=9),
        tmp_path / "q.onnx",
    )
    with onnxruntime.simulate(tmp_path / "q.onnx") as session:
        got = session.infer(x)
    wanted = np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    np.testing.assert_array_equal(got, wanted)


def test_nvidias_builder_runs_every_layer_in_fp8_where_the_gpu_has_it(graph, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    monkeypatch.setattr(local_gpu, "available", lambda: False)
    built = targets.get("tensorrt").compile(graph, tmp_path / "out", "fp8")
    assert (built.file, built.simulated, built.instead) == (GRAPH, GRAPH, ())
    assert {layer.precision for layer in built.audit if layer.kind == "Convolution"} == {"fp8"}
    stored = {item.data_type for item in onnx.load(tmp_path / "out" / GRAPH).graph.initializer}
    assert TensorProto.FLOAT not in stored and TensorProto.FLOAT8E4M3FN in stored
    refused = rtx_check.check(tmp_path / "out" / GRAPH, ("SM86",))  # Orin's generation
    assert not refused.accepted and "fp8" in refused.errors[0]


def test_pixels_are_normalized_before_fp8(graph, tmp_path):
    preprocess = Preprocess(resize=32, crop=32)
    add_pixel_input(graph, preprocess, tmp_path / "pixels.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    with onnxruntime.simulate(graph) as floats, onnxruntime.simulate(tmp_path / "pixels.onnx") as decoded:
        wanted, got = floats.infer(normalize(pixels, preprocess)), decoded.infer(pixels)
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()  # few pixels are at a tie


def test_a_tensorrt_without_fp8_is_refused(graph, tmp_path):
    with pytest.raises(DeviceError, match=r"TensorRT 8\.6.*no FP8"):
        targets.get("tensorrt").compile(graph, tmp_path / "out", "fp8", version="8.6.2")


def test_half_types_keep_the_float8_weights(graph, tmp_path):
    fp16_graph.to_half(graph, tmp_path / "half.onnx")
    before, after = constants(graph), constants(tmp_path / "half.onnx")
    names = [
        name for name, item in before.items() if item.data_type == TensorProto.FLOAT8E4M3FN and item.dims
    ]
    assert names and all(
        numpy_helper.to_array(before[name]).tobytes() == numpy_helper.to_array(after[name]).tobytes()
        for name in names
    )


def test_statistics_of_another_graph_are_refused(graph, tmp_path):
    other = save(residual_net(FLOAT), tmp_path / "net.onnx")
    statistics = calibrate.collect(other, [images(2)])
    statistics.tensors.clear()
    with pytest.raises(QuantizationError, match="no statistics"):
        float8.write(other, statistics, targets.get("tensorrt").scheme(), tmp_path / "fp8.onnx")
