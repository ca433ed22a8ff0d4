"""Files that are refused by a name and a cure, and files of other tools that are not."""

import numpy as np
import onnx
import onnxruntime
import pytest
from float_graphs import Graph, images, residual
from foreign_forms import (
    SIDE,
    clipped,
    convolutional_head,
    in_type,
    newer_operators,
    unchanged,
    with_auxiliary,
    with_split,
)
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.batch import check_batch_change, make_batch_dynamic
from edgeship.toolkit.graph.load import external_files
from edgeship.toolkit.graph.shapes import infer


def run(path, pixels, output=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(output and [output], {"images": pixels})[0]


def refused(model, folder):
    onnx.save(model, folder / "m.onnx")
    with pytest.raises(ModelError) as caught:
        io.read_classifier(folder / "m.onnx")
    return str(caught.value), caught.value.hint


def normalized(**attributes):
    """A BatchNormalization behind the first convolution."""
    g = Graph(8)
    x = g.batch_norm(g.conv("images", 4))
    g.nodes[-1].attribute.extend(helper.make_attribute(n, v) for n, v in attributes.items())
    return g.head(g.unary("Relu", x))


def in_training_mode():
    model = normalized(training_mode=1).model()
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    node.output.extend(["mean", "variance"])
    return model


def with_statistics():
    """As of opset 9, where further outputs are the training mode."""
    model = normalized().model(opset=9)
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    node.output.extend(["mean", "variance", "saved_mean", "saved_variance"])
    return model


def dropping(training, opset=17):
    g = Graph(8)
    x = g.unary("Relu", g.conv("images", 4))
    inputs = [x, g.constant("ratio", 0.5), g.constant("mode", training, np.bool_)]
    return g.head(g.node("Dropout", inputs, g.shapes[x])).model(opset=opset)


def dropping_in_a_function():
    model = dropping(True)
    node = next(node for node in model.graph.node if node.op_type == "Dropout")
    inner = helper.make_node("Dropout", ["a", "b", "c"], ["d"])
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Drop", ["a", "b", "c"], ["d"], [inner], opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    node.op_type, node.domain = "Drop", "mine"
    return model


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (in_training_mode, "BatchNormalization"),
        (with_statistics, "BatchNormalization"),
        (lambda: dropping(True), "Dropout"),
        (lambda: dropping(True, 13), "Dropout"),
        (dropping_in_a_function, "Dropout"),
    ],
)
def test_training_mode_is_refused_by_that_name(make, kind, tmp_path):
    message, hint = refused(make(), tmp_path)
    assert "training mode" in message and kind in message
    assert "model.eval()" in hint


def test_a_dropout_that_is_off_changes_nothing(tmp_path):
    onnx.save(dropping(False), tmp_path / "m.onnx")
    pixels = images(4)
    io.save(io.read_classifier(tmp_path / "m.onnx").model, tmp_path / "read.onnx")
    np.testing.assert_allclose(
        run(tmp_path / "read.onnx", pixels), run(tmp_path / "m.onnx", pixels), rtol=1e-5, atol=1e-6
    )


# several outputs


def test_one_of_several_outputs_is_named(tmp_path):
    for first in (False, True):
        onnx.save(with_auxiliary(first), tmp_path / "m.onnx")
        with pytest.raises(ModelError, match=r"3 outputs: .*logits.*; one is expected") as caught:
            io.read_classifier(tmp_path / "m.onnx")
        assert "--output" in caught.value.hint and "load.output" in caught.value.hint
        with pytest.raises(ModelError, match="no output 'logit'") as caught:
            io.read_classifier(tmp_path / "m.onnx", "logit")
        assert "'logits'" in caught.value.hint
        for name, weights in (("logits", 7), ("aux", 2)):
            graph = io.read_classifier(tmp_path / "m.onnx", name)
            layers = [node for node in graph.model.graph if node.op_type in {"Conv", "Gemm", "MatMul"}]
            assert (graph.output, len(layers)) == (name, weights)
            io.save(graph.model, tmp_path / "one.onnx")
            pixels = images(3, SIDE)
            expected = run(tmp_path / "m.onnx", pixels, name)
            np.testing.assert_allclose(run(tmp_path / "one.onnx", pixels), expected, rtol=1e-4, atol=1e-5)


# files of ONNX Runtime's optimizer


