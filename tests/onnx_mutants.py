"""Mutants of small ONNX classifiers, by bytes and by structure; as a script: what becomes of each.

    python tests/onnx_mutants.py FIRST LAST

prints one JSON line a mutant: {seed, outcome, seconds, memory_mib}. `outcome` is "valid" or "refused: CLASS";
anything else is a fault.
"""

from __future__ import annotations

import contextlib
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from float_graphs import Graph, residual
from foreign_forms import FORMS
from onnx import TensorProto, helper, numpy_helper

SEEDS = (
    *(
        "batch -1",
        "Clip: [1] and [1]",
        "weights: ReduceMean",
        "weights: BatchNormalization",
        "weights: Reshape",
    ),
    *("Softmax", "logits (N, 1, 1, C)", "FP16 inside", "FP16 weights", "opset 18", "opset 22"),
)
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 255, 4096, 10**6, 2**31 - 1, 2**31, 2**40, 2**62, -(2**31), -(2**63))
SIZES = (0, 1, -1, 2, 3, 4, 5, 8, 15, 16, 17, 224, 10**5, 2**31, 2**40, -5)
NAMES = ("", "images", "logits", "/", "a" * 5000, "\u00e9\u4e2d", "conv0", "relu1", "..", "x\x00y", "%s%n")
OPERATORS = (
    *(
        "Relu",
        "Add",
        "Conv",
        "Gemm",
        "MatMul",
        "Reshape",
        "Transpose",
        "Flatten",
        "Concat",
        "Softmax",
        "Clip",
    ),
    *(
        "BatchNormalization",
        "Dropout",
        "MaxPool",
        "GlobalAveragePool",
        "ReduceMean",
        "Shape",
        "Identity",
        "Cast",
    ),
    *(
        "If",
        "Loop",
        "Constant",
        "ConstantOfShape",
        "Expand",
        "Tile",
        "Range",
        "Pad",
        "Split",
        "Slice",
        "Gather",
    ),
    *(
        "QuantizeLinear",
        "DequantizeLinear",
        "Nonsense",
        "Sum",
        "Squeeze",
        "Unsqueeze",
        "Resize",
        "Where",
        "Not",
    ),
    *("NonZero", "TopK", "LSTM", "Einsum", "RandomNormal", "FusedConv", "ArgMax", "OneHot", "ScatterND"),
)
IMAGES = 4
MOST_SIDE = 64  # larger inputs are read only


def bases() -> list[onnx.ModelProto]:
    """The classifiers that are mutated."""
    g = Graph(8)
    shape = g.constant("flat", [0, -1], np.int64)
    x = g.pool("AveragePool", g.unary("HardSigmoid", g.batch_norm(g.conv("images", 4))))
    x = g.node("Reshape", [x, shape], (64,))
    g.nodes.append(
        helper.make_node("MatMul", [x, g.constant("fc", g.random.normal(size=(64, 5)))], ["logits"])
    )
    g.shapes["logits"] = (5,)
    old = residual().model(opset=11)
    old.ir_version = 4
    return [residual().model(), g.model(), old, *(FORMS[name][0]() for name in SEEDS)]


def mutant(seed: int, models: list[onnx.ModelProto]) -> bytes:
    """One mutant: one to three changes of structure, or of bytes."""
    rng = random.Random(seed)
    model = onnx.ModelProto()
    model.CopyFrom(rng.choice(models))
    if rng.random() < 0.25:
        return _bytes(model.SerializeToString(), rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            rng.choice(CHANGES)(model, rng)
        except (IndexError, ValueError, TypeError, OverflowError):
            continue  # nothing left to change, or a number that protobuf cannot hold
    content = model.SerializeToString()
    return _bytes(content, rng) if rng.random() < 0.05 else content


def _bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        place, kind = rng.randrange(len(data) or 1), rng.randrange(6)
        if kind == 0 and data:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + rng.randint(1, 64)]
        elif kind == 3:
            data[place:place] = rng.randbytes(rng.randint(1, 64))
        elif kind == 4 and data:
            data[place] = rng.choice((0, 0x7F, 0x80, 0xFF))
        else:
            data[place:place] = data[place : place + rng.randint(1, 512)]
    return bytes(data)


def _tensors(model):
    return [
        *(item.name for item in (*model.graph.input, *model.graph.initializer)),
        *(name for node in model.graph.node for name in node.output),
    ]


def _drop_node(model, rng):
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _repeat_node(model, rng):
    model.graph.node.append(rng.choice(model.graph.node))


def _move_node(model, rng):
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rewire(model, rng):
    node = rng.choice(model.graph.node)
    node.input[rng.randrange(len(node.input))] = rng.choice([*_tensors(model), *NAMES])


def _less_inputs(model, rng):
    node = rng.choice(model.graph.node)
    del node.input[rng.randrange(len(node.input))]


