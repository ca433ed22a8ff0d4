"""ONNX classifiers in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from toolkit.core.artifact import replacing
from toolkit.core.errors import ModelError
from toolkit.core.tensors import Preprocess, Size, as_size
from toolkit.graph.dialect import drop_identities, settle
from toolkit.graph.layout import InputForm, form_of, to_planes
from toolkit.graph.padding import write_padding
from toolkit.graph.simplify import fold_constants, take_branches, write_shapes

if TYPE_CHECKING:
    from toolkit.graph.normalization import InputNormalization  # which reads graphs with what is below

QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
PARAMETER_TYPES = frozenset(
    {ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32}  # INT64 is of shapes
)
PARAMETER_INPUTS = {  # where quantized operators have weights and biases, if not first
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
}
_EXPORT_AGAIN = "export it again as a float32 image classifier"


@dataclass(frozen=True, slots=True)
class Classifier:
    """An ONNX classifier and what its outside looks like.

    Attributes:
        path: Its file.
        model: The graph, shapes inferred, constants lifted to initializers.
        input: Name of the image input, float32 (N, channels, height, width), or as `form` says.
        output: Name of the logits, float32 (N, classes).
        batch: Images an inference; None is dynamic.
        channels: Channels of the image.
        height: Of the image in pixels; None is dynamic.
        width: The same.
        classes: Number of classes.
        parameters: Number of weights and biases.
        quantized: Whether integer arithmetic or Q/DQ nodes are in it already.
        preprocess: What its metadata says of preprocessing, if anything.
        takes_pixels: Whether the input is uint8 (N, height, width, channels) and normalized inside.
        form: How the file takes images; one that is to be quantized is read as float32 NCHW all the same.
        converted: Whether `model` computes in another layout or takes another type than the file.
        normalization: What a graph that is to be quantized does to raw pixels itself, if that was found.
    """

    path: Path
    model: ir.Model
    input: str
    output: str
    batch: int | None
    channels: int
    height: int | None
    width: int | None
    classes: int
    parameters: int
    quantized: bool
    preprocess: Preprocess | None
    takes_pixels: bool
    form: InputForm
    converted: bool
    normalization: InputNormalization | None = None

    @property
    def size(self) -> Size | None:
        """Height and width of the image in pixels; None if one is dynamic."""
        return None if self.height is None or self.width is None else as_size(self.height, self.width)


def read(path: Path, *, quantizable: bool = False) -> Classifier:
    """Read an ONNX image classifier, float or quantized.

    Args:
        path: The file.
        quantizable: Whether a float graph of an old opset is read as one that can be quantized.

    Raises:
        ModelError: The file is absent, cut off, or not an image classifier.
    """
    model, form, converted = _load(path, quantizable=quantizable)
    graph = model.graph
    images = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(images) != 1 or len(graph.outputs) != 1:
        raise ModelError(
            f"{path.name} has {len(images)} inputs and {len(graph.outputs)} outputs; one of each is expected",
            hint="export it with the images as its only input and the logits as its only output",
        )
    image, logits = images[0], graph.outputs[0]
    shape, result = _dims(image), _dims(logits)
    stored = form_of(image)
    if stored.layout == "NHWC":
        shape = (shape[0], shape[3], *shape[1:3])
    if len(shape) != 4 or len(result) != 2 or shape[1] is None or result[1] is None:
        raise ModelError(
            f"{path.name} maps {image.name} {shape} to {logits.name} {result}; (N, C, H, W) to (N, classes) "
            "is expected",
            hint=_cure(shape, result),
        )
    return Classifier(
        path,
        model,
        str(image.name),
        str(logits.name),
        shape[0],
        shape[1],
        shape[2],
        shape[3],
        result[1],
        _parameters(graph),
        any(node.op_type in QUANTIZED_OPS for node in graph),
        _preprocess(model),
        stored == InputForm("NHWC", "uint8"),
        form,
        converted,
    )


def read_classifier(path: Path | Classifier) -> Classifier:
    """Read a float32 classifier that is to be quantized, each BatchNormalization in the layer before it.

    Args:
        path: The file; what was read of it comes back as it is.

    Raises:
        ModelError: As `read`; or it is quantized already, computes in another type, or holds NaN weights.
    """
    from toolkit.graph.fold import fold_batchnorms, fold_channel_orders  # they edit with the functions below
    from toolkit.graph.normalization import find_input_normalization

    if isinstance(path, Classifier):
        return path
    found = read(path, quantizable=True)
    for node in found.model.graph:
        if node.op_type in QUANTIZED_OPS:
            raise ModelError(
                f"{path.name} is quantized already: node '{node.name}' is a {node.op_type}",
                hint="start from the float32 model it was made from",
            )
    tensors = [*found.model.graph.inputs, *found.model.graph.outputs]
    for value in tensors:
        if value.dtype != ir.DataType.FLOAT:
            raise ModelError(
                f"'{value.name}' of {path.name} is {value.dtype}, not float32", hint=_EXPORT_AGAIN
            )
    for name, value in found.model.graph.initializers.items():
        if value.dtype in {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}:
            raise ModelError(
                f"weight '{name}' of {path.name} is {value.dtype}, not float32", hint=_EXPORT_AGAIN
            )
        if value.dtype == ir.DataType.FLOAT and not _allowed(value):
            raise ModelError(
                f"weight '{name}' of {path.name} holds NaN or infinite values",
                hint="the training diverged, or the file is damaged; use another checkpoint",
            )
    fold_channel_orders(found.model)
    fold_batchnorms(found.model)
    are_pixels = found.form.dtype == "uint8"
    return replace(
        found,
        parameters=_parameters(found.model.graph),
        normalization=find_input_normalization(found.model, are_pixels=are_pixels),
    )


def save(model: ir.Model, path: Path) -> None:
    """Write a graph; the file appears complete or not at all."""
    with replacing(path) as temporary:
        ir.save(model, temporary)


def constant(value: ir.Value) -> np.ndarray[Any, Any]:
    """The array of an initializer."""
    if value.const_value is None:
        raise ModelError(f"'{value.name}' is not a constant", hint=_EXPORT_AGAIN)
    return np.asarray(value.const_value.numpy())


def set_constant(value: ir.Value, array: np.ndarray[Any, Any]) -> None:
    """Give an initializer another array."""
    value.const_value = ir.tensor(array, name=value.name)


def add_constant(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """Add an initializer to a graph and return it."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def copy(model: ir.Model) -> ir.Model:
    """A copy whose nodes and initializers can be edited apart; arrays are shared until they are replaced."""
    return model.clone()