def optimized(model, level, folder):
    onnx.save(model, folder / "plain.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(folder / "plain.onnx"), options, providers=["CPUExecutionProvider"])
    return folder / "optimized.onnx"


def activated(kind):
    model = residual().model()
    for number, node in enumerate([n for n in model.graph.node if n.op_type == "Relu"]):
        if kind == "Swish":
            place = list(model.graph.node).index(node)
            gate = helper.make_node("Sigmoid", [node.input[0]], [f"gate{number}"])
            model.graph.node.insert(place, gate)
            node.op_type = "Mul"
            node.input.append(f"gate{number}")
        else:
            node.op_type = kind
    return model


OPTIMIZED = {
    "ReLU": (unchanged, "FusedConv"),
    "Clip": (clipped((), ()), "FusedConv"),
    "LeakyReLU": (lambda: activated("LeakyRelu"), "FusedConv"),
    "Swish": (lambda: activated("Swish"), "QuickGelu"),
}


@pytest.mark.parametrize("kind", OPTIMIZED)
def test_fused_operators_are_unfused(kind, tmp_path):
    make, fused = OPTIMIZED[kind]
    path = optimized(make(), onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, tmp_path)
    assert fused in {node.op_type for node in onnx.load(path).graph.node}
    graph = io.read_classifier(path)
    assert any(fused in note for note in graph.notes)
    assert {node.domain for node in graph.model.graph} == {""}
    assert {"conv0", "fc"} <= {node.name for node in graph.model.graph} or kind != "Swish"
    io.save(graph.model, tmp_path / "read.onnx")
    pixels = images(4, SIDE)
    expected = run(tmp_path / "plain.onnx", pixels)
    np.testing.assert_allclose(
        run(tmp_path / "read.onnx", pixels), expected, atol=1e-5 * np.abs(expected).max()
    )


def contrib(kind, attributes, weights):
    """A classifier that ends in one operator of ONNX Runtime's own."""
    g = Graph(8)
    pooled = g.node("GlobalAveragePool", [g.unary("Relu", g.conv("images", 4))], (4, 1, 1))
    flat = g.node("Flatten", [pooled], (4,), axis=1)
    inputs = [flat, *(g.constant(f"w{number}", array) for number, array in enumerate(weights))]
    g.nodes.append(helper.make_node(kind, inputs, ["logits"], domain="com.microsoft", **attributes))
    g.shapes["logits"] = (5,)
    images_, logits = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *g.shapes[name]])
        for name in ("images", "logits")
    )
    graph = helper.make_graph(g.nodes, "net", [images_], [logits], g.initializers)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


WEIGHT = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "attributes", "weights"),
    [
        ("FusedGemm", {"activation": "LeakyRelu", "activation_alpha": 0.2}, [WEIGHT, np.ones(5)]),
        ("FusedGemm", {"activation": "Relu", "transB": 1}, [WEIGHT.T, np.ones(5)]),
        ("FusedMatMul", {"alpha": 0.25}, [WEIGHT]),
        ("FusedMatMul", {"transB": 1}, [WEIGHT.T]),
    ],
)
def test_other_fused_operators(kind, attributes, weights, tmp_path):
    onnx.save(contrib(kind, attributes, weights), tmp_path / "m.onnx")
    graph = io.read_classifier(tmp_path / "m.onnx")
    assert {node.domain for node in graph.model.graph} == {""}
    io.save(graph.model, tmp_path / "read.onnx")
    pixels = images(4)
    expected = run(tmp_path / "m.onnx", pixels)
    np.testing.assert_allclose(
        run(tmp_path / "read.onnx", pixels), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_operators_without_a_standard_form_are_refused_by_name(tmp_path):
    message, hint = refused(contrib("MurmurHash3", {}, []), tmp_path)
    assert "MurmurHash3 of com.microsoft" in message and "ORT_ENABLE_BASIC" in hint
    model = residual().model()
    model.graph.node[0].domain = "com.microsoft.nchwc"
    model.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    message, hint = refused(model, tmp_path)
    assert "Conv of com.microsoft.nchwc" in message and "ORT_ENABLE_BASIC" in hint
    model.graph.node[0].domain = model.opset_import[1].domain = "mine"
    message, hint = refused(model, tmp_path)
    assert "Conv of mine" in message and "standard" in hint


# opsets


def evaluated(model, pixels):
    return ReferenceEvaluator(model).run(None, {"images": pixels})[0]


@pytest.mark.parametrize("kind", ["Gelu", "Swish", "Mish", "GroupNormalization"])
def test_newer_operators_are_written_in_older_ones(kind, tmp_path):
    model = newer_operators([kind])()
    onnx.save(model, tmp_path / "m.onnx")
    graph = io.read_classifier(tmp_path / "m.onnx")
    assert graph.model.graph.opset_imports == {"": 17}
    assert kind not in {node.op_type for node in graph.model.graph}
    io.save(graph.model, tmp_path / "read.onnx")
    pixels = images(2, SIDE)
    expected = evaluated(model, pixels)
    np.testing.assert_allclose(
        run(tmp_path / "read.onnx", pixels), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("opset", [18, 21, 24])
def test_parts_and_axes_of_opset_18_are_written_out(opset, tmp_path):
    model = with_split(opset)
    onnx.save(model, tmp_path / "m.onnx")
    graph = io.read_classifier(tmp_path / "m.onnx")
    assert graph.notes == (f"converted from opset {opset} to 17",)
    io.save(graph.model, tmp_path / "read.onnx")
    onnx.checker.check_model(tmp_path / "read.onnx", full_check=True)
    pixels = images(2, SIDE)
    expected = evaluated(model, pixels)
    np.testing.assert_allclose(
        run(tmp_path / "read.onnx", pixels), expected, atol=1e-5 * np.abs(expected).max()
    )


def test_an_opset_whose_operators_have_no_older_form_is_kept(tmp_path):
    model = residual().model()
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    name = "axes"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), name))
    pool.CopyFrom(helper.make_node("ReduceMax", [pool.input[0]], pool.output, noop_with_empty_axes=1))
    model.opset_import[0].version, model.ir_version = 20, 9
    onnx.save(model, tmp_path / "m.onnx")
    graph = io.read(tmp_path / "m.onnx", quantizable=True)
    assert graph.model.graph.opset_imports[""] == 20
    assert graph.notes == (
        "opset 20 was kept: opset 17 has no form of ReduceMax (node 'ReduceMax/maxpool2')",
    )


