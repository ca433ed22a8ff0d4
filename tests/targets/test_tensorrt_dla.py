"""DLA bundles: the cache's text to the byte, scales through the graph, refusals by name."""

import re
import struct

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as onnxruntime_itself
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, Placement, images, residual_net, save

from edgeship.targets import onnxruntime
from edgeship.targets.tensorrt import dla
from edgeship.targets.tensorrt.dla import Cache, write_cache
from edgeship.toolkit.core.errors import DataError, DeviceError, ModelError, RecipeError, ToolkitError

PUBLISHED = "TRT-8600-EntropyCalibration2\ninput.1: 3ca94044\n123: 3c010204\noutput: 3f800000\n"


def read_cache(text):
    """Parse a cache; names may hold colons, the last one counts."""
    header, *lines, last = text.split("\n")
    assert last == ""
    number, algorithm = re.fullmatch(r"TRT-(\d{4,6})-(\w+)", header).groups()
    rows = (line.rpartition(": ") for line in lines)
    scales = {name: struct.unpack(">f", bytes.fromhex(digits))[0] for name, _, digits in rows}
    major, rest = divmod(int(number), 10_000 if len(number) == 6 else 1000)
    return Cache((major, *divmod(rest, 100)), algorithm, scales)


def test_the_published_text():
    cache = read_cache(PUBLISHED)
    assert cache.version == (8, 6, 0)
    assert cache.scales["output"] == 1.0
    assert cache.scales["123"] == pytest.approx(1 / 127, rel=1e-7)
    assert write_cache(cache) == PUBLISHED


@pytest.mark.parametrize(
    ("version", "header"),
    [
        ((8, 5, 1), "TRT-8501-"),
        ((8, 6, 0), "TRT-8600-"),
        ((8, 2, 1), "TRT-8201-"),
        ((10, 9, 0), "TRT-100900-"),
    ],
)
def test_headers(version, header):
    text = write_cache(Cache(version, dla.ALGORITHM, {"a": 1.0}))
    assert text.startswith(header)
    assert read_cache(text).version == version


names = st.text(
    st.characters(
        blacklist_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", blacklist_categories=["Cs"]
    ),
    min_size=1,
)
positive = st.floats(2.0**-140, 2.0**100, width=32)


@given(scales=st.dictionaries(names, positive, max_size=5))
def test_what_is_written_is_read_back_exactly(scales):
    cache = Cache((8, 5, 2), dla.ALGORITHM, scales)
    assert read_cache(write_cache(cache)) == cache


@pytest.mark.parametrize("name", ["layer:0", "a: b", "x: 3f800000", " spaced "])
def test_names_with_colons(name):
    cache = Cache((8, 5, 2), dla.ALGORITHM, {name: 0.5})
    assert read_cache(write_cache(cache)) == cache


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_scales_that_are_none(scale):
    with pytest.raises(DataError):
        write_cache(Cache((8, 5, 0), dla.ALGORITHM, {"x": scale}))


