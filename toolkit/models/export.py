"""ONNX export of a ResNet: nodes built from the modules, BatchNorm folded, names from the state dict."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ShapeInferencePass
from torch import nn

from edgeship.toolkit.core.artifact import replacing
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import (
    Preprocess,
    PreprocessSource,
    Size,
    preprocess_metadata,
    sides,
    size_text,
)
from edgeship.toolkit.models.resnet import Block, PadShortcut, ResNet

OPSET, IR_VERSION = 17, 8  # read by TensorRT 8.5+, OpenVINO 2022+ and ONNX Runtime 1.12+
INPUT, OUTPUT, BATCH = "images", "logits", "batch"


@dataclass(slots=True)
class _Op:
    """An ONNX node; its name is also the name of its output."""

    kind: str
    name: str
    inputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, npt.NDArray[Any]] = field(default_factory=dict)  # initializer name -> array


def export(
    model: ResNet,
    out: Path,
    *,
    size: Size,
    batch: int | None = 1,
    preprocess: Preprocess | None = None,
    source: PreprocessSource = "stated",
) -> None:
    """Export a network to an ONNX file.

    A BatchNorm that is the only consumer of a convolution is folded into it, in float64; others (in
    pre-activation networks) stay BatchNormalization nodes. The input is `images` (N, C, height, width),
    the output `logits` (N, classes), both float32.

    Args:
        model: The network; its training mode is not changed.
        out: The file to write, atomically.
        size: Height and width of the input, in pixels.
        batch: Images per inference; None makes the dimension dynamic, named `batch`.
        preprocess: Stored in the file's metadata as JSON, key `preprocess`.
        source: Origin of mean and std, key `preprocess_source`.

    Raises:
        ModelError: The input is too small for the network.
    """
    arch = model.architecture
    smallest = 2 ** (len(arch.widths.streams) - 1) if arch.stem == "cifar" else 1
    if min(sides(size)) < smallest or (batch is not None and batch < 1):
        raise ModelError(
            f"cannot export {arch.name} for batch {batch} at {size_text(size)} pixels; "
            f"a batch of at least 1 and sides of at least {smallest} are expected",
            hint="set a larger batch or size",
        )
    ops = _fold(_ops(model))
    float32 = ir.TensorType(ir.DataType.FLOAT)
    images = ir.Value(
        name=INPUT,
        type=float32,
        shape=ir.Shape([BATCH if batch is None else batch, arch.channels, *sides(size)]),
    )
    values: dict[str, ir.Value] = {INPUT: images}
    initializers, nodes = [], []
    for op in ops:
        for name, array in op.weights.items():
            tensor = ir.tensor(array, name=name)
            values[name] = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
            initializers.append(values[name])
        output = ir.Value(name=op.name, type=float32)
        values[op.name] = output
        inputs = [values[name] for name in (*op.inputs, *op.weights)]
        name = "fc" if op.name == OUTPUT else op.name
        nodes.append(ir.node(op.kind, inputs, op.attributes, outputs=[output], name=name))
    values[OUTPUT].shape = ir.Shape([BATCH if batch is None else batch, arch.classes])
    graph = ir.Graph(
        [images],
        [values[OUTPUT]],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": OPSET},
        name=arch.name,
    )
    metadata = preprocess_metadata(preprocess, source) if preprocess else {}
    net = ir.Model(graph, ir_version=IR_VERSION, producer_name="edgeship", metadata_props=metadata)
    ShapeInferencePass()(net)
    with replacing(out) as temporary:
        ir.save(net, temporary)


def parity(model: ResNet, path: Path, *, size: Size, seed: int = 0) -> float:
    """Return the largest difference of PyTorch's and the file's logits, relative to the largest logit.

    Args:
        model: The network the file was exported from.
        path: The ONNX file.
        size: Height and width of the input, in pixels.
        seed: Seed of the random images.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    batch = session.get_inputs()[0].shape[0]
    shape = (batch if isinstance(batch, int) else 2, model.architecture.channels, *sides(size))
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    training = model.training
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images)).numpy()
    model.train(training)
    (logits,) = session.run(None, {INPUT: images})
    return float(np.abs(logits - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _ops(model: ResNet) -> list[_Op]:
    """Return the nodes of the network in order, with unfolded BatchNorms."""
    ops = [_conv("conv1", model.conv1, INPUT)]
    arch = model.architecture

    def add_op(kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        ops.append(_Op(kind, name, list(inputs), attributes))
        return name

    def add(op: _Op) -> str:
        ops.append(op)
        return op.name

    x = "conv1"
    if not arch.preactivation:
        x = add_op("Relu", "relu", add(_batchnorm("bn1", model.bn1, x)))
    if arch.stem == "imagenet":
        x = add_op(
            "MaxPool", "maxpool", x, kernel_shape=[3, 3], strides=[arch.steps[1]] * 2, pads=[1, 1, 1, 1]
        )
    for name, _, _, block in model.blocks():
        shortcut = out = x
        for i in range(1, block.depth + 1):
            conv, bn, relu = f"{name}.conv{i}", f"{name}.bn{i}", f"{name}.relu{i}"
            if block.preactivation:
                out = add_op("Relu", relu, add(_batchnorm(bn, block.bn(i), out)))
                if i == 1 and block.projection is not None:
                    shortcut = out
                out = add(_conv(conv, block.conv(i), out))
            else:
                out = add(_batchnorm(bn, block.bn(i), add(_conv(conv, block.conv(i), out))))
                out = add_op("Relu", relu, out) if i < block.depth else out
        if not block.plain:
            ops.extend(_shortcut(f"{name}.downsample", block, shortcut))
            out = add_op(
                "Add", f"{name}.add", out, ops[-1].name if block.downsample is not None else shortcut
            )
        x = out if block.preactivation else add_op("Relu", f"{name}.relu", out)
    if arch.preactivation:
        x = add_op("Relu", "relu", add(_batchnorm("bn", model.bn, x)))
    x = add_op("Flatten", "flatten", add_op("GlobalAveragePool", "avgpool", x), axis=1)
    weights = {"fc.weight": _array(model.fc.weight), "fc.bias": _array(model.fc.bias)}
    ops.append(_Op("Gemm", OUTPUT, [x], {"transB": 1}, weights))
    return ops


def _shortcut(name: str, block: Block, x: str) -> list[_Op]:
    if isinstance(block.downsample, PadShortcut):
        pad, ops = block.downsample, []
        if pad.stride > 1:  # a 1x1 max pool: every runtime supports it in INT8
            strides = [pad.stride, pad.stride]
            ops.append(_Op("MaxPool", f"{name}.pool", [x], {"kernel_shape": [1, 1], "strides": strides}))
            x = ops[-1].name
        pads = np.array([0, pad.front, 0, 0, 0, pad.back, 0, 0], np.int64)
        return [*ops, _Op("Pad", f"{name}.pad", [x], {"mode": "constant"}, {f"{name}.pads": pads})]
    if block.projection is None:
        return []
    convs = [_conv(f"{name}.0", block.projection[0], x)]
    return [*convs, *(_batchnorm(f"{name}.1", bn, f"{name}.0") for bn in list(block.projection)[1:])]


def _conv(name: str, module: nn.Module, x: str) -> _Op:
    conv = cast("nn.Conv2d", module)
    kernel, stride, pad = conv.kernel_size[0], conv.stride[0], conv.kernel_size[0] // 2
    attributes = {
        "kernel_shape": [kernel, kernel],
        "strides": [stride, stride],
        "pads": [pad] * 4,
        "dilations": [1, 1],
        "group": 1,
    }
    return _Op("Conv", name, [x], attributes, {f"{name}.weight": _array(conv.weight)})


def _batchnorm(name: str, module: nn.Module, x: str) -> _Op:
    bn = cast("nn.BatchNorm2d", module)
    state = ("weight", "bias", "running_mean", "running_var")
    weights = {f"{name}.{key}": _array(getattr(bn, key)) for key in state}
    return _Op("BatchNormalization", name, [x], {"epsilon": float(bn.eps)}, weights)


def _fold(ops: list[_Op]) -> list[_Op]:
    """Fold every BatchNorm that is the only reader of a convolution into it."""
    readers = Counter(name for op in ops for name in op.inputs)
    by_name = {op.name: op for op in ops}
    renamed: dict[str, str] = {}
    remaining = []
    for op in ops:
        op.inputs = [renamed.get(name, name) for name in op.inputs]
        previous = by_name.get(op.inputs[0])
        if (
            op.kind == "BatchNormalization"
            and previous
            and previous.kind == "Conv"
            and readers[previous.name] == 1
        ):
            gamma, beta, mean, var = (a.astype(np.float64) for a in op.weights.values())
            gain = gamma / np.sqrt(var + op.attributes["epsilon"])
            weight = (
                previous.weights[f"{previous.name}.weight"].astype(np.float64) * gain[:, None, None, None]
            )
            previous.weights = {
                f"{previous.name}.weight": weight.astype(np.float32),
                f"{previous.name}.bias": (beta - mean * gain).astype(np.float32),
            }
            renamed[op.name] = previous.name
        else:
            remaining.append(op)
    return remaining


def _array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = tensor.detach().to(torch.float32).cpu().numpy().copy()
    return array