# weights in other files


def external(folder, place):
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        residual().model(), folder / "m.onnx", save_as_external_data=True, location=place, size_threshold=0
    )
    return folder / "m.onnx"


@pytest.mark.parametrize("place", ["weights.bin", "m.onnx.data", "deep/below/w"])
def test_weights_in_a_file_of_any_name(place, tmp_path):
    path = external(tmp_path, place)
    assert external_files(path) == [tmp_path / place]
    graph = io.read_classifier(path)
    io.save(graph.model, tmp_path / "one.onnx")
    onnx.save(residual().model(), tmp_path / "plain.onnx")
    pixels = images(2, SIDE)
    np.testing.assert_array_equal(run(tmp_path / "one.onnx", pixels), run(tmp_path / "plain.onnx", pixels))


def test_weights_that_are_absent_cut_off_or_outside(tmp_path):
    path = external(tmp_path, "deep/weights.bin")
    content = (tmp_path / "deep/weights.bin").read_bytes()
    (tmp_path / "deep/weights.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        io.read_classifier(path)
    (tmp_path / "deep/weights.bin").unlink()
    with pytest.raises(ModelError, match=r"deep/weights\.bin, which is not there") as caught:
        io.read_classifier(path)
    assert "copy it to" in caught.value.hint
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside its folder"):
        io.read_classifier(path)
    assert external_files(path) == []


# contradictions and sizes


def gemm_of_other_width(model):
    next(node for node in model.graph.node if node.op_type == "Flatten").attribute[0].i = 0


def no_groups(model):
    next(a for a in model.graph.node[0].attribute if a.name == "group").i = 0


def bias_of_other_size(model):
    item = next(item for item in model.graph.initializer if item.name == "conv0.bias")
    item.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), item.name))


def cycle(model):
    model.graph.node[0].input[0] = "relu9"


def twice(model):
    model.graph.node[2].output[0] = model.graph.node[0].output[0]


def several_bounds(model):
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "low"))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Clip"
    node.input.append("low")


def huge(model):
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = 10**6


def huge_padding(model):
    next(a for a in model.graph.node[0].attribute if a.name == "pads").ints[:] = [10**5] * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gemm_of_other_width, "rows of logits"),
        (no_groups, "0 groups"),
        (bias_of_other_size, "shape [3] for 8 channels"),
        (cycle, "not a valid ONNX graph"),
        (twice, "redeclared"),
        (several_bounds, "shape [2], not a scalar"),
        (huge, "values, more than"),
        (huge_padding, "values, more than"),
    ],
)
def test_a_graph_that_contradicts_itself_is_refused_in_one_line(change, words, tmp_path, capfd):
    model = residual().model()
    change(model)
    message, hint = refused(model, tmp_path)
    assert words in message and hint and "\n" not in message
    assert "Traceback" not in capfd.readouterr().err


