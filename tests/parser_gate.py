"""The linter against NVIDIA's parsers: python tests/parser_gate.py FOLDER [COUNT]; 1 on a difference.

FOLDER has one folder per TensorRT-RTX version, as `make test-tensorrt` installs them. Mutated Q/DQ graphs
(placement, types, zero points, axes, opsets) are linted and parsed. A graph that the linter passes has to be
parsed with the types and axes of the ONNX file; other differences have to be in `STRICTER`, with the reason.
"""

from __future__ import annotations

import collections
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from qdq_graphs import FLOAT, OPENVINO, TENSORRT, Placement, residual_net

from edgeship.targets.tensorrt.lint import lint
from edgeship.toolkit.core.errors import ModelError

VERSION = "11.4"  # whose rules the parsers of TensorRT-RTX follow
WORKER = Path(__file__).with_name("parser_worker.py")
PAIR = ("QuantizeLinear", "DequantizeLinear")
BASES = (
    *(
        TENSORRT,
        TENSORRT,
        TENSORRT,
        OPENVINO,
        FLOAT,
        Placement(add_inputs="none"),
        Placement(add_inputs="both"),
    ),
    *(Placement(pool=False), Placement(zero_point=None), Placement(axis=None)),
)
STRICTER = {  # rule -> why the linter refuses what a parser accepts
    "opset-too-new": "newer than the documented opsets; the parser tries, without a promise",
    "opset-too-old": "before opset 13 ONNX has no axis, so that the file's meaning is another",
    "per-channel-activation": "only the builder refuses it",
    "quantize-without-dequantize": "only the builder refuses it",
    "weight-axis": "accepted if the sizes happen to agree; INT8 kernels have scales for output channels only",
    "invalid": "no valid ONNX: a runtime that reads it is lenient",
    "infinite scale": "the parser only checks that scales are above zero",
    "scale-shape": "TensorRT-RTX up to 1.6 reads scales of rank 2 as those of blocks, 1.7 refuses them",
    "scale-not-constant": "a scale computed from constants, which current parsers fold",
}


def _quantizers(model):
    return [node for node in model.graph.node if node.op_type in PAIR]


def _initializer(model, name):
    return next((item for item in model.graph.initializer if item.name == name), None)


def _parameter(model, rng, place, change):
    """Change an array of one Q or DQ, or of both of the pair."""
    node = rng.choice(_quantizers(model))
    if len(node.input) <= place or _initializer(model, node.input[place]) is None:
        return
    item = _initializer(model, node.input[place])
    array = np.array(change(numpy_helper.to_array(item)))
    if rng.random() < 0.5:
        item.CopyFrom(numpy_helper.from_array(array, item.name))
    else:
        name = f"{item.name}/{len(model.graph.initializer)}"
        model.graph.initializer.append(numpy_helper.from_array(array, name))
        node.input[place] = name


def _scale(model, rng):
    value = rng.choice((0.0, -0.01, np.nan, np.inf, 1e-30, 1e-9, 1e9, 0.125))

    def change(array):
        array = np.array(array)
        array.flat[rng.randrange(array.size)] = value
        return array

    _parameter(model, rng, 1, change)


def _scale_type(model, rng):
    kind = rng.choice((np.float16, np.float64, np.float16))
    _parameter(model, rng, 1, lambda array: array.astype(kind))


