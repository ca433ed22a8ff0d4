"""ONNX classifiers in and out."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.artifact import replacing
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource, Size, as_size
from edgeship.toolkit.graph.edit import EXPORT_AGAIN, add_constant, constant, set_constant
from edgeship.toolkit.graph.ending import Ending, class_count, restore, truncate_to_logits
from edgeship.toolkit.graph.layout import InputForm, input_form_of
from edgeship.toolkit.graph.load import load
from edgeship.toolkit.graph.standard import FLOATS, is_quantized

if TYPE_CHECKING:
    from edgeship.toolkit.graph.normalization import (
        InputNormalization,  # which reads graphs with what is below
    )

__all__ = [
    "Classifier",
    "add_constant",
    "constant",
    "copy",
    "read",
    "read_classifier",
    "save",
    "save_as_given",
    "set_constant",
]
PARAMETER_TYPES = frozenset(
    {ir.DataType.FLOAT, *FLOATS, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32}  # INT64: shapes
)
PARAMETER_INPUTS = {  # where quantized operators have weights and biases, if not first
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
}

NOTES = "edgeship.notes"  # key of the metadata that keeps `Classifier.notes`


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
        preprocess_source: Origin of `preprocess`, where its metadata has that.
        ending: What the file has behind the logits and `model` has not, as a Softmax.
        notes: What was converted to read it, for its user.
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
    preprocess_source: PreprocessSource | None = None
    ending: Ending | None = None
    notes: tuple[str, ...] = ()
    normalization: InputNormalization | None = None

    @property
    def size(self) -> Size | None:
        """Height and width of the image in pixels; None if one is dynamic."""
        return None if self.height is None or self.width is None else as_size(self.height, self.width)


def read(path: Path, *, quantizable: bool = False, output: str | None = None) -> Classifier:
    """Read an ONNX image classifier, float or quantized.

    Args:
        path: The file.
        quantizable: Whether a float graph is read as one that can be quantized: in float32, in standard
            operators, and in an opset from 13 to 17 where it has a form there.
        output: Name of the logits, where the graph has several outputs.

    Raises:
        ModelError: The file is absent, cut off, or not an image classifier.
    """
    loaded = load(path, float_only=quantizable, output=output)
    model, graph = loaded.model, loaded.model.graph
    images = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(images) != 1:
        raise ModelError(
            f"{path.name} has {len(images)} inputs; one is expected",
            hint="export it with the images as its only input",
        )
    image, logits = images[0], graph.outputs[0]
    shape, result, number = _dims(image), _dims(logits), class_count(logits)
    stored = input_form_of(image)
    if stored.layout == "NHWC":
        shape = (shape[0], shape[3], *shape[1:3])
    if len(shape) != 4 or number is None or shape[1] is None:
        raise ModelError(
            f"{path.name} maps {image.name} {shape} to {logits.name} {result}; (N, C, H, W) to (N, classes) "
            "is expected",
            hint=_cure(shape, result),
        )
    if None not in {shape[0], result[0]} and shape[0] != result[0]:
        raise ModelError(
            f"{path.name} maps {shape[0]} images to {result[0]} rows of logits",
            hint="export it with one row for each image, or with a batch of 1",
        )
    if shape[0] is None and result[0] is not None:
        raise ModelError(
            f"{path.name} maps any number of images to {result[0]} rows of logits",
            hint="export it with a fixed batch, or with one row for each image",
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
        number,
        _parameters(graph),
        any(is_quantized(node) for node in graph),
        _preprocess(model),
        stored == InputForm("NHWC", "uint8"),
        loaded.form,
        loaded.converted,
        _preprocess_source(model),
        None,
        (*_notes(model), *loaded.notes),
    )


def read_classifier(path: Path | Classifier, output: str | None = None) -> Classifier:
    """Read a float classifier that is to be quantized, each BatchNormalization in the layer before it.

    Its output are the logits (N, classes); what the file has behind them, as a Softmax, is its `ending`.

    Args:
        path: The file; what was read of it comes back as it is.
        output: Name of the logits, where the graph has several outputs.

    Raises:
        ModelError: As `read`; or it is quantized already, takes another type, or holds NaN weights.
    """
    from edgeship.toolkit.graph.fold import (  # they edit with the functions below
        fold_batchnorms,
        fold_channel_permutations,
    )
    from edgeship.toolkit.graph.normalization import find_input_normalization

    if isinstance(path, Classifier):
        return path
    found = read(path, quantizable=True, output=output)
    for node in found.model.graph:
        if is_quantized(node):
            raise ModelError(
                f"{path.name} is quantized already: node '{node.name}' is a {node.op_type}",
                hint="start from the float32 model it was made from",
            )
    tensors = [*found.model.graph.inputs, *found.model.graph.outputs]
    for value in tensors:
        if value.dtype != ir.DataType.FLOAT:
            raise ModelError(
                f"'{value.name}' of {path.name} is {value.dtype}, not float32", hint=EXPORT_AGAIN
            )
    for name, value in found.model.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and not _allowed(value):
            raise ModelError(
                f"weight '{name}' of {path.name} holds NaN or infinite values",
                hint="the training diverged, or the file is damaged; use another checkpoint",
            )
    fold_channel_permutations(found.model)
    fold_batchnorms(found.model)
    ending = truncate_to_logits(found.model)
    notes = found.notes
    normalization = find_input_normalization(found.model, are_pixels=found.form.dtype == "uint8")
    if ending is not None and ending.softmax:
        notes = (*notes, "fitted and measured on the logits in front of the Softmax")
    if notes:
        found.model.metadata_props[NOTES] = json.dumps(notes)
    return replace(
        found,
        parameters=_parameters(found.model.graph),
        output=str(found.model.graph.outputs[0].name),
        ending=ending,
        notes=notes,
        normalization=normalization,
    )


def save(model: ir.Model, path: Path) -> None:
    """Write a graph; the file appears complete or not at all."""
    with replacing(path) as temporary:
        ir.save(model, temporary)


def save_as_given(model: ir.Model, graph: Classifier, path: Path) -> None:
    """Write a graph that was made of `graph`, its end as in the file that `graph` was read from.

    Args:
        model: The graph; it is changed.
        graph: What `read_classifier` gave.
        path: The file to write.
    """
    if graph.ending is not None:
        restore(model, graph.ending)
    save(model, path)


def copy(model: ir.Model) -> ir.Model:
    """A copy whose nodes and initializers can be edited apart; arrays are shared until they are replaced."""
    return model.clone()


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
    if len([size for size in result[1:] if size != 1]) > 1 or len(result) < 2:
        return "its output must be the logits: (N, classes), one number a class"
    return "export it with a fixed number of classes"


def _parameters(graph: ir.Graph) -> int:
    """Weights and biases, in whatever type they are stored; scales and zero points are none."""
    scales = {
        id(value)
        for node in graph
        if is_quantized(node)
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
    return 0 if value.const_value is None else int(value.const_value.size)


def _notes(model: ir.Model) -> tuple[str, ...]:
    """Notes that were written when the file was converted."""
    try:
        content = json.loads(model.metadata_props.get(NOTES, "[]"))
    except ValueError:
        return ()
    return tuple(map(str, content)) if isinstance(content, list) else ()


def _preprocess(model: ir.Model) -> Preprocess | None:
    text = model.metadata_props.get("preprocess")
    if not text:
        return None
    try:
        return Preprocess.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError):
        return None  # somebody else's metadata of the same name


def _preprocess_source(model: ir.Model) -> PreprocessSource | None:
    text = model.metadata_props.get("preprocess_source")
    return cast(PreprocessSource, text) if text in get_args(PreprocessSource) else None