# the batch


def reshaped(batch):
    """Channel shuffle and view, with the batch written into both shapes."""
    g = Graph(8, batch=batch)
    x = g.unary("Relu", g.conv("images", 4))
    wide = g.node("Reshape", [x, g.constant("wide", [batch, 2, 2, 8, 8], np.int64)], (2, 2, 8, 8))
    turned = g.node("Transpose", [wide], (2, 2, 8, 8), perm=[0, 2, 1, 3, 4])
    x = g.node("Reshape", [turned, g.constant("narrow", [batch, 4, 8, 8], np.int64)], (4, 8, 8))
    x = g.node("GlobalAveragePool", [x], (4, 1, 1))
    x = g.node("Reshape", [x, g.constant("flat", [batch, 4], np.int64)], (4,))
    weight = g.constant("fc.weight", g.random.normal(0, 0.5, (4, 5)))
    g.nodes.append(helper.make_node("MatMul", [x, weight], ["logits"], name="fc"))
    g.shapes["logits"] = (5,)
    return g


@pytest.mark.parametrize(("before", "after"), [(1, None), (1, 4), (4, None), (4, 1)])
def test_a_batch_that_is_written_into_shapes_can_be_another(before, after, tmp_path):
    from edgeship.toolkit.pipeline.load_and_export import _reshape

    path = reshaped(before).save(tmp_path / "m.onnx")
    assert _reshape(path, tmp_path / "other.onnx", after, 8, {}) < 1e-5
    assert io.read(tmp_path / "other.onnx").batch == after
    for count in (after,) if after else (1, 3):
        assert run(tmp_path / "other.onnx", images(count)).shape == (count, 5)


def test_a_batch_that_cannot_be_another_is_refused(tmp_path):
    g = Graph(8, batch=1)
    x = g.node("GlobalAveragePool", [g.conv("images", 4)], (4, 1, 1))
    x = g.node("Reshape", [x, g.constant("flat", [-1], np.int64)], ())
    x = g.node("Reshape", [x, g.constant("row", [1, 4], np.int64)], (4,))
    weight = g.constant("fc.weight", g.random.normal(0, 0.5, (4, 5)))
    g.nodes.append(helper.make_node("MatMul", [x, weight], ["logits"], name="fc"))
    g.shapes["logits"] = (5,)
    model = io.read(g.save(tmp_path / "m.onnx")).model
    make_batch_dynamic(model, 1)
    model.graph.inputs[0].shape = type(model.graph.inputs[0].shape)(["batch", 3, 8, 8])
    infer(model)
    io.save(model, tmp_path / "open.onnx")
    with pytest.raises(ModelError, match="batch of 1 and") as caught:
        check_batch_change(tmp_path / "m.onnx", tmp_path / "open.onnx", images(2), (1, 2))
    assert "export.batch=1" in caught.value.hint


def test_a_file_says_its_own_type_and_shape(tmp_path):
    import json

    from click.testing import CliRunner

    from edgeship.toolkit.cli.inspect import command

    model = in_type(TensorProto.FLOAT16, ends=True)()
    onnx.save(model, tmp_path / "half.onnx")
    onnx.save(convolutional_head((0, 2, 3, 1))(), tmp_path / "last.onnx")
    outputs = []
    for name in ("half", "last"):
        result = CliRunner().invoke(command, ["graph", str(tmp_path / f"{name}.onnx"), "--json"])
        assert result.exit_code == 0, result.output
        outputs.append(json.loads(result.output))
    assert [each["input"]["dtype"] for each in outputs] == ["float16", "float32"]
    assert [each["output"]["shape"] for each in outputs] == [[None, 5], [None, 1, 1, 5]]
    assert outputs[0]["parameters"] == outputs[1]["parameters"] > 0


def test_a_pool_of_too_few_dimensions_is_refused_by_name(tmp_path):
    """Shape inference accepts it, and no runtime runs it."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"], name="flatten"),
        helper.make_node("GlobalAveragePool", ["flat"], ["pooled"], name="pool"),
        helper.make_node("MatMul", ["pooled", "w"], ["logits"], name="fc"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("images", [1, 3, 4, 4]), ("logits", [1, 5]))
    ]
    weight = numpy_helper.from_array(np.ones((48, 5), np.float32), "w")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="GlobalAveragePool 'pool': an input of 2 dimensions"):
        io.read_classifier(tmp_path / "m.onnx")
