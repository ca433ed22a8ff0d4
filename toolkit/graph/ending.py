"""Output selection of a classifier, and the nodes after its logits (N, classes).

Softmax keeps the argmax but distorts error measures, so calibration, fits and SQNR use the logits before
it. A file written by `edgeship quantize` has the nodes after the logits again.
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
    """Nodes after the logits.

    Attributes:
        graph: The nodes as a GraphProto: input, initializers and output.
        flattened: Whether an inserted Flatten reshapes the logits to (N, classes).
        softmax: Whether the nodes compute probabilities or log probabilities.
    """

    graph: Any
    flattened: bool
    softmax: bool


def select_output(model: ir.Model, output: str | None, file: str) -> None:
    """Reduce a graph to one output and the nodes it depends on.

    Args:
        model: The graph; changed.
        output: Name of the output; None for a graph with a single output.
        file: Name of the file, for messages.

    Raises:
        ModelError: The output does not exist, or none is named among several.
    """
    outputs = model.graph.outputs
    names = [str(value.name) for value in outputs]
    if not names:
        raise ModelError(
            f"{file} has no output; the logits are expected", hint="export it with the logits as its output"
        )
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


def class_count(value: ir.Value) -> int | None:
    """Return the number of classes of logits (N, C), with any dimensions of 1; None for other shapes."""
    shape = list(value.shape or ())
    if len(shape) < 2 or not all(isinstance(dim, int) for dim in shape[1:]):
        return None
    sizes = [int(dim) for dim in shape[1:] if dim != 1]  # type: ignore[arg-type]
    return None if len(sizes) > 1 else sizes[0] if sizes else 1


def truncate_to_logits(model: ir.Model) -> Ending | None:
    """Make the logits (N, classes) the output of a classifier.

    Returns:
        The removed nodes, for `restore`; None if the graph is unchanged.
    """
    graph = model.graph
    output = graph.outputs[0]
    suffix = _suffix_from_softmax(output)
    logits = suffix[-1].inputs[0] if suffix else output
    assert logits is not None, "a node of the path has an input"
    is_flat = logits.shape is not None and len(logits.shape) == 2
    if not suffix and is_flat:
        return None
    ending = Ending(_as_graph(suffix[::-1], logits, output), not is_flat, bool(suffix))
    output_value = logits
    if not is_flat:
        names = Names(graph)
        node = ir.node("Flatten", [logits], {"axis": 1}, name=names.new(f"{logits.name}/flatten"))
        output_value = node.outputs[0]
        output_value.name, output_value.type = names.new(f"{logits.name}/flat"), logits.type
        assert logits.shape is not None, "checked by `read`"
        output_value.shape = ir.Shape([logits.shape[0], class_count(logits)])
        graph.append(node)
    graph.outputs.clear()
    graph.outputs.append(output_value)
    RemoveUnusedNodesPass()(model)
    return ending


def restore(model: ir.Model, ending: Ending) -> None:
    """Append the nodes removed by `truncate_to_logits`, with the original output name and shape."""
    graph = model.graph
    logits = graph.outputs[0]
    graph.outputs.clear()
    if ending.flattened:
        flatten = logits.producer()
        assert flatten is not None and flatten.inputs[0] is not None, "of `truncate_to_logits`"
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
    for value in (*graph.initializers.values(), *(v for node in graph for v in node.outputs)):
        if value.name == end_name:
            value.name = names.new(f"{end_name}/inner")
    for node in nodes:
        node.name = names.new(str(node.name))
        for value in node.outputs:
            value.name = end_name if value is end else names.new(str(value.name))
    graph.extend(nodes)
    graph.outputs.append(end)


def _suffix_from_softmax(output: ir.Value) -> list[ir.Node]:
    """Return the nodes from the output back to the first Softmax over the classes; [] without one."""
    path: list[ir.Node] = []
    length = 0
    value: ir.Value | None = output
    while value is not None and (node := value.producer()) is not None:
        constants = [each for each in node.inputs[1:] if each is not None]
        if node.op_type not in SOFTMAX | RESHAPING or any(each.const_value is None for each in constants):
            break
        if node.op_type in SOFTMAX and not _over_classes(node):
            break
        path.append(node)
        if node.op_type in SOFTMAX:
            length = len(path)
        value = node.inputs[0]
    return path[:length]


def _over_classes(node: ir.Node) -> bool:
    """Return True if a Softmax normalizes over the classes of each image."""
    value = node.inputs[0]
    if value is None or value.shape is None or (number := class_count(value)) is None:
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
