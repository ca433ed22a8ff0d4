"""The end of a classifier: which output, and what stands between the logits (N, classes) and it.

A Softmax moves no argmax but bends every measure of error, so calibration, fits and SQNR use the logits in
front of it. A file that `edgeship quantize` writes ends as the one it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgeship.toolkit.core.errors import ModelError, nearest
from edgeship.toolkit.graph.edit import Names

SOFTMAX = frozenset({"Softmax", "LogSoftmax"})
RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"})


@dataclass(frozen=True, slots=True)
class Ending:
    """Hold the nodes behind the logits.

    Attributes:
        graph: The nodes as a GraphProto: input, initializers and output.
        flattened: Whether a Flatten of ours makes the logits (N, classes).
        softmax: Whether they compute probabilities, or the logarithms of them.
    """

    graph: Any
    flattened: bool
    softmax: bool


def choose(model: ir.Model, output: str | None, file: str) -> None:
    """Leave one output in a graph, and only the nodes that it needs.

    Args:
        model: The graph.
        output: Name of the output; None: it must have one only.
        file: Name of the file, for messages.

    Raises:
        ModelError: There is no such output, or there are several to choose from.
    """
    outputs = model.graph.outputs
    names = [str(value.name) for value in outputs]
    if not names:
        raise ModelError(f"{file} has no output", hint="export it with the logits as its output")
    if output is None and len(names) > 1:
        raise ModelError(
            f"{file} has {len(names)} outputs: {', '.join(names)}; one is expected",
            hint=f"name the logits: `edgeship quantize --output {names[0]}`, or load.output in a recipe",
        )
    if output is not None:
        if output not in names:
            raise ModelError(f"{file} has no output '{output}'", hint=nearest(output, names))
        chosen = outputs[names.index(output)]
        outputs.clear()
        outputs.append(chosen)
        RemoveUnusedNodesPass()(model)


def classes(value: ir.Value) -> int | None:
    """Return the number of classes of logits (N, C) or of a form with sides of 1; None for other shapes."""
    shape = list(value.shape or ())
    if len(shape) < 2 or not all(isinstance(dim, int) for dim in shape[1:]):
        return None
    wide = [int(dim) for dim in shape[1:] if dim != 1]  # type: ignore[arg-type]
    return None if len(wide) > 1 else wide[0] if wide else 1


def cut(model: ir.Model) -> Ending | None:
    """Make the logits (N, classes) the output of a classifier.

    Returns:
        What was behind them, for `restore`; None: nothing.
    """
    graph = model.graph
    output = graph.outputs[0]
    behind = _behind(output)
    logits = behind[-1].inputs[0] if behind else output
    assert logits is not None, "a node of the path has an input"
    flat = logits.shape is not None and len(logits.shape) == 2
    if not behind and flat:
        return None
    ending = Ending(_as_graph(behind[::-1], logits, output), not flat, bool(behind))
    new = logits
    if not flat:
        names = Names(graph)
        node = ir.node("Flatten", [logits], {"axis": 1}, name=names.new(f"{logits.name}/flatten"))
        new = node.outputs[0]
        new.name, new.type = names.new(f"{logits.name}/flat"), logits.type
        assert logits.shape is not None, "checked by `read`"
        new.shape = ir.Shape([logits.shape[0], classes(logits)])
        graph.append(node)
    graph.outputs.clear()
    graph.outputs.append(new)
    RemoveUnusedNodesPass()(model)
    return ending


def restore(model: ir.Model, ending: Ending) -> None:
    """Append the nodes that `cut` removed; the output has its original name and shape again."""
    graph = model.graph
    logits = graph.outputs[0]
    graph.outputs.clear()
    if ending.flattened:
        flatten = logits.producer()
        assert flatten is not None and flatten.inputs[0] is not None, "of `cut`"
        logits = flatten.inputs[0]
        graph.remove(flatten, safe=True)
    if not ending.graph.node:
        graph.outputs.append(logits)
        return
    tail = ir.from_proto(ending.graph)
    nodes, end = list(tail), tail.outputs[0]
    end_name = end.name
    tail.outputs.clear()
    tail.remove(nodes)
    ir.convenience.replace_all_uses_with(tail.inputs[0], logits)
    names = Names(graph)
    for value in list(tail.initializers.values()):
        tail.initializers.pop(str(value.name))
        value.name = names.new(str(value.name))
        graph.register_initializer(value)
    for each in (*graph.initializers.values(), *(v for node in graph for v in node.outputs)):
        if each.name == end_name:
            each.name = names.new(f"{end_name}/inner")
    for node in nodes:
        node.name = names.new(str(node.name))
        for each in node.outputs:
            each.name = end_name if each is end else names.new(str(each.name))
    graph.extend(nodes)
    graph.outputs.append(end)


def _behind(output: ir.Value) -> list[ir.Node]:
    """Return the nodes from the output back to the first Softmax over the classes; [] without one."""
    path: list[ir.Node] = []
    last = 0
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        others = [each for each in node.inputs[1:] if each is not None]
        if node.op_type not in SOFTMAX | RESHAPING or any(each.const_value is None for each in others):
            break
        if node.op_type in SOFTMAX and not _over_classes(node):
            break
        path.append(node)
        if node.op_type in SOFTMAX:
            last = len(path)
        value = node.inputs[0]
    return path[:last]


def _over_classes(node: ir.Node) -> bool:
    """Return whether a Softmax adds up to 1 over the classes of each image."""
    value = node.inputs[0]
    if value is None or value.shape is None or (number := classes(value)) is None:
        return False
    axis = int(node.attributes.get_int("axis", -1)) % len(value.shape)
    return axis > 0 and value.shape[axis] == number


def _as_graph(nodes: Sequence[ir.Node], logits: ir.Value, output: ir.Value) -> Any:
    import onnx

    constants = {str(value.name): value for node in nodes for value in node.inputs[1:] if value is not None}
    return onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "ending",
        [ir.to_proto(logits)],
        [ir.to_proto(output)],
        [
            onnx.numpy_helper.from_array(v.const_value.numpy(), n)
            for n, v in constants.items()
            if v.const_value
        ],
    )
