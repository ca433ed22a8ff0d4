"""Configurations of servers and pipelines that do not run here: schemas, and names that need escapes."""

import importlib.util
import json
import shutil
import stat
import subprocess
import sys
import types
import xml.etree.ElementTree as xml
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit import export_app

PROGRAMS = "edgeship.toolkit.export_app.programs"
HOSTILE = 'in"put\\ü\n\t\x01'


def load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    places = [*sys.path]
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = places  # with the program's runner, worker processes of other tests would lack modules
    return module


@pytest.fixture
def model_config():
    tritonclient = pytest.importorskip("tritonclient", reason="needs tritonclient")
    path = Path(tritonclient.__file__).parent / "grpc" / "model_config_pb2.py"
    return load(path, "model_config_pb2").ModelConfig


@pytest.mark.parametrize(
    ("variant", "file", "platform"),
    [
        ("onnxruntime-int8", "model.onnx", "onnxruntime_onnx"),
        ("openvino-int8", "model.xml", ""),
        ("tensorrt-int8", None, "tensorrt_plan"),
    ],
)
def test_triton_reads_the_configuration(published, tmp_path, model_config, variant, file, platform):
    from google.protobuf import text_format

    export_app.write(published.folder, "triton", tmp_path / "app", variant)
    model = tmp_path / "app" / "repository" / "my_net_1"
    read = text_format.Parse((model / "config.pbtxt").read_text(encoding="utf-8"), model_config())
    assert read.name == "my_net_1" == model.name and read.platform == platform
    assert (read.backend == "openvino") == (variant == "openvino-int8")
    folder = published.folder / "engines" / variant.split("-")[0] / variant
    graph = onnx.load(folder / ("graph.onnx" if file == "model.xml" else "model.onnx"))
    (image,), (logits,) = graph.graph.input, graph.graph.output
    sides = [side.dim_value or -1 for side in image.type.tensor_type.shape.dim]
    batched = sides[0] == -1
    assert read.input[0].name == image.name and read.output[0].name == logits.name
    assert list(read.input[0].dims) == sides[batched:] and bool(read.max_batch_size) == batched
    assert model_config.DESCRIPTOR.file.enum_types_by_name["DataType"].values_by_number[
        read.input[0].data_type
    ].name == "TYPE_FP32"  # fmt: skip
    labels = (model / read.output[0].label_filename).read_text(encoding="utf-8").splitlines()
    assert labels == json.loads((published.folder / "engines/model.json").read_text())["labels"]
    assert json.loads(read.parameters["edgeship.preprocess"].string_value)["crop"] == 16
    assert file is None or (model / "1" / file).is_file()
    if file is None:
        text = (tmp_path / "app" / "README.md").read_text(encoding="utf-8")
        assert (
            "--saveEngine=repository/my_net_1/1/model.plan" in text
            and (tmp_path / "app/model.onnx").is_file()
        )


