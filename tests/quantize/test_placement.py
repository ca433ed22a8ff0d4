"""Snapshots of Q/DQ placement: one text file per network and scheme.

EDGESHIP_UPDATE_SNAPSHOTS=1 rewrites the files.
"""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
from float_graphs import Graph, residual

from edgeship import targets
from edgeship.quantization.placement import (
    add_float_bypass,
    duplicate_shared_weights,
    is_weighted,
    never_negative,
    place,
    preceding_layer,
    quantizable_tensors,
    weight_axis,
)
from edgeship.toolkit.graph import io
from edgeship.toolkit.models import resnet
from edgeship.toolkit.models.export import export

SNAPSHOTS = Path(__file__).parent / "snapshots"
NETWORKS = ("resnet18", "resnet50", "resnet20", "preact_resnet50", "plain_resnet34")
SCHEMES = ("openvino", "onnxruntime", "tensorrt")


@cache
def network(name, folder):
    """A member of the family with few channels: names and places are those of the wide one."""
    arch = resnet.architecture(name, classes=10)
    widths = arch.widths
    inner = tuple(tuple(tuple(8 for _ in block) for block in stage) for stage in widths.inner)
    arch = resnet.resize(arch, replace(widths, inner=inner))
    path = folder / f"{name}.onnx"
    export(resnet.build(arch, seed=0), path, size=32, batch=1)
    return path, io.read_classifier(path).model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("networks")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", NETWORKS)