def _more_inputs(model, rng):
    rng.choice(model.graph.node).input.append(rng.choice(_tensors(model)))


def _outputs(model, rng):
    node = rng.choice(model.graph.node)
    if rng.random() < 0.5:
        node.output.append(rng.choice([*_tensors(model), "extra"]))
    else:
        node.output[rng.randrange(len(node.output))] = rng.choice([*_tensors(model), *NAMES])


def _operator(model, rng):
    node = rng.choice(model.graph.node)
    node.op_type = rng.choice(OPERATORS)
    if rng.random() < 0.3:
        del node.attribute[:]


def _domain(model, rng):
    rng.choice(model.graph.node).domain = rng.choice(
        ("com.microsoft", "ai.onnx", "ai.onnx.ml", "mine", "x" * 300)
    )


def _attribute(model, rng):
    node = rng.choice([node for node in model.graph.node if node.attribute])
    attribute = rng.choice(node.attribute)
    kind = rng.randrange(6)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif kind == 2:
        del attribute.ints[rng.randrange(len(attribute.ints) + 1) :]
        attribute.ints.extend(rng.choice(NUMBERS) for _ in range(rng.randint(0, 5)))
    elif kind == 3:
        attribute.type = rng.randint(0, 14)
    elif kind == 4:
        attribute.i, attribute.f = rng.choice(NUMBERS), rng.choice((0.0, float("nan"), -1e30, 1e30))
    else:
        attribute.name = rng.choice((*NAMES, "axis", "group", "pads", "strides"))


def _new_attribute(model, rng):
    name = rng.choice(
        ("axis", "axes", "group", "pads", "to", "training_mode", "keepdims", "value", "auto_pad")
    )
    value = rng.choice((*NUMBERS, [1, 2], 0.5, "SAME_UPPER", "nonsense"))
    rng.choice(model.graph.node).attribute.append(helper.make_attribute(name, value))


def _initializer(model, rng):
    items = model.graph.initializer
    item = rng.choice(items)
    kind = rng.randrange(9)
    if kind == 0:
        items.remove(item)
    elif kind == 1:
        item.dims[rng.randrange(len(item.dims))] = rng.choice(SIZES)
    elif kind == 2:
        item.dims.append(rng.choice(SIZES))
    elif kind == 3:
        item.data_type = rng.randint(0, 26)
    elif kind == 4:
        item.raw_data = item.raw_data[: rng.randrange(len(item.raw_data) + 1)]
    elif kind == 5:
        item.name = rng.choice([*_tensors(model), *NAMES])
    elif kind == 6:
        array = numpy_helper.to_array(item).astype(np.float32)
        array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, 3e38, 1e-45))
        item.CopyFrom(numpy_helper.from_array(array, item.name))
    elif kind == 7:
        array = numpy_helper.to_array(item).reshape(-1)[: rng.randint(0, 3)]
        item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), item.name))
    else:
        item.data_location = TensorProto.EXTERNAL
        item.external_data.add(key="location", value=rng.choice(("../w", "/etc/passwd", "absent.bin", "")))


def _new_initializer(model, rng):
    shape = [rng.choice((0, 1, 2, 3, 8)) for _ in range(rng.randint(0, 4))]
    array = np.zeros(shape, rng.choice((np.float32, np.int64, np.float16, np.bool_, np.uint8)))
    model.graph.initializer.append(numpy_helper.from_array(array, rng.choice([*_tensors(model), *NAMES])))


def _dims(model, rng):
    ends = (*model.graph.input, *model.graph.output)
    dims = rng.choice(ends).type.tensor_type.shape.dim
    kind = rng.randrange(5)
    if kind == 0:
        del dims[rng.randrange(len(dims))]
    elif kind == 1:
        dims.add().dim_value = rng.choice(SIZES)
    elif kind == 2:
        rng.choice(dims).dim_param = rng.choice(("N", "batch", "", "unk__0", "?"))
    else:
        rng.choice(dims).dim_value = rng.choice(SIZES)


def _types(model, rng):
    ends = (*model.graph.input, *model.graph.output)
    if rng.random() < 0.2:
        rng.choice(ends).ClearField("type")
    else:
        rng.choice(ends).type.tensor_type.elem_type = rng.randint(0, 26)


def _ends(model, rng):
    kind = rng.randrange(5)
    if kind == 0:
        model.graph.input.append(rng.choice(model.graph.input))
    elif kind == 1:
        del model.graph.output[:]
    elif kind == 2:
        model.graph.output.append(helper.make_tensor_value_info(rng.choice(_tensors(model)), 1, None))
    elif kind == 3:
        rng.choice((*model.graph.input, *model.graph.output)).name = rng.choice([*_tensors(model), *NAMES])
    else:
        del model.graph.input[:]