def _scale_shape(model, rng):
    shapes = (
        lambda array: array.reshape(-1)[:1],
        lambda array: np.repeat(array.reshape(-1)[:1], 3),
        lambda array: np.repeat(array.reshape(-1)[:1], 32),
        lambda array: array.reshape(-1, 1),
        lambda array: array.reshape(-1)[: max(array.size // 2, 1)],
        lambda array: array.reshape(-1)[0],
    )
    change = rng.choice(shapes)
    for place in (1, 2) if rng.random() < 0.7 else (1,):
        state = rng.getstate()
        _parameter(model, rng, place, change)
        rng.setstate(state)


def _zero_point(model, rng):
    changes = (
        lambda array: np.full_like(array, rng.choice((1, 3, 64, 127))),
        lambda array: np.zeros_like(array, np.uint8),
        lambda array: np.full(array.shape, 128, np.uint8),
        lambda array: np.zeros_like(array, np.int8),
        lambda array: np.zeros_like(array, np.int32),
        lambda array: np.zeros((), np.int8),
        lambda array: np.zeros(7, np.int8),
    )
    _parameter(model, rng, 2, rng.choice(changes))


def _no_zero_point(model, rng):
    for node in _quantizers(model) if rng.random() < 0.5 else [rng.choice(_quantizers(model))]:
        del node.input[2:]


def _axis(model, rng):
    node = rng.choice(_quantizers(model))
    attributes = [item for item in node.attribute if item.name != "axis"]
    del node.attribute[:]
    node.attribute.extend(attributes)
    if rng.random() < 0.7:
        node.attribute.append(helper.make_attribute("axis", rng.choice((-4, -1, 0, 1, 2, 3))))


def _bypass(model, rng):
    """Remove a Q, a DQ, or a pair."""
    node = rng.choice(_quantizers(model))
    source, result = node.input[0], node.output[0]
    model.graph.node.remove(node)
    for other in model.graph.node:
        other.input[:] = [source if name == result else name for name in other.input]


def _insert(model, rng):
    """Insert a pair before a consumer, or a Q or a DQ alone."""
    node = rng.choice(list(model.graph.node))
    place, number = list(model.graph.node).index(node), len(model.graph.node)
    slot = rng.randrange(min(len(node.input), 2))
    parameters = [f"scale{number}", f"zero{number}"]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.05), parameters[0]))
    kind = rng.choice((np.int8, np.int8, np.uint8))
    model.graph.initializer.append(numpy_helper.from_array(kind(0), parameters[1]))
    first, last = f"q{number}", f"dq{number}"
    quantize = helper.make_node(PAIR[0], [node.input[slot], *parameters], [first], name=first)
    dequantize = helper.make_node(PAIR[1], [first, *parameters], [last], name=last)
    added = rng.choice(([quantize, dequantize], [quantize, dequantize], [quantize]))
    for each in reversed(added):
        model.graph.node.insert(place, each)
    node.input[slot] = added[-1].output[0]


def _stored(model, rng):
    """Store weights as integers behind a DQ alone."""
    quantizers = [n for n in _quantizers(model) if n.op_type == PAIR[0] and _initializer(model, n.input[0])]
    if not quantizers:
        return
    node = rng.choice(quantizers)
    weight = numpy_helper.to_array(_initializer(model, node.input[0]))
    kind = rng.choice((np.int8, np.int8, np.uint8, np.int32))
    integers = (
        np.random.default_rng(0).integers(-100 if kind != np.uint8 else 0, 100, weight.shape).astype(kind)
    )
    name = f"{node.input[0]}/stored"
    model.graph.initializer.append(numpy_helper.from_array(integers, name))
    for other in model.graph.node:
        other.input[:] = [name if each == node.output[0] else each for each in other.input]
    model.graph.node.remove(node)


def _bias(model, rng):
    node = rng.choice(
        [each for each in model.graph.node if len(each.input) == 3 and each.op_type not in PAIR]
    )
    item = _initializer(model, node.input[2])
    if item is None:
        return
    array = numpy_helper.to_array(item)
    if rng.random() < 0.5:
        item.CopyFrom(numpy_helper.from_array(array.astype(np.float16), item.name))
        return
    number = len(model.graph.node)
    for name, value in (("bias", array.astype(np.int32)), ("by", np.float32(0.01))):
        model.graph.initializer.append(numpy_helper.from_array(value, f"{name}{number}"))
    pair = helper.make_node(PAIR[1], [f"bias{number}", f"by{number}"], [f"b{number}"], name=f"b{number}")
    model.graph.node.insert(0, pair)
    node.input[2] = pair.output[0]


