"""Engines that take decoded pixels: the same logits as of ready images, and INT8 from the first layer on."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from float_graphs import residual
from onnx import TensorProto, helper, numpy_helper
from qdq_graphs import findings_of

from edgeship import targets
from edgeship.calibration.preprocess import normalize
from edgeship.quantization import QuantizeOptions, quantize
from edgeship.quantization.calibrate import collect
from edgeship.targets.onnxruntime import simulate
from edgeship.targets.tensorrt import fp16_graph, jetson_folder, lint, rtx_check, versions
from edgeship.toolkit.core.errors import DataError, TargetError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.pixels import add_pixel_input
from edgeship.toolkit.pipeline.variants import check_pixels

PREPROCESS = Preprocess(resize=16, crop=16)
NAMES = ("openvino", "onnxruntime", "tensorrt")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Target -> its INT8 graph, and the same that takes pixels."""
    folder = tmp_path_factory.mktemp("graphs")
    path = residual(seed=1).save(folder / "float.onnx")
    statistics = collect(path, [normalize(PIXELS, PREPROCESS)])
    found = {}
    for name in NAMES:
        ready, pixels = folder / f"{name}.onnx", folder / f"{name}-pixels.onnx"
        quantize(path, statistics, targets.get(name).scheme(), QuantizeOptions(effort="fast"), ready)
        add_pixel_input(ready, PREPROCESS, pixels)
        found[name] = ready, pixels
    return found


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_logits_are_those_of_ready_images_to_the_last_bit(name, graphs, tmp_path):
    target, logits, audits = targets.get(name), [], []
    for graph, images in zip(graphs[name], (normalize(PIXELS, PREPROCESS), PIXELS), strict=True):
        compiled = target.compile(graph, tmp_path / graph.stem, "int8")
        with target.open(tmp_path / graph.stem / compiled.file, threads=1) as session:
            assert session.takes_pixels == (images is PIXELS)
            logits.append(session.infer(images))
        audits.append({layer.name: (layer.precision, layer.warning) for layer in compiled.audit})
    np.testing.assert_array_equal(*logits)
    assert audits[0] == audits[1]  # nothing is taken out of INT8
    assert audits[1]["conv0"][0] == "int8"


def test_a_fixed_batch_is_filled_up(graphs, tmp_path):
    path = residual(seed=1, batch=2).save(tmp_path / "float.onnx")
    add_pixel_input(path, PREPROCESS, tmp_path / "pixels.onnx")
    for name in ("openvino", "onnxruntime"):
        target = targets.get(name)
        compiled = target.compile(tmp_path / "pixels.onnx", tmp_path / name, "fp32")
        with target.open(tmp_path / name / compiled.file, threads=1) as session:
            five, one = session.infer(PIXELS), session.infer(PIXELS[4:])
        np.testing.assert_allclose(five[4:], one, atol=1e-5 * np.abs(one).max())


def test_throughput_takes_pixels_too(graphs, tmp_path):
    for name in ("openvino", "onnxruntime"):
        target = targets.get(name)
        engine = tmp_path / name / target.compile(graphs[name][1], tmp_path / name, "int8").file
        assert target.throughput_ips(engine, PIXELS[:2], threads=1, duration_s=0.01) > 0


def test_tensorrt_reads_and_builds_it_with_the_first_layer_in_int8(graphs):
    try:
        verdict = rtx_check.check(graphs["tensorrt"][1])
    except TargetError as absent:
        pytest.skip(str(absent))
    assert verdict.accepted and not verdict.warnings, verdict.errors
    assert {layer.precision for layer in verdict.layers} == {"int8"}


def first_integers(model, path, images):
    """Return the output of the first QuantizeLinear for images."""
    import onnxruntime

    model.graph.output.append(helper.make_tensor_value_info("images/quantized", TensorProto.INT8, None))
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["images/quantized"], {"images": images})[0]


def test_the_fp16_typed_graph_makes_the_same_integers_of_pixels(graphs, tmp_path):
    ready, pixels = graphs["tensorrt"]
    fp16_graph.to_half(pixels, tmp_path / "half.onnx")
    wanted = first_integers(onnx.load(ready), tmp_path / "ready.onnx", normalize(PIXELS, PREPROCESS))
    model = onnx.load(tmp_path / "half.onnx")
    assert not [found for found in findings_of(model, "11.4") if found.severity == "error"]
    np.testing.assert_array_equal(first_integers(model, tmp_path / "h.onnx", PIXELS), wanted)
    fp16_graph.to_half(ready, tmp_path / "half.onnx")  # through FP16 some are others
    model = onnx.load(tmp_path / "half.onnx")
    through = first_integers(model, tmp_path / "h.onnx", normalize(PIXELS, PREPROCESS))
    assert np.abs(through.astype(int) - wanted).max() == 1


