"""Signs of tensors: those that cannot be negative, by the operators that compute them."""

from __future__ import annotations

import onnx_ir as ir

from edgeship.toolkit.graph.query import DEQUANTIZE, QUANTIZE, array, input_at

AVERAGE_OPS = frozenset({"GlobalAveragePool", "AveragePool", "ReduceMean"})
LAYOUT_OPS = frozenset({"Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})
EXTREMUM_OPS = frozenset({"GlobalMaxPool", "ReduceMax", "ReduceMin"})  # commute with rounding
SELECTION_OPS = frozenset(  # results are values of the first input, or means of some
    {
        *("Slice", "Split", "Pad", "Tile", "Expand", "Gather", "Resize", "Upsample"),
        *("DepthToSpace", "SpaceToDepth", "Identity", "MaxPool", "AveragePool"),
    }
)
NEVER_NEGATIVE = frozenset(
    {
        *("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt"),
        *("ReduceL1", "ReduceL2", "ReduceSumSquare", "LpPool", "GlobalLpPool"),
    }
)
SIGN_PRESERVING = frozenset(  # nonnegative if the first input is
    {
        *("ReduceSum", "LRN", "Cast", "Floor", "Ceil", "Round", "Sign", "Erf", "Tanh", "Softsign"),
        *("LeakyRelu", "PRelu", "Elu", "Selu", "HardSwish", "Gelu", "Mish"),
    }
)
JOIN_OPS = frozenset({"Concat", "Add", "Sum", "Mean", "Mul", "Div", "Min"})  # nonnegative if all inputs are
FOLLOWED = (
    LAYOUT_OPS | AVERAGE_OPS | EXTREMUM_OPS | SELECTION_OPS | SIGN_PRESERVING | JOIN_OPS | {"Clip", "Max"}
)


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Return the constant bounds of a Clip, or None: inputs, before opset 11 attributes."""
    bounds: list[float | None] = []
    for place, name in ((1, "min"), (2, "max")):
        bound = array(input_at(node, place))
        if bound is not None and bound.size == 1:
            bounds.append(float(bound.item()))
        else:
            bounds.append(node.attributes.get_float(name, None))
    return bounds[0], bounds[1]


def never_negative(value: ir.Value) -> bool:
    """Return True if the operators that compute a tensor exclude negative values."""
    return _never_negative(value, {})


def _never_negative(value: ir.Value, cache: dict[int, bool]) -> bool:
    """Memoized `never_negative`: nested joins take linear time."""
    if id(value) not in cache:
        cache[id(value)] = _result_never_negative(value, cache)
    return cache[id(value)]


def _result_never_negative(value: ir.Value, cache: dict[int, bool]) -> bool:
    node = value.producer()
    if node is None:
        stored = array(value)
        return stored is not None and stored.dtype.kind not in "OSU" and bool((stored >= 0).all())
    kind, inputs = node.op_type, [each for each in node.inputs if each is not None]
    if kind in NEVER_NEGATIVE:
        return True
    if kind == DEQUANTIZE:  # after Q the signs are the same; stored integers may have a zero point
        pair = inputs[0].producer() if inputs else None
        first = input_at(pair, 0) if pair is not None and pair.op_type == QUANTIZE else None
        return first is not None and _never_negative(first, cache)
    if not inputs or kind not in FOLLOWED:
        return False
    if kind == "Mul" and len(inputs) == 2 and inputs[0] is inputs[1]:
        return True
    if kind == "Max":
        return any(_never_negative(each, cache) for each in inputs)
    if kind in JOIN_OPS:
        return all(_never_negative(each, cache) for each in inputs)
    if kind == "Clip":
        low, high = clip_bounds(node)
        if high is not None and high < 0:
            return False
        return (low is not None and low >= 0) or _never_negative(inputs[0], cache)
    if kind == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
        fill = node.inputs[2] if len(node.inputs) > 2 else None
        if fill is not None and not _never_negative(fill, cache):
            return False
    if kind == "Resize" and node.attributes.get_string("mode", "nearest") == "cubic":
        return False  # cubic interpolation overshoots
    return _never_negative(inputs[0], cache)