def _versions(model, rng):
    kind = rng.randrange(5)
    if kind == 0:
        model.opset_import[0].version = rng.randint(-1, 30)
    elif kind == 1:
        del model.opset_import[:]
    elif kind == 2:
        model.opset_import.append(
            helper.make_opsetid(rng.choice(("", "ai.onnx", "mine")), rng.randint(0, 30))
        )
    elif kind == 3:
        model.ir_version = rng.randint(-1, 30)
    else:
        model.opset_import[0].domain = rng.choice(("mine", "ai.onnx"))


def _declare(model, rng):
    shape = rng.choice((None, [1], [-1, 3], [2**40, 2**40], ["a", "b", "c"]))
    name, kind = rng.choice(_tensors(model)), rng.randint(0, 26)
    model.graph.value_info.append(helper.make_tensor_value_info(name, kind, shape))


def _name(model, rng):
    rng.choice(model.graph.node).name = rng.choice([*NAMES, *(node.name for node in model.graph.node)])


def _rename_tensor(model, rng):
    old, new = rng.choice(_tensors(model)), rng.choice(NAMES)
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _branch(model, rng):
    node = rng.choice(model.graph.node)
    inner = onnx.GraphProto()
    inner.CopyFrom(model.graph)
    node.attribute.append(helper.make_attribute(rng.choice(("then_branch", "body", "g")), inner))


def _function(model, rng):
    node = rng.choice(model.graph.node)
    domain = rng.choice(("mine", ""))
    inner = helper.make_node(
        rng.choice((node.op_type, "Relu")), ["a"], ["b"], domain=rng.choice((domain, ""))
    )
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function(domain, node.op_type, ["a"], ["b"], [inner], opsets))
    node.domain = domain


def _metadata(model, rng):
    item = model.metadata_props.add()
    item.key = rng.choice(("preprocess", "edgeship.notes"))
    item.value = rng.choice(("{", "[1, 2]", '{"mean": [1], "std": []}', '{"a": 1}', "\x00", "9" * 5000))


CHANGES = (
    *(_drop_node, _repeat_node, _move_node, _rewire, _rewire, _less_inputs, _more_inputs, _outputs),
    *(_operator, _operator, _domain, _attribute, _attribute, _attribute, _new_attribute),
    *(_initializer, _initializer, _initializer, _new_initializer, _dims, _dims, _types, _ends, _versions),
    *(_declare, _name, _rename_tensor, _branch, _function, _metadata),
)


def outcome(content: bytes, folder: Path) -> str:
    """Return the outcome of a file in the product: "valid", or "refused: CLASS"; anything else is raised."""
    from edgeship import targets
    from edgeship.quantization import QuantizeOptions, quantize
    from edgeship.quantization.calibrate import collect
    from edgeship.targets.onnxruntime import simulate
    from edgeship.targets.tensorrt import repair
    from edgeship.toolkit.core.errors import ToolkitError
    from edgeship.toolkit.graph import io
    from edgeship.toolkit.graph.cost import cost

    path, out = folder / "m.onnx", folder / "q.onnx"
    path.write_bytes(content)
    for look in (cost, lambda path: repair.fix(path, "8.5", folder / "fixed.onnx")):
        with contextlib.suppress(ToolkitError):
            look(path)
    try:
        graph = io.read_classifier(path)
        sides = (graph.height or 8, graph.width or 8)
        if max(*sides, graph.batch or 1, graph.channels) > MOST_SIDE:
            return "valid"
        shape = (IMAGES, graph.channels, *sides)
        images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        scheme = targets.get("openvino").scheme()
        quantize(graph, collect(graph, [images]), scheme, QuantizeOptions(effort="fast"), out)
    except ToolkitError as error:
        assert str(error).strip() and error.hint.strip(), "an error without a message or a hint"
        assert "\n" not in str(error), f"an error of several lines: {error}"
        return f"refused: {type(error).__name__}"
    onnx.checker.check_model(str(out), full_check=True)
    io.save(graph.model, path)
    if not _runs(path, images):  # nor does the float network, with images of this size
        return "refused: TargetError"
    with simulate(out) as session:
        assert len(session.infer(images)) == len(images)
    return "valid"


def _runs(path: Path, images: np.ndarray) -> bool:
    from edgeship.targets.onnxruntime import simulate
    from edgeship.toolkit.core.errors import ToolkitError

    try:
        with simulate(path) as session:
            session.infer(images)
    except ToolkitError:
        return False
    return True


def main(first: int, last: int) -> None:
    """Print the outcome of every mutant."""
    models = bases()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, last):
            started = time.monotonic()
            try:
                result = outcome(mutant(seed, models), Path(folder))
            except Exception as error:
                result = f"fault: {type(error).__name__}: {str(error)[:300]}"
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            seconds = round(time.monotonic() - started, 2)
            line = {"seed": seed, "outcome": result, "seconds": seconds, "memory_mib": memory}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
