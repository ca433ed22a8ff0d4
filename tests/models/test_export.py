"""Export: every member equals torch, and the graph holds only what every target reads."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.graph.cost import cost
from edgeship.toolkit.models.export import export, parity
from edgeship.toolkit.models.resnet import ResNet, architecture, build, macs, names

MEMBERS = [n for n in names() if not n.endswith(("101", "152", "110"))]
VARIED = [
    ("resnet18", {"shortcut": "C"}),
    ("resnet18", {"shortcut": "A"}),
    ("resnet20", {"shortcut": "B"}),
    ("preact_resnet20", {"shortcut": "C"}),
    ("preact_resnet18", {"shortcut": "A", "stem": "cifar"}),
    ("resnet18", {"stem": "cifar", "channels": 1}),
]


def lively(name, **options):
    """A small network whose BatchNorms do something."""
    options = {"width": 4, "classes": 6, **options}
    model = build(architecture(name, **options), seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_equals_torch(name, tmp_path):
    model = lively(name)
    export(model, tmp_path / "net.onnx", size=32)
    assert parity(model, tmp_path / "net.onnx", size=32) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in names() if n not in MEMBERS])
def test_every_deep_member_equals_torch(name, tmp_path):
    model = lively(name)
    export(model, tmp_path / "net.onnx", size=32)
    assert parity(model, tmp_path / "net.onnx", size=32) <= 1e-4


@pytest.mark.parametrize(
    ("name", "strides"),
    [("resnet18", (4, 1)), ("resnet18", (3, 2)), ("preact_resnet18", (5, 1)), ("resnet20", (2, 1))],
)
def test_other_strides_of_the_stem_equal_torch(name, strides, tmp_path):
    dense = lively(name)
    model = ResNet(replace(dense.architecture, stem_strides=strides)).eval()
    model.load_state_dict(dense.state_dict())
    export(model, tmp_path / "net.onnx", size=(65, 70), batch=None)
    assert parity(model, tmp_path / "net.onnx", size=(65, 70)) <= 1e-4
    assert cost(tmp_path / "net.onnx").macs == macs(model.architecture, (65, 70))
    kinds = {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    export(dense, tmp_path / "dense.onnx", size=(65, 70), batch=None)
    assert kinds == {node.op_type for node in onnx.load(tmp_path / "dense.onnx").graph.node}  # no Resize


@pytest.mark.parametrize(("name", "options"), VARIED)
def test_every_shortcut_and_stem_equals_torch(name, options, tmp_path):
    model = lively(name, **options)
    export(model, tmp_path / "net.onnx", size=33, batch=None)  # an odd side, too
    assert parity(model, tmp_path / "net.onnx", size=33) <= 1e-4


def test_batchnorm_is_folded_wherever_a_convolution_precedes_it(tmp_path):
    path = tmp_path / "net.onnx"
    kinds = {}
    for name in ("resnet50", "preact_resnet50", "plain_resnet18"):
        export(lively(name), path, size=32)
        kinds[name] = [node.op_type for node in onnx.load(path).graph.node]
    assert "BatchNormalization" not in kinds["resnet50"] + kinds["plain_resnet18"]
    assert kinds["preact_resnet50"].count("BatchNormalization") == 16 + 1  # one a unit, and the last
    assert kinds["resnet50"].count("Conv") == 53
    assert set(kinds["resnet50"]) == {
        "Conv",
        "Relu",
        "MaxPool",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }


def test_names_versions_and_shapes(tmp_path):
    path = tmp_path / "net.onnx"
    preprocess = Preprocess(resize=36, crop=32)
    export(lively("resnet18"), path, size=32, batch=None, preprocess=preprocess)
    net = onnx.load(path)
    onnx.checker.check_model(net, full_check=True)
    assert (net.opset_import[0].version, net.ir_version) == (17, 8)
    nodes = {node.name: node for node in net.graph.node}
    assert list(nodes["layer2.0.downsample.0"].input) == [
        "layer1.1.relu",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.0.bias",
    ]
    assert nodes["fc"].output[0] == "logits"
    assert net.graph.input[0].name == "images"
    assert net.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:]
        for value in net.graph.value_info
    }
    assert shapes["layer4.1.add"] == [32, 1, 1]
    assert json.loads(net.metadata_props[0].value)["resize"] == 36


def test_dynamic_batch_runs_any_batch_and_static_only_its_own(tmp_path):
    model = lively("resnet20")
    export(model, tmp_path / "any.onnx", size=32, batch=None)
    export(model, tmp_path / "three.onnx", size=32, batch=3)
    images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    logits = [
        onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, {"images": images})[0]
        for name in ("any", "three")
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)
    assert onnx.load(tmp_path / "three.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3


def test_export_leaves_the_training_mode_alone_and_sees_a_wrong_file(tmp_path):
    model, other = lively("resnet18"), build(architecture("resnet18", width=4, classes=6), seed=9)
    export(other, tmp_path / "net.onnx", size=32)
    model.train()
    assert parity(model, tmp_path / "net.onnx", size=32) > 1e-2
    assert model.training


@pytest.mark.parametrize(("size", "batch"), [(0, 1), (32, 0)])
def test_nonsense_shapes_are_refused(size, batch, tmp_path):
    with pytest.raises(ModelError):
        export(lively("resnet18"), tmp_path / "net.onnx", size=size, batch=batch)
    assert not list(tmp_path.iterdir())


def test_tensorrt_parser_accepts_every_kind(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    logger = trt.Logger(trt.Logger.ERROR)
    for name in ("resnet18", "resnet20", "preact_resnet50", "plain_resnet34"):
        export(lively(name), tmp_path / "net.onnx", size=32)
        network = trt.Builder(logger).create_network(0)
        assert trt.OnnxParser(network, logger).parse((tmp_path / "net.onnx").read_bytes()), name