@pytest.mark.parametrize("kind", ["int8", "float"])
def test_nvidias_parser_builds_the_fp16_typed_graph(kind, graphs, tmp_path):
    path = graphs["tensorrt"][1]
    if kind == "float":
        path = tmp_path / "pixels.onnx"
        add_pixel_input(residual(seed=1).save(tmp_path / "float.onnx"), PREPROCESS, path)
    fp16_graph.to_half(path, tmp_path / "half.onnx")
    with simulate(path, threads=1) as one, simulate(tmp_path / "half.onnx", threads=1) as two:
        wanted = one.infer(PIXELS)
        np.testing.assert_allclose(two.infer(PIXELS), wanted, atol=0.02 * np.abs(wanted).max())
    try:
        verdict = rtx_check.check(tmp_path / "half.onnx")
    except TargetError as absent:
        pytest.skip(str(absent))
    assert verdict.accepted, verdict.errors
    assert {layer.precision for layer in verdict.layers} == {"int8" if kind == "int8" else "fp16"}


def test_a_folder_for_a_jetson_has_pixels_as_golden_inputs(graphs, tmp_path):
    ready, pixels = graphs["tensorrt"]
    fixed = onnx.load(pixels)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, pixels.with_name("fixed.onnx"))
    where = {"version": "10.3", "module": "Orin Nano"}
    jetson_folder.write(pixels.with_name("fixed.onnx"), tmp_path / "out", **where)
    golden = json.loads((tmp_path / "out" / "golden" / "golden.json").read_text())
    assert (golden["inputs"], golden["shape"][1:]) == ("inputs.u8", [16, 16, 3])
    with pytest.raises(DataError, match=r"float32 \(3, 16, 16\), .* takes uint8 \(16, 16, 3\)"):
        jetson_folder.write(pixels, tmp_path / "no", **where, images=normalize(PIXELS, PREPROCESS))
    with pytest.raises(DataError, match="uint8 pixels"):
        jetson_folder.write(pixels, tmp_path / "no", **where, plain=ready)
    with pytest.raises(DataError, match="which a DLA cannot normalize") as caught:
        jetson_folder.write(pixels, tmp_path / "no", version="8.5", module="AGX Orin", dla_core=0)
    assert "float32 input" in caught.value.hint
    assert not (tmp_path / "no").exists()


def by_rule(model, version):
    return [finding for finding in lint.lint(model, version) if finding.rule == "uint8-input"]


@pytest.mark.parametrize("version", versions.IN_THE_FIELD)
def test_the_linter_takes_pixels_from_8_5_on(version, graphs):
    ready, pixels = graphs["tensorrt"]
    if versions.rules(version).version >= (8, 5):
        assert lint.lint(pixels, version) == lint.lint(ready, version)
        return
    (finding,) = by_rule(pixels, version)
    assert (finding.severity, finding.node) == ("error", "images")
    assert f"TensorRT {version} does not have" in finding.message
    assert "float32 input" in finding.fix


def test_pixels_that_anything_but_a_cast_reads_are_refused_as_tensorrt_does(graphs, tmp_path):
    """Transposed while still uint8: fine in ONNX, refused by every TensorRT."""
    model = onnx.load(graphs["tensorrt"][1])
    nodes = {node.name: node for node in model.graph.node}
    cast, transpose = nodes["images/cast"], nodes["images/transpose"]
    first = helper.make_node("Transpose", ["images"], ["planes"], name="early", perm=[0, 3, 1, 2])
    cast.input[0] = "planes"
    for reader in model.graph.node:
        reader.input[:] = [transpose.input[0] if i == transpose.output[0] else i for i in reader.input]
    model.graph.node.remove(transpose)
    for name in ("gain", "shift"):
        constant = next(t for t in model.graph.initializer if t.name == f"images/{name}")
        planes = numpy_helper.to_array(constant)[0].reshape(3, 1, 1)
        constant.CopyFrom(numpy_helper.from_array(planes, constant.name))
    model.graph.node.insert(0, first)
    onnx.save(model, tmp_path / "m.onnx")
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    (finding,) = by_rule(tmp_path / "m.onnx", "10.3")
    assert "is read by early (Transpose), not by a Cast" in finding.message
    with pytest.raises(TargetError, match="refuses or misreads"):
        targets.get("tensorrt").compile(tmp_path / "m.onnx", tmp_path / "out", "int8")
    try:
        verdict = rtx_check.check(tmp_path / "m.onnx")
    except TargetError as absent:
        pytest.skip(str(absent))
    assert not verdict.accepted and "UInt8" in verdict.errors[0]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_an_engine_that_normalizes_otherwise_is_found(name, graphs, tmp_path):
    target, engines = targets.get(name), []
    wrong = tmp_path / "wrong.onnx"
    add_pixel_input(graphs[name][0], replace(PREPROCESS, mean=(0.5, 0.5, 0.5)), wrong)
    for graph in (*graphs[name], wrong):
        folder = tmp_path / graph.stem
        engines.append(folder / target.compile(graph, folder, "int8").file)
    assert check_pixels(target, engines[1], engines[0], PREPROCESS) == []
    (warning,) = check_pixels(target, engines[2], engines[0], PREPROCESS)
    assert "uint8" in warning
