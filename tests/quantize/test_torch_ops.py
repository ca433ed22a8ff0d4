"""Every operator in PyTorch: the values of ONNX Runtime, and gradients that are those of differences."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper

from edgeship.quantization.node_call import Call
from edgeship.quantization.torch_ops import OPERATIONS

RANDOM = np.random.default_rng(0)
MAP = RANDOM.normal(size=(2, 4, 6, 5)).astype(np.float32)
ROWS = RANDOM.normal(size=(2, 6)).astype(np.float32)
POSITIVE = (np.abs(MAP) + 0.2).astype(np.float32)
UNIT = np.tanh(MAP) * 0.9
FLAGS = MAP > 0
OLD_RUNTIME = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24)


def i64(*values):
    return np.array(values, np.int64)


def f32(*values):
    return np.array(values, np.float32)


def scalar(values):
    return values.reshape(())


def normal(*shape):
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape).astype(np.float32)


def case(kind, *inputs, opset=17, outputs=1, step=False, atol=2e-5, **attributes):
    """One node; `step`: its derivative is zero nearly everywhere, or it has none."""
    words = [f"{name}={value}" for name, value in attributes.items()]
    shapes = ["x".join(map(str, each.shape)) for each in inputs[:1] if each is not None]
    return pytest.param(
        kind,
        inputs,
        attributes,
        opset,
        outputs,
        step,
        atol,
        id=" ".join([kind, str(opset), *shapes, *words]),
    )


ELEMENTWISE = [
    *(case(name, MAP) for name in ("Abs", "Neg", "Exp", "Erf", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh")),
    *(case(name, MAP) for name in ("Tanh", "Asinh", "Sigmoid", "Relu", "Softplus", "Softsign", "HardSwish")),
    *(case(name, MAP) for name in ("Elu", "Celu", "Selu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu")),
    *(case(name, POSITIVE) for name in ("Log", "Sqrt", "Reciprocal")),
    *(case(name, UNIT.astype(np.float32)) for name in ("Asin", "Acos", "Atanh")),
    *(case(name, MAP * 2, step=True) for name in ("Round", "Floor", "Ceil", "Sign", "IsNaN")),
    case("Acosh", POSITIVE + 1),
    case("Mish", MAP, opset=18),
    case("Gelu", MAP, opset=20),
    case("Gelu", MAP, opset=20, approximate="tanh"),
    case("HardSigmoid", MAP, alpha=0.3, beta=0.4),
    case("Elu", MAP, alpha=0.4),
    case("Celu", MAP, alpha=0.4),
    case("Selu", MAP, alpha=1.5, gamma=0.8),
    case("LeakyRelu", MAP, alpha=0.3),
    case("ThresholdedRelu", MAP, alpha=0.3),
    case("PRelu", MAP, normal(4, 1, 1)),
    case("Clip", MAP, scalar(f32(-0.4)), scalar(f32(0.6))),
    case("Clip", MAP, None, scalar(f32(0.6))),
    *(case(name, MAP, normal(4, 1, 5)) for name in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")),
    *(case(name, MAP, normal(5), normal(6, 1)) for name in ("Max", "Min", "Sum", "Mean")),
    case("Max", MAP),
    case("Div", MAP, POSITIVE),
    case("Div", i64(-7, 7, 9), i64(2, 2, -4), step=True),
    case("Pow", POSITIVE, scalar(f32(1.7))),
    case("Pow", MAP, scalar(i64(3))),
    *(case(n, MAP, normal(4, 1, 1), step=True) for n in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")),
    case("Equal", np.round(MAP), np.round(MAP[:1]), step=True),
    *(case(name, FLAGS, FLAGS[:1], step=True) for name in ("And", "Or", "Xor")),
    case("Not", FLAGS, step=True),
    case("Where", FLAGS, MAP, normal(1, 4, 1, 5)),
    case("Softmax", MAP, axis=1),
    case("Softmax", MAP),
    case("LogSoftmax", MAP, axis=2),
]
REDUCTIONS = [
    *(
        case(f"Reduce{name}", values, *given, opset=opset, **attributes)
        for name, values in (
            *(("Max", MAP), ("Min", MAP), ("L1", MAP), ("L2", MAP), ("SumSquare", MAP)),
            *(("LogSumExp", MAP), ("Mean", MAP)),
        )
        for opset, given, attributes in (
            (13, (), {"axes": [2, 3]}),
            (13, (), {"axes": [-1], "keepdims": 0}),
            (18, (i64(1, -1),), {}),
            (18, (), {"keepdims": 0}),
            (18, (), {"noop_with_empty_axes": 1}),
        )
    ),
    case("ReduceSum", MAP, i64(2, 3), keepdims=0),
    case("ReduceSum", MAP),
    case("ReduceSum", MAP, noop_with_empty_axes=1),
    case("InstanceNormalization", MAP, normal(4), normal(4, 1)[:, 0], epsilon=1e-3),
    case("GroupNormalization", MAP, normal(2), f32(0.1, 0.3), opset=18, num_groups=2),
    case("GroupNormalization", MAP, normal(4), f32(0, 1, 2, 3), opset=21, num_groups=2, epsilon=1e-3),
    case("LayerNormalization", MAP, normal(5), f32(0, 1, 2, 3, 4)),
    case("LayerNormalization", MAP, normal(6, 5), axis=2, epsilon=1e-3),
    case("RMSNormalization", MAP, normal(5), opset=23),
    case("BatchNormalization", MAP, normal(4), f32(0, 1, 2, 3), f32(0.1, 0, 0, 0.3), f32(1, 2, 0.5, 1)),
    *(
        case("LRN", MAP, size=size, alpha=alpha, beta=beta, bias=bias)
        for size, alpha, beta, bias in ((3, 1e-4, 0.75, 1.0), (5, 0.2, 0.5, 2.0))
    ),
]
RESHAPES = [
    case("Split", MAP, axis=1, outputs=2),
    case("Split", MAP, i64(1, 3), axis=1, outputs=2),
    case("Split", MAP, axis=3, opset=18, outputs=2, num_outputs=2),
    case("Split", MAP, i64(2, 0, 4), axis=-2, outputs=3),
    case("Cast", MAP, to=1),
    case("Cast", i64(1, -2), to=1, step=True),
    case("Cast", MAP * 3, to=7, step=True),
    case("Cast", MAP, to=9, step=True),
    case("CastLike", i64(1, 2), f32(1), step=True),
    case("Expand", MAP[:, :1], i64(2, 3, 6, 5)),
    case("Expand", MAP[0, :, :1], i64(2, 1, 6, 1)),
    case("Tile", MAP, i64(1, 2, 1, 3)),
    *(
        case("Shape", MAP, step=True, **attributes)
        for attributes in ({}, {"start": 1}, {"start": -3, "end": -1}, {"end": 2})
    ),
    case("Size", MAP, step=True),
    case("ConstantOfShape", i64(2, 3), value=helper.make_tensor("v", 1, [1], [0.5]), step=True),
    case("ConstantOfShape", i64(2, 3), step=True),
    case("Range", scalar(i64(1)), scalar(i64(9)), scalar(i64(3)), step=True),
    case("Range", scalar(f32(1)), scalar(f32(-2)), scalar(f32(-0.75)), step=True),
    case("DepthToSpace", MAP, blocksize=2),
    case("DepthToSpace", MAP, blocksize=2, mode="CRD"),
    case("SpaceToDepth", MAP[:, :, :, :4], blocksize=2),
    case("Reshape", MAP, i64(0, -1, 10)),
    case("Reshape", MAP, i64(8, 30)),
    *(case("Flatten", MAP, axis=axis) for axis in (0, 1, 2, -1)),
    case("Squeeze", MAP[:, :1], i64(1)),
    case("Squeeze", MAP[:1, :, :, :1]),
    case("Unsqueeze", MAP, i64(0, -1)),
    case("Transpose", MAP, perm=[2, 0, 3, 1]),
    case("Transpose", MAP),
    case("Concat", MAP, MAP[:, :1], axis=1),
    case("Gather", MAP, scalar(i64(2)), axis=1),
    case("Gather", MAP, np.array([[0, -1], [2, 1]]), axis=2),
    case("Slice", MAP, i64(-1, 0), i64(-99, 99), i64(2, 3), i64(-2, 2)),
    case("Slice", MAP, i64(0, 1), i64(2, 3)),
    case("Pad", MAP, i64(0, 1, 2, 0, 0, 0, 1, 3), scalar(f32(0.5))),
    case("Pad", MAP, i64(0, 0, -1, 0, 0, 0, 2, -1)),
    case("Pad", MAP, i64(1, 2), None, i64(-1), opset=18),
    *(case("Pad", MAP, i64(0, 0, 2, 1, 0, 0, 3, 2), mode=mode) for mode in ("reflect", "edge")),
    case("Pad", MAP, i64(0, 2, 0, 0, 0, 1, 0, 0), mode="reflect"),
    case("Pad", MAP, i64(0, 0, 2, 1, 0, 0, 3, 2), mode="wrap", opset=19),
]
LAYERS = [
    case("Conv", MAP, normal(6, 2, 3, 3), normal(6), group=2, pads=[1, 0, 2, 1], strides=[2, 1]),
    case("Conv", MAP, normal(3, 4, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", MAP, normal(3, 4, 2, 4), auto_pad="SAME_LOWER", dilations=[1, 1]),
    case("Conv", MAP, normal(3, 4, 1, 1), auto_pad="VALID", strides=[2, 2]),
    case("Conv", MAP[:, :, :, 0], normal(3, 4, 3), pads=[1, 1], dilations=[2]),
    case("Conv", MAP[:, :, None], normal(3, 4, 1, 3, 3)),
    *(
        case("ConvTranspose", MAP, normal(4, 3, 3, 2), *bias, **attributes)
        for bias, attributes in (
            ((), {}),
            ((normal(3),), {"strides": [2, 2], "pads": [1, 0, 1, 1]}),
            ((normal(3),), {"strides": [2, 3], "pads": [0, 1, 2, 0], "output_padding": [1, 2]}),
            ((), {"dilations": [2, 2], "pads": [1, 1, 1, 1]}),
            ((), {"strides": [2, 2], "output_shape": [12, 10]}),
            ((), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
            ((), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
        )
    ),
    case("ConvTranspose", MAP, normal(4, 2, 2, 2), group=2, strides=[2, 2]),
    case("ConvTranspose", MAP[:, :, :, 0], normal(4, 2, 3), strides=[2]),
    case("Gemm", ROWS, normal(4, 6), normal(4), transB=1, alpha=0.5, beta=2.0),
    case("Gemm", ROWS, normal(2, 3), transA=1),
    case("MatMul", MAP, normal(5, 3)),
    case("Einsum", MAP, normal(4, 3), equation="bchw, cd -> bdhw"),
    case("Einsum", MAP, MAP, equation="bchw,bdhw->bcd"),
    case("Einsum", ROWS, equation="...i->...i"),
    case("MaxPool", MAP, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1]),
    case("MaxPool", MAP, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("MaxPool", MAP, kernel_shape=[2, 2], pads=[1, 1, 1, 1], dilations=[2, 2]),
    case("MaxPool", MAP, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("MaxPool", MAP[:, :, 0], kernel_shape=[3], strides=[2]),
    case("AveragePool", MAP, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    case("AveragePool", MAP, kernel_shape=[3, 2], pads=[1, 0, 0, 1], count_include_pad=1),
    case("AveragePool", MAP, kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("AveragePool", MAP, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    case("GlobalAveragePool", MAP),
    case("GlobalMaxPool", MAP),
    case("GridSample", MAP, np.tanh(normal(2, 3, 4, 2)), opset=20, mode="linear", align_corners=1),
    case("GridSample", MAP, 1.2 * np.tanh(normal(2, 3, 4, 2)), opset=16, padding_mode="border"),
    case("GridSample", MAP, np.tanh(normal(2, 3, 4, 2)), opset=20, mode="cubic", atol=1e-4),
    case("GridSample", MAP, np.tanh(normal(2, 3, 4, 2)), opset=20, mode="nearest"),
    case("AffineGrid", normal(2, 2, 3), i64(2, 4, 3, 5), opset=20, align_corners=1),
]


def resize(scales=None, sizes=None, opset=19, roi=None, **attributes):
    given = [MAP, None if roi is None else f32(*roi), None if scales is None else f32(*scales)]
    return case(
        "Resize", *given, *([] if sizes is None else [i64(*sizes)]), opset=opset, atol=1e-4, **attributes
    )


UP, DOWN, MIXED = (1, 1, 2, 2), (1, 1, 0.5, 0.6), (1, 1, 1.7, 0.8)
TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
RESIZES = [
    *(
        resize(scales, mode=mode, coordinate_transformation_mode=where)
        for mode in ("nearest", "linear")
        for where in TRANSFORMATIONS
        for scales in (UP, DOWN, MIXED)
    ),
    *(
        resize(scales, mode="nearest", nearest_mode=how, coordinate_transformation_mode=where)
        for how in ("round_prefer_ceil", "floor", "ceil")
        for where in ("half_pixel", "asymmetric")
        for scales in (UP, MIXED)
    ),
    *(
        resize(sizes=sizes, mode=mode, opset=opset)
        for mode in ("nearest", "linear")
        for sizes in ((2, 4, 9, 3), (2, 4, 1, 8))
        for opset in (13, 19)
    ),
    resize((1.5,), mode="linear", axes=[3]),
]


def run(model, feeds, names):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(names, feeds)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "opset", "outputs", "step", "atol"),
    [*ELEMENTWISE, *REDUCTIONS, *RESHAPES, *LAYERS, *RESIZES],
)
def test_values_are_those_of_onnx_runtime_and_gradients_those_of_differences(
    kind, inputs, attributes, opset, outputs, step, atol
):
    if "noop_with_empty_axes" in attributes and OLD_RUNTIME:
        pytest.skip("ONNX Runtime before 1.24 ignores noop_with_empty_axes")
    names = [f"in{place}" if each is not None else "" for place, each in enumerate(inputs)]
    results = [f"out{place}" for place in range(outputs)]
    proto = helper.make_node(kind, names, results, name="node", **attributes)
    given = {name: each for name, each in zip(names, inputs, strict=True) if name}
    graph = helper.make_graph(
        [proto],
        "net",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in given.items()
        ],
        [onnx.helper.make_empty_tensor_value_info(name) for name in results],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    expected = run(model, given, results)
    node = next(iter(ir.from_proto(model).graph))

    def work(*values):
        tensors = iter(values)
        got = OPERATIONS[node.op_type](Call(node, [next(tensors) if n else None for n in names]))
        return got if isinstance(got, tuple) else (got,)

    tensors = [torch.from_numpy(np.array(each)) for each in given.values()]
    for got, wanted in zip(work(*tensors), expected, strict=True):
        assert got.shape == wanted.shape and got.dtype == torch.from_numpy(np.array(wanted)).dtype
        scale = np.abs(wanted).max(initial=1) if wanted.dtype.kind == "f" else 1
        np.testing.assert_allclose(got.numpy(), wanted, atol=atol * scale, rtol=1e-5)
    first = next((place for place, each in enumerate(tensors) if each.is_floating_point()), None)
    if step or first is None:
        return

    def of_first(x):
        rest = [each.double() if each.is_floating_point() else each for each in tensors]
        rest[first] = x
        return tuple(each for each in work(*rest) if each.is_floating_point())

    x = tensors[first].double().requires_grad_()
    assert torch.autograd.gradcheck(of_first, (x,), fast_mode=True)
    gradient = torch.autograd.grad(sum(each.square().sum() for each in of_first(x)), x)[0]
    assert gradient.abs().max() > 0