def _load(path: Path, *, quantizable: bool) -> tuple[ir.Model, InputForm, bool]:
    if not path.is_file():
        raise ModelError(f"no such file: {path}", hint="check the path")
    try:
        model = ir.load(path)
        of_floats = not any(node.op_type in QUANTIZED_OPS for node in model.graph)
        model = settle(model, quantizable=quantizable and of_floats)
        inferred: ir.Model = ShapeInferencePass()(model).model
        while fold_constants(inferred) or take_branches(inferred):
            inferred = ShapeInferencePass()(inferred).model
        drop_identities(inferred)  # of the branches
        images = [value for value in inferred.graph.inputs if value.name not in inferred.graph.initializers]
        form = form_of(images[0]) if len(images) == 1 else InputForm()
        converted = quantizable and of_floats and len(images) == 1 and to_planes(inferred, images[0])
        write_padding(inferred)
        write_shapes(inferred)
        for value in inferred.graph.initializers.values():  # else one array that stays keeps the whole file
            set_constant(value, np.array(constant(value)))
    except ModelError:
        raise
    except Exception as error:  # protobuf and onnx-ir raise many kinds for a damaged file
        raise ModelError(
            f"{path.name} is not a readable ONNX file: {str(error).splitlines()[0]}",
            hint="it was cut off or is another format; export it again",
        ) from error
    return inferred, form, converted


def _dims(value: ir.Value) -> tuple[int | None, ...]:
    if value.shape is None:
        return ()
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def _cure(shape: tuple[int | None, ...], result: tuple[int | None, ...]) -> str:
    """What to change about a graph that maps one shape to another."""
    if len(shape) != 4:
        return "its input must be images: (N, C, H, W), i.e. batch, channels, height, width"
    if shape[1] is None:
        return "export it with a fixed number of channels"
    if len(result) != 2:
        return "its output must be the logits: (N, classes), one number a class"
    return "export it with a fixed number of classes"


def _parameters(graph: ir.Graph) -> int:
    """Weights and biases, in whatever type they are stored; scales and zero points are none."""
    scales = {
        id(value)
        for node in graph
        if node.op_type in QUANTIZED_OPS
        for place, value in enumerate(node.inputs)
        if place not in PARAMETER_INPUTS.get(node.op_type, (0,))
    }
    found = graph.initializers.values()
    return sum(_size(value) for value in found if value.dtype in PARAMETER_TYPES and id(value) not in scales)


def _allowed(value: ir.Value) -> bool:
    """Whether a constant is finite, or the infinity that a max pool is padded with or a Clip is open to."""
    array = constant(value)
    bounds = all(node.op_type in {"Pad", "Clip"} for node in value.consumers())
    return not np.isnan(array).any() if bounds else bool(np.isfinite(array).all())


def _size(value: ir.Value) -> int:
    return int(np.prod(_dims(value) or (1,)))  # type: ignore[arg-type]


def _preprocess(model: ir.Model) -> Preprocess | None:
    text = model.metadata_props.get("preprocess")
    if not text:
        return None
    try:
        return Preprocess.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError):
        return None  # somebody else's metadata of the same name