@pytest.mark.parametrize("variant", ["onnxruntime-int8", "tensorrt-int8"])
def test_triton_forms_batches_of_a_graph_with_a_dynamic_batch(published, tmp_path, model_config, variant):
    from google.protobuf import text_format

    copy = tmp_path / "run"
    shutil.copytree(published.folder, copy)
    path = copy / "engines" / variant.split("-")[0] / variant / "model.onnx"
    graph = onnx.load(path)
    for value in (graph.graph.input[0], graph.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(graph, path)
    export_app.write(copy, "triton", tmp_path / "app", variant)
    text = (tmp_path / "app/repository/my_net_1/config.pbtxt").read_text(encoding="utf-8")
    read = text_format.Parse(text, model_config())
    assert read.max_batch_size == 8 and read.HasField("dynamic_batching")
    assert list(read.input[0].dims) == [3, 16, 16] and list(read.output[0].dims) == [10]
    if variant == "tensorrt-int8":
        assert "--maxShapes=images:8x3x16x16" in (tmp_path / "app" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", [HOSTILE, "", "plain", "'", "🙂", "\x7f\u200b"])
def test_strings_of_the_text_format_are_escaped(model_config, text):
    from google.protobuf import text_format

    quoted = export_app.kind_module("triton").quoted(text)
    assert text_format.Parse(f"name: {quoted}", model_config()).name == text
    assert "\n" not in quoted


def test_ovms_has_the_keys_of_its_schema(published, tmp_path):
    export_app.write(published.folder, "ovms", tmp_path / "app")
    config = json.loads((tmp_path / "app" / "models" / "config.json").read_text(encoding="utf-8"))
    ((entry,),) = [config.pop("model_config_list")]
    assert not config and set(entry) == {"config"}
    values = entry["config"]
    assert {"name", "base_path"} <= set(values) <= {"name", "base_path", "target_device", "plugin_config"}
    assert values["base_path"] == f"/models/{values['name']}"
    version = tmp_path / "app" / "models" / values["name"] / "1"
    assert (version / "model.xml").is_file() and (version / "model.bin").is_file()
    properties = {"PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT"}
    import openvino

    from edgeship.toolkit.core.openvino import core

    assert set(values["plugin_config"]) == properties
    compiled = core().compile_model(version / "model.xml", "CPU", values["plugin_config"])
    assert compiled.get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32


def test_dlstreamer_has_the_documented_keys_and_a_script_that_parses(published, tmp_path):
    export_app.write(published.folder, "dlstreamer", tmp_path / "app")
    content = json.loads((tmp_path / "app" / "model_proc.json").read_text(encoding="utf-8"))
    assert set(content) == {"json_schema_version", "input_preproc", "output_postproc"}
    (image,), (labels,) = content["input_preproc"], content["output_postproc"]
    record = json.loads((published.folder / "engines/model.json").read_text())
    assert labels["labels"] == record["labels"] and labels["method"] == "softmax"
    steps = image["params"]
    assert set(steps) <= {"resize", "crop", "color_space", "range", "mean", "std"}
    assert steps["mean"] == record["preprocess"]["mean"] and steps["std"] == record["preprocess"]["std"]
    assert steps["color_space"] == "RGB" and image["layer_name"] == "images"
    script = tmp_path / "app" / "pipeline.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    assert subprocess.run(["sh", "-n", script]).returncode == 0
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode and "usage" in done.stderr


@pytest.fixture
def ros(monkeypatch):
    """Stand-ins for ROS: what the node imports."""
    made = {}

    class Node:
        def __init__(self, name):
            self.published, self.errors = [], []

        def declare_parameter(self, name, value):
            return types.SimpleNamespace(value=value)

        def create_publisher(self, kind, topic, depth):
            return types.SimpleNamespace(publish=self.published.append)

        def create_subscription(self, *arguments):
            made["subscription"] = arguments

        def get_logger(self):
            return types.SimpleNamespace(error=lambda text, **_: self.errors.append(text))

    def module(name, **content):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[name]).update(content)

    module("rclpy")
    module("rclpy.node", Node=Node)
    module("rclpy.qos", qos_profile_sensor_data="sensor data")
    module("sensor_msgs")
    module("sensor_msgs.msg", Image=object)
    module("vision_msgs")
    module("vision_msgs.msg", Classification=types.SimpleNamespace, ObjectHypothesis=types.SimpleNamespace)
    module("ament_index_python")
    module("ament_index_python.packages", get_package_share_directory=lambda name: made["share"])
    return made


def test_the_ros_node_publishes_the_classes_of_the_library(published, tmp_path, ros):
    export_app.write(published.folder, "ros2", tmp_path / "app")
    root = tmp_path / "app" / "edgeship_my_net_1"
    ros["share"] = str(root / "share")
    node = load(root / "edgeship_my_net_1" / "node.py", "edgeship_my_net_1.node").ClassifierNode()
    image = np.random.default_rng(0).integers(0, 256, (20, 18, 3), np.uint8)

    def message(pixels, encoding, step=None, **changes):
        height, width = pixels.shape[:2]
        rows = pixels.reshape(height, -1)
        padded = np.pad(rows, ((0, 0), (0, (step or rows.shape[1]) - rows.shape[1])), constant_values=255)
        content = {"height": height, "width": width, "step": padded.shape[1], "encoding": encoding}
        return types.SimpleNamespace(**{**content, "header": "head", "data": padded.tobytes(), **changes})

    node.classify(message(image, "rgb8", step=64))
    node.classify(message(image[..., ::-1], "bgr8"))
    node.classify(message(image[..., 0], "mono8", step=21))
    with Classifier(published.folder / "engines/openvino/openvino-int8") as classifier:
        colour, grey = classifier(image).top(5), classifier(image[..., 0]).top(5)
    for answer, expected in zip(node.published, (colour, colour, grey), strict=True):
        assert [each.class_id for each in answer.results] == [each.label for each in expected]
        assert [each.score for each in answer.results] == [each.probability for each in expected]
        assert answer.header == "head"
    for wrong in (
        message(image, "yuv422"),
        message(image, "rgb8", data=b"12"),
        message(image, "rgb8", step=64, width=40),
        message(image, "rgb8", height=0, data=b""),
    ):
        node.classify(wrong)
    assert len(node.errors) == 4 and len(node.published) == 3
    node.classifier.close()


def test_the_ros_package_is_complete(published, tmp_path, monkeypatch):
    import setuptools

    export_app.write(published.folder, "ros2", tmp_path / "app")
    root = tmp_path / "app" / "edgeship_my_net_1"
    tree = xml.parse(root / "package.xml").getroot()
    assert tree.find("name").text == root.name and 'my "net" ü/1' in tree.find("description").text
    built = {}
    monkeypatch.setattr(setuptools, "setup", lambda **content: built.update(content))
    monkeypatch.chdir(root)
    load(root / "setup.py", "setup")
    assert built["name"] == root.name and built["packages"] == [root.name]
    files = [name for _, names in built["data_files"] for name in names]
    assert all(Path(name).is_file() for name in files)
    assert {"share/edgeship_runner.pyz", "share/model/model.xml", "share/model/model.json"} <= set(files)


@pytest.mark.parametrize("kind", ["triton", "ovms"])
def test_the_client_prepares_as_the_library(published, tmp_path, kind):
    export_app.write(published.folder, kind, tmp_path / "app", "openvino-int8")
    client = load(tmp_path / "app" / "client.py", f"{PROGRAMS}.kserve_client_{kind}")
    with Classifier(published.folder / "engines/openvino/openvino-int8") as classifier:
        for image in published.images[:5]:
            ready = client.prepare(image, "FP32", [1, 3, 16, 16])
            np.testing.assert_array_equal(ready, classifier.inputs([image]))
    pixels = client.prepare(published.images[0], "UINT8", [1, 16, 16, 3])
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(
        client.prepare(published.images[0], "FP32", [-1, 16, 16, 3]),
        client.prepare(published.images[0], "FP32", [-1, 3, 16, 16]).transpose(0, 2, 3, 1),
    )
    for datatype, shape in (("FP16", [1, 3, 16, 16]), ("FP32", [1, 3, 8, 8]), ("UINT8", [1, 3, 16, 16])):
        with pytest.raises(ValueError, match="the model takes"):
            client.prepare(published.images[0], datatype, shape)


def test_the_client_asks_the_server_for_its_tensors(published, tmp_path):
    pytest.importorskip("tritonclient", reason="needs tritonclient")
    export_app.write(published.folder, "ovms", tmp_path / "app")
    client = load(tmp_path / "app" / "client.py", f"{PROGRAMS}.kserve_client")

    class Server:
        def get_model_metadata(self, model):
            return {"inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 16, 16]}]}

        def infer(self, model, inputs):
            data = np.frombuffer(inputs[0]._get_binary_data(), np.float32).reshape(inputs[0].shape())
            with Classifier(published.folder / "engines/openvino/openvino-int8") as classifier:
                logits = classifier.classify_inputs(data)[0].logits
            return types.SimpleNamespace(
                get_response=lambda: {"outputs": [{"name": "logits"}]}, as_numpy=lambda name: logits[None]
            )

    indices = [client.classify(Server(), "m", image) for image in published.images[:5]]
    assert indices == published.logits["openvino-int8"][:5].argmax(1).tolist()


def test_a_graph_with_a_hostile_input_name_is_escaped(published, tmp_path, model_config):
    from google.protobuf import text_format

    copy = tmp_path / "run"
    shutil.copytree(published.folder, copy)
    path = copy / "engines/onnxruntime/onnxruntime-int8/model.onnx"
    graph = onnx.load(path)
    for node in graph.graph.node:
        node.input[:] = [HOSTILE if name == "images" else name for name in node.input]
    graph.graph.input[0].name = HOSTILE
    onnx.save(graph, path)
    export_app.write(copy, "triton", tmp_path / "app", "onnxruntime-int8")
    text = (tmp_path / "app/repository/my_net_1/config.pbtxt").read_text(encoding="utf-8")
    assert text_format.Parse(text, model_config()).input[0].name == HOSTILE