def test_a_bundle_is_the_float_network_with_the_scales_of_its_graph(tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    bundle = dla.write(path, tmp_path / "dla", module="AGX Orin", version="8.5.2")
    stripped = onnx.load(bundle.folder / dla.GRAPH)
    assert not {node.op_type for node in stripped.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    float_path = save(residual_net(FLOAT), tmp_path / "float.onnx")
    with onnxruntime.simulate(float_path) as one, onnxruntime.simulate(bundle.folder / dla.GRAPH) as two:
        np.testing.assert_allclose(one.infer(images()), two.infer(images()), atol=1e-4)
    cache = read_cache((bundle.folder / dla.CACHE).read_text())
    assert cache.version == (8, 5, 2)
    assert cache.scales["images"] == pytest.approx(0.03)
    assert cache.scales["maxpool"] == cache.scales["relu1"] == cache.scales["conv1"]  # through ReLU and pool
    assert bundle.half_layers == (
        "layer1.conv2",
        "layer1.add",
        "layer2.conv2",
        "layer2.add",
    )  # no scale between
    assert (bundle.folder / dla.PRECISIONS).read_text() == ",".join(
        f"{n}:fp16" for n in bundle.half_layers
    ) + "\n"
    assert {"--useDLACore=0", "--calib=calib.cache", "--allowGPUFallback"} <= set(bundle.trtexec)


def test_calibration_images_fill_the_gaps(tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    seen = images(10)
    bundle = dla.write(path, tmp_path / "dla", module="Orin NX 16GB", version="8.5.2", images=seen)
    assert bundle.half_layers == ()
    assert not any(argument.startswith("--layerPrecisions") for argument in bundle.trtexec)
    # The same figure by hand: the float network, one image after the other.
    plain = residual_net(FLOAT)
    plain.graph.output.append(onnx.ValueInfoProto(name="layer1.conv2"))
    session = onnxruntime_itself.InferenceSession(
        plain.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    largest = max(
        np.abs(session.run(["layer1.conv2"], {"images": seen[i : i + 1]})[0]).max() for i in range(10)
    )
    scales = read_cache((bundle.folder / dla.CACHE).read_text()).scales
    assert scales["layer1.conv2"] == pytest.approx(largest / 127, rel=1e-5)
    assert scales["images"] == pytest.approx(0.03)  # what has a Q keeps its scale


def test_the_last_part_of_a_batch_counts_and_its_filling_does_not(tmp_path):
    path = save(residual_net(TENSORRT, batch=4), tmp_path / "net.onnx")
    seen = images(6)
    seen[5] *= 3
    found = dla.ranges(path, seen)
    assert set(found) == {"layer1.conv2", "layer2.conv2"}  # the Adds have the scale of their ReLUs
    assert found["layer1.conv2"] > 2 * dla.ranges(path, seen[:5])["layer1.conv2"]
    one = save(residual_net(TENSORRT), tmp_path / "one.onnx")
    assert dla.ranges(one, seen) == pytest.approx(found, rel=1e-5)
    with pytest.raises(DataError, match="takes") as caught:
        dla.ranges(path, seen[:, :, :8])
    assert caught.value.hint


def test_tensorrt_11_takes_the_typed_graph_with_its_qdq_on_agx_orin_alone(tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    bundle = dla.write(path, tmp_path / "dla", module="AGX Orin", version="11.4.1")
    assert [file.name for file in bundle.folder.iterdir()] == [bundle.graph] == [dla.EXPLICIT_GRAPH]
    graph = onnx.load(bundle.folder / bundle.graph)
    kinds = [node.op_type for node in graph.graph.node]
    assert "QuantizeLinear" in kinds and "GlobalAveragePool" not in kinds
    assert onnx.TensorProto.FLOAT not in {item.data_type for item in graph.graph.initializer}
    assert "--useDLACore=0" in bundle.trtexec and "--allowGPUFallback" in bundle.trtexec
    gone = ("--int8", "--fp16", "--calib", "--layerPrecisions", "--precisionConstraints", "--stronglyTyped")
    assert not [argument for argument in bundle.trtexec if argument.startswith(gone)]
    with (
        onnxruntime.simulate(path) as one,
        onnxruntime.simulate(bundle.folder / bundle.graph) as two,
    ):
        np.testing.assert_allclose(one.infer(images()), two.infer(images()), atol=0.1)
    with pytest.raises(DeviceError, match="DLA of AGX Orin alone") as caught:
        dla.write(path, tmp_path / "nx", module="Orin NX 16GB", version="11.4.1")
    assert "10.7" in caught.value.hint


@pytest.mark.parametrize(
    ("module", "version", "header"),
    [
        ("AGX Orin", "8.5", "TRT-8502-"),
        ("AGX Orin", "8.5.2.2", "TRT-8502-"),
        ("Jetson AGX Orin Developer Kit", "8.6", "TRT-8602-"),
        ("reComputer J4012", "8.6.2.3-1+cuda12.2", "TRT-8602-"),
        ("Orin NX 8GB", "10.3.0.30-1+cuda12.5", "TRT-100300-"),
        ("AGX Xavier", "8.4", "TRT-8401-"),
        ("AGX Orin", "10.7.0", "TRT-100700-"),
    ],
)
def test_the_header_has_the_exact_version_of_the_device(module, version, header, tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    bundle = dla.write(path, tmp_path / "dla", module=module, version=version)
    assert (bundle.folder / dla.CACHE).read_text().startswith(header)


@pytest.mark.parametrize(
    ("version", "match"), [("10.7", "exact"), ("8.5.1", "has no TensorRT"), ("8.6.1", "has no TensorRT")]
)
def test_a_version_that_no_device_has_or_that_is_not_exact_is_refused(version, match, tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    with pytest.raises(DeviceError, match=match) as caught:
        dla.write(path, tmp_path / "dla", module="AGX Orin", version=version)
    assert caught.value.hint
    assert not (tmp_path / "dla").exists()


def test_the_oldest_dla_has_no_layer_precisions_and_a_note(tmp_path):
    path = save(residual_net(TENSORRT, opset=13), tmp_path / "net.onnx")
    bundle = dla.write(path, tmp_path / "dla", module="Xavier NX", version="8.2")
    assert (bundle.folder / dla.CACHE).read_text().startswith("TRT-8201-")
    assert not [argument for argument in bundle.trtexec if "recision" in argument]
    assert "--layerPrecisions" in bundle.notes[0]


def pooled(kind, window, size):
    """A graph of one pooling node over maps of `size` (height, width)."""
    attributes = {} if window is None else {"kernel_shape": window}
    node = onnx.helper.make_node(kind, ["x"], ["y"], name="pool", **attributes)
    shape = [1, 8, *size]
    given, out = (
        onnx.helper.make_tensor_value_info(n, 1, d) for n, d in (("x", shape), ("y", [1, 8, None, None]))
    )
    return onnx.helper.make_model(onnx.helper.make_graph([node], "g", [given], [out]))


@pytest.mark.parametrize(
    ("kind", "window", "size", "named"),
    [
        ("MaxPool", [3, 3], (32, 32), None),
        ("AveragePool", [8, 8], (32, 32), None),
        ("AveragePool", [9, 9], (32, 32), "9x9"),
        ("MaxPool", [1, 16], (32, 32), "1x16"),
        ("GlobalAveragePool", None, (7, 7), None),
        ("GlobalAveragePool", None, (8, 8), None),
        ("GlobalAveragePool", None, (10, 7), "10x7"),
        ("GlobalAveragePool", None, (12, 12), "12x12"),
        ("GlobalAveragePool", None, ("height", 7), "?x7"),
    ],
)
def test_pooling_windows_over_8_are_named(kind, window, size, named):
    findings = dla.unsupported(ir.from_proto(pooled(kind, window, size)))
    assert [item.rule for item in findings] == ([] if named is None else ["dla-pool-window"])
    assert named is None or (findings[0].node == "pool" and f" {named}," in findings[0].message)


def test_the_pool_becomes_one_that_every_dla_has(tmp_path):
    model = ir.from_proto(residual_net(FLOAT))
    assert dla.global_pools_to_average(model) == 1
    pool = next(node for node in model.graph if node.op_type == "AveragePool")
    assert pool.attributes.get_ints("kernel_shape") == (8, 8)


@pytest.mark.parametrize("module", ["Orin Nano", "orin-nano", "Thor", "Jetson Nano", "TX2"])
def test_modules_without_a_dla_are_refused(module, tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    with pytest.raises(DeviceError, match="no DLA core") as caught:
        dla.write(path, tmp_path / "dla", module=module, version="8.5.2")
    assert "GPU" in caught.value.hint
    assert not (tmp_path / "dla").exists()


def test_the_second_core_of_a_module_with_one_is_refused(tmp_path):
    path = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    with pytest.raises(DeviceError, match="has 1 DLA core"):
        dla.write(path, tmp_path / "dla", module="Orin NX 8GB", version="8.5.2", core=1)
    with pytest.raises(DeviceError, match="for certain") as caught:
        dla.write(path, tmp_path / "dla", module="NVIDIA Jetson Orin NX", version="8.5.2", core=1)
    assert "Orin NX 16GB" in caught.value.hint


@pytest.mark.parametrize(
    ("placement", "batch", "version", "error"),
    [
        (TENSORRT, "batch", "8.5.2", ModelError),
        (FLOAT, 1, "8.5.2", ModelError),
        (OPENVINO, 1, "8.5.2", ModelError),
        (Placement(zero_point=3), 1, "8.5.2", ModelError),
        (TENSORRT, 1, "10.13", RecipeError),
        (TENSORRT, 1, "11.1", RecipeError),
        (FLOAT, 1, "11.4", ModelError),
    ],
    ids=[
        "dynamic batch",
        "no Q/DQ",
        "uint8",
        "asymmetric",
        "no DLA in 10.13",
        "no DLA in 11.1",
        "no Q/DQ for 11.4",
    ],
)
def test_what_cannot_be_bundled_is_refused(placement, batch, version, error, tmp_path):
    path = save(residual_net(placement, batch=batch), tmp_path / "net.onnx")
    with pytest.raises(error) as caught:
        dla.write(path, tmp_path / "dla", module="AGX Orin", version=version)
    assert isinstance(caught.value, ToolkitError)
    assert caught.value.hint
    assert not (tmp_path / "dla").exists()


def test_what_the_dla_cannot_run_is_listed():
    model = residual_net(TENSORRT)
    next(node for node in model.graph.node if node.name == "flatten").op_type = "Erf"
    assert [(item.rule, item.node) for item in dla.unsupported(ir.from_proto(model))] == [
        ("dla-operator", "flatten")
    ]
    assert dla.unsupported(ir.from_proto(residual_net(FLOAT))) == []
    assert dla.unsupported(ir.from_proto(residual_net(FLOAT, batch="batch")))[0].rule == "dla-dynamic-batch"