def _opset(model, rng):
    model.opset_import[0].version = rng.choice((10, 11, 12, 13, 15, 18, 19, 20, 21, 22, 23, 24, 25))


CHANGES = (_scale, _scale_type, _scale_shape, _zero_point, _zero_point, _no_zero_point, _axis, _axis, _bypass)
CHANGES += (_insert, _stored, _bias, _opset)


def mutant(seed: int) -> onnx.ModelProto:
    """Return a small network with one to three changes."""
    rng = random.Random(seed)
    model = residual_net(rng.choice(BASES), size=8, opset=rng.choice((13, 17)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(CHANGES if _quantizers(model) else (_insert, _bias, _opset))
        change(model, rng)
    return model


def linted(path: Path) -> list[str]:
    """Return the rules that a file breaks; ["invalid"] for one that is no valid ONNX."""
    try:
        errors = [item for item in lint(path, VERSION) if item.severity == "error"]
        return sorted(
            {"infinite scale" if item.message.startswith("scale inf") else item.rule for item in errors}
        )
    except ModelError:
        return ["invalid"]


def misread(model: onnx.ModelProto, parsed: dict) -> list[str]:
    """Return the Q and DQ that a parser read with another type or axis than the file has."""
    arrays = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    problems = [text for text in parsed["warnings"] if "UINT8" in text]
    for node in _quantizers(model):
        layer = parsed["layers"].get(node.name)
        scale, zero = (arrays.get(name) for name in (*node.input[1:], "")[:2])
        if layer is None or scale is None:
            continue
        stated = next((item.i for item in node.attribute if item.name == "axis"), 1)
        if scale.size > 1 and layer["axis"] not in (stated, stated % 4, stated % 2):
            problems.append(f"{node.name}: axis {layer['axis']}, {stated} in the file")
        kind = "uint8" if zero is None or zero.dtype == np.uint8 else "int8"
        if layer["type"] in ("int8", "uint8") and zero is not None and layer["type"] != kind:
            problems.append(f"{node.name}: {layer['type']}, {kind} in the file")
    return problems


def differences(model: onnx.ModelProto, rules: list[str], parsed: dict) -> str:
    """Return the difference of linter and parser that has no reason; "" without one."""
    wrong = misread(model, parsed) if parsed["accepted"] else []
    if not rules:
        if wrong:
            return f"misread silently: {wrong[0]}"
        return "" if parsed["accepted"] else f"refused: {parsed['errors'][0].splitlines()[0]}"
    if parsed["accepted"] and not wrong and not set(rules) & set(STRICTER):
        return f"accepted in spite of {', '.join(rules)}"
    return ""


def main(folder: Path, count: int) -> int:
    """Print the differences by kind; return 1 if there are any."""
    found, totals = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        rules = {}
        for seed in range(count):
            path = Path(scratch) / f"{seed:05}.onnx"
            onnx.save(mutant(seed), path)
            rules[path.stem] = linted(path)
        for sdk in sorted(each for each in folder.iterdir() if each.is_dir()):
            out = Path(scratch) / "parsed.json"
            command = [sys.executable, str(WORKER), scratch, str(out)]
            subprocess.run(command, check=True, env={"PYTHONPATH": str(sdk), "PATH": ""})
            parsed = json.loads(out.read_text())
            for name, each in parsed["graphs"].items():
                model = onnx.load(Path(scratch) / f"{name}.onnx")
                difference = differences(model, rules[name], each)
                totals[bool(rules[name]), each["accepted"]] += 1
                if difference:
                    found[difference] += 1
                    print(f"{parsed['version']} graph {int(name)}: {difference}")
    for (refused, accepted), number in sorted(totals.items()):
        verdicts = "refuses" if refused else "passes", "accepts" if accepted else "refuses"
        print("linter {}, parser {}: {}".format(*verdicts, number))
    print(f"{sum(found.values())} differences without a reason")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000))