def test_placement_is_the_one_on_file(name, scheme, folder):
    _, model = network(name, folder)
    placed = place(model, targets.get(scheme).scheme())
    lines = [
        f"activation {tensor} {spec.stored}{' shifted' * (spec.offset < 0)}"
        for tensor, spec in placed.activations.items()
    ]
    lines += [f"weight {tensor} {spec.dtype} axis {spec.axis}" for tensor, spec in placed.weights.items()]
    text, file = "\n".join(lines) + "\n", SNAPSHOTS / f"{name}-{scheme}.txt"
    if os.environ.get("EDGESHIP_UPDATE_SNAPSHOTS"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_point_of_every_scheme_is_calibrated(name, folder):
    _, model = network(name, folder)
    for scheme in SCHEMES:
        assert set(place(model, targets.get(scheme).scheme()).activations) <= set(quantizable_tensors(model))


def placed(graph, scheme, **changes):
    scheme = replace(targets.get(scheme).scheme(), **changes)
    return set(place(ir.from_proto(graph.model()), scheme).activations)


def test_tensorrt_leaves_the_main_branch_to_the_add_and_openvino_wants_it():
    graph = residual()
    adds = [node.input for node in graph.nodes if node.op_type == "Add"]
    (main, _), (deep, projection) = adds
    assert not {main, deep} & placed(graph, "tensorrt")
    assert projection in placed(graph, "tensorrt")
    assert {main, projection} <= placed(graph, "openvino")
    assert deep not in placed(graph, "openvino")


@pytest.mark.parametrize("scheme", ["openvino", "tensorrt"])
def test_float_adds_read_what_was_made_and_the_layers_beside_them_read_it_quantized(scheme):
    graph = residual()
    made = ir.from_proto(graph.model())
    wants = replace(targets.get(scheme).scheme(), float_adds=True)
    forked = add_float_bypass(made, wants)
    points = set(place(forked, wants).activations)
    assert set(quantizable_tensors(forked)) >= points
    read = {str(v.name): v for node in forked.graph if node.op_type == "Add" for v in node.inputs}
    assert not points & set(read)
    shared = [name for name in read if name.endswith("/exact")]
    assert shared
    for name in shared:
        (identity,) = (use.node for use in read[name].uses() if use.node.op_type == "Identity")
        copy = identity.outputs[0]
        assert f"{copy.name}/exact" == name
        assert {use.node.op_type for use in read[name].uses()} == {"Identity", "Add"}
        assert "Add" not in {use.node.op_type for use in copy.uses()}
    for node in forked.graph:  # as many layers read quantized inputs as without
        assert node.op_type != "Conv" or _stands(node.inputs[0], points)


def _stands(value, points):
    node = value.producer()
    if value.name in points:
        return True
    return node.op_type in ("MaxPool", "Identity") and _stands(node.inputs[0], points)


@pytest.mark.parametrize("scheme", ["openvino", "tensorrt"])
def test_of_two_convolutions_that_meet_the_one_with_the_smaller_range_is_quantized(scheme):
    graph = residual()
    deep, projection = [node.input for node in graph.nodes if node.op_type == "Add"][1]
    model, wants = ir.from_proto(graph.model()), targets.get(scheme).scheme()
    for ranges, chosen in (
        ({deep: 1.0, projection: 2.0}, deep),
        ({deep: 2.0, projection: 1.0}, projection),
        ({deep: 2.0, projection: 2.0}, projection),
        ({}, projection),
    ):
        assert {deep, projection} & set(place(model, wants, largest=ranges).activations) == {chosen}


def test_the_tensor_between_a_convolution_and_its_activation_is_never_quantized():
    graph = residual()
    fused = {n.input[0] for n in graph.nodes if n.op_type == "Relu"}
    for scheme in SCHEMES:
        assert not fused & placed(graph, scheme)


def test_a_max_pool_shares_the_scale_of_its_input_or_has_its_own():
    graph = residual()
    pool = next(node for node in graph.nodes if node.op_type == "MaxPool")
    assert pool.input[0] in placed(graph, "openvino")
    assert pool.output[0] not in placed(graph, "openvino")
    assert pool.output[0] in placed(graph, "tensorrt")
    assert pool.input[0] not in placed(graph, "tensorrt")


@pytest.mark.parametrize(
    ("activation", "attributes", "quantized"),
    [
        ("Relu", {"count_include_pad": 1, "pads": [1, 1, 1, 1]}, True),
        ("HardSwish", {"count_include_pad": 1, "pads": [1, 1, 1, 1]}, False),
        ("HardSwish", {"count_include_pad": 1, "auto_pad": "SAME_UPPER"}, False),
        ("HardSwish", {"count_include_pad": 1, "pads": [0, 0, 0, 0]}, True),
        ("HardSwish", {"count_include_pad": 0, "pads": [1, 1, 1, 1]}, True),
    ],
)
def test_signed_averages_that_count_padding_read_float(activation, attributes, quantized):
    g = Graph()
    x = g.unary(activation, g.conv("images", 4))
    channels, height, width = g.shapes[x]
    g.head(g.node("AveragePool", [x], (channels, height, width), kernel_shape=[3, 3], **attributes))
    assert (x in placed(g, "openvino", padded_average=False)) is quantized


def test_only_what_cannot_be_negative_is_unsigned():
    g = Graph()
    for kind in ("Relu", "Sigmoid", "HardSwish"):
        g.head(g.conv(g.unary(kind, g.conv("images", 4)), 4))
        result = place(ir.from_proto(g.model()), targets.get("openvino").scheme()).activations
        expected = "int8" if kind == "HardSwish" else "uint8"
        assert next(spec.dtype for name, spec in result.items() if name.startswith(kind.lower())) == expected
        g = Graph()


def test_shared_weights_are_quantized_once():
    g = Graph()
    first = g.conv("images", 3, bias=False)
    shared = g.nodes[-1].input[1]
    g.head(g.conv(g.unary("Relu", first), 3, shared=shared))
    assert list(place(ir.from_proto(g.model()), targets.get("tensorrt").scheme()).weights) == [
        shared,
        "fc.weight",
    ]


def made(kind, *values):
    return ir.node(kind, list(values), name=f"{kind}-{len(values)}").outputs[0]


def test_a_sum_is_never_negative_only_where_both_terms_are():
    signed = ir.Value(name="images")
    relu = made("Relu", signed)
    for kind in ("Add", "Concat"):
        assert never_negative(made(kind, relu, made("Sigmoid", signed)))
        assert not never_negative(made(kind, relu, signed))
        assert not never_negative(made(kind, signed, relu))


@pytest.mark.parametrize(("offset", "signed", "stored"), [(128, True, 128), (128, False, 0), (0, True, 0)])
def test_a_signed_tensor_that_is_concatenated_is_stored_with_the_offset_of_the_scheme(offset, signed, stored):
    graph = Graph(size=8)
    both = [graph.conv("images", 4), graph.conv("images", 4)]
    if not signed:
        both = [graph.unary("Relu", each) for each in both]
    joined = graph.concat(*both)
    graph.head(graph.conv(graph.unary("Relu", graph.conv(joined, 4)), 4))
    scheme = replace(targets.get("openvino").scheme(), concat_offset=offset)
    placed = place(ir.from_proto(graph.model()), scheme).activations
    assert placed[joined].offset == stored
    assert all(placed[name].offset == stored for name in both if name in placed)


@pytest.mark.parametrize("joins", [True, False])
def test_no_pair_stands_between_a_concat_and_a_batchnorm(joins):
    """As in DenseNet: OpenVINO 2026.4 ends in a segmentation fault when it compiles a fixed batch of it."""
    graph = Graph(size=8)
    x = graph.conv("images", 8) if joins else graph.pool("AveragePool", graph.conv("images", 8))
    x = graph.concat(x, graph.conv("images", 8)) if joins else x
    graph.head(graph.conv(graph.unary("Relu", graph.batch_norm(x)), 4))
    placed = place(ir.from_proto(graph.model()), targets.get("openvino").scheme()).activations
    assert (x in placed) != joins


@pytest.mark.parametrize(
    ("kind", "attributes", "axis"),
    [
        ("Conv", {}, 0),
        ("Gemm", {}, 1),
        ("Gemm", {"transB": 0}, 1),
        ("Gemm", {"transB": 1}, 0),
        ("MatMul", {}, 1),
    ],
)
def test_the_axis_of_the_outputs(kind, attributes, axis):
    node = ir.node(kind, [ir.Value(name="x"), ir.Value(name="w")], attributes)
    assert weight_axis(node) == axis


def test_only_layers_in_float_get_weights_of_their_own():
    graph = Graph(size=8)
    first = graph.conv("images", 4)
    second = graph.conv(first, 4)
    third = graph.conv(second, 4, shared=f"{second}.weight")
    graph.head(graph.conv(third, 4, shared=f"{second}.weight"))
    model = ir.from_proto(graph.model())
    scheme = targets.get("openvino").scheme()
    placed = place(model, scheme, [third])
    weights = {
        str(node.name): str(node.inputs[1].name)
        for node in duplicate_shared_weights(model, placed).graph
        if is_weighted(node)
    }
    others = {name for name in weights if name not in (third, first, "fc")}
    assert len(others) == 2 and {weights[name] for name in others} == {f"{second}.weight"}
    assert weights[third] != f"{second}.weight"
    assert weights[first] == f"{first}.weight"
    assert duplicate_shared_weights(model, place(model, scheme)) is model


@pytest.mark.parametrize("shortcut_first", [True, False])
def test_the_layer_before_a_join_is_that_of_the_deepest_branch(shortcut_first):
    graph = Graph(size=8)
    stem = graph.conv("images", 4)
    deep, shortcut = graph.conv(graph.conv(graph.conv(stem, 4), 4), 4), graph.conv(stem, 4)
    added = graph.add(shortcut, deep) if shortcut_first else graph.add(deep, shortcut)
    graph.head(added)
    model = ir.from_proto(graph.model())
    assert preceding_layer(next(node for node in model.graph if node.op_type == "Add")) == deep


def test_a_layer_in_float_reads_floats_and_the_next_one_integers():
    graph = Graph(size=8)
    first = graph.unary("Relu", graph.conv("images", 4))
    exact = graph.conv(first, 4)
    second = graph.unary("Relu", exact)
    graph.head(graph.unary("Relu", graph.conv(second, 4)))
    model, scheme = ir.from_proto(graph.model()), targets.get("tensorrt").scheme()
    everywhere, placed = place(model, scheme), place(model, scheme, [exact])
    assert {"images", first, second} <= everywhere.activations.keys()
    assert everywhere.activations.keys() - placed.activations.keys() == {first}
    assert everywhere.weights.keys() - placed.weights.keys() == {f"{exact}.weight"}


def block(shortcut_first):
    """A block whose shortcut is a convolution too; the names of the Add's inputs."""
    graph = Graph(size=8)
    x = graph.unary("Relu", graph.conv("images", 4))
    main = graph.conv(graph.unary("Relu", graph.conv(x, 4)), 4)
    shortcut = graph.conv(x, 4, 1)
    graph.head(graph.unary("Relu", graph.add(*((shortcut, main) if shortcut_first else (main, shortcut)))))
    return ir.from_proto(graph.model()), main, shortcut


@pytest.mark.parametrize("shortcut_first", [True, False])
def test_tensorrt_gets_the_shorter_way_into_an_add_quantized(shortcut_first):
    model, main, shortcut = block(shortcut_first)
    placed = place(model, targets.get("tensorrt").scheme()).activations
    assert shortcut in placed and main not in placed


def test_an_add_after_a_layer_in_float_reads_floats():
    model, main, shortcut = block(shortcut_first=False)
    scheme = replace(targets.get("onnxruntime").scheme(), add_inputs="all")
    assert {main, shortcut} <= place(model, scheme).activations.keys()
    assert not {main, shortcut} & place(model, scheme, [main]).activations.keys()
