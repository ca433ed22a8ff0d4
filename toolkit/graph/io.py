"""Reading and writing of ONNX classifiers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.artifact import replacing
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource, Size, as_size
from edgeship.toolkit.graph.edit import EXPORT_AGAIN, constant
from edgeship.toolkit.graph.ending import Ending, class_count, restore, truncate_to_logits
from edgeship.toolkit.graph.fold import fold_batchnorms, fold_channel_permutations
from edgeship.toolkit.graph.layout import InputForm, input_form_of
from edgeship.toolkit.graph.load import load
from edgeship.toolkit.graph.normalization import InputNormalization, find_input_normalization
from edgeship.toolkit.graph.standard import FLOATS, is_quantized

PARAMETER_TYPES = frozenset(
    {ir.DataType.FLOAT, *FLOATS, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32}  # INT64: shapes
)
PARAMETER_INPUTS = {  # input positions of weights and biases, if not the first
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
}

NOTES = "edgeship.notes"  # metadata key of `Classifier.notes`


@dataclass(frozen=True, slots=True)
class Classifier:
    """An ONNX classifier with its input, output and metadata.

    Attributes:
        path: Its file.
        model: The graph, shapes inferred, constants lifted to initializers.
        input: Name of the image input, float32 (N, channels, height, width) or as in `form`.
        output: Name of the logits, float32 (N, classes).
        batch: Images per inference; None is dynamic.
        channels: Channels of the image.
        height: Height of the image in pixels; None is dynamic.
        width: Width of the image in pixels; None is dynamic.
        classes: Number of classes.
        parameters: Number of weights and biases.
        quantized: Whether it has integer operators or Q/DQ nodes.
        preprocess: Preprocessing from its metadata; None without.
        takes_pixels: Whether the input is uint8 (N, height, width, channels) and normalized inside.
        form: Input layout and type of the file; a graph read for quantization is float32 NCHW.
        converted: Whether `model` has another layout or input type than the file.
        preprocess_source: Origin of `preprocess` from its metadata; None without.
        ending: Nodes of the file after the logits (e.g. a Softmax), removed from `model`.
        notes: Conversions made on reading, for the user.
        normalization: Normalization of raw pixels in a graph read for quantization; None without.
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
        """Return height and width of the image in pixels; None if one is dynamic."""
        return None if self.height is None or self.width is None else as_size(self.height, self.width)


def read(path: Path, *, quantizable: bool = False, output: str | None = None) -> Classifier:
    """Read an ONNX image classifier, float or quantized.

    Args:
        path: The file.
        quantizable: Whether to convert a float graph for quantization: to float32, standard operators,
            and an opset from 13 to 17 if it has a form there.
        output: Name of the logits, for a graph with several outputs.

    Raises:
        ModelError: The file is absent, truncated, or not an image classifier.
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
    shape, result, count = _dims(image), _dims(logits), class_count(logits)
    form = input_form_of(image)
    if form.layout == "NHWC":
        shape = (shape[0], shape[3], *shape[1:3])
    if len(shape) != 4 or count is None or shape[1] is None:
        raise ModelError(
            f"{path.name} maps {image.name} {shape} to {logits.name} {result}; (N, C, H, W) to (N, classes) "
            "is expected",
            hint=_shape_hint(shape, result),
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
        count,
        _parameters(graph),
        any(is_quantized(node) for node in graph),
        _preprocess(model),
        form == InputForm("NHWC", "uint8"),
        loaded.form,
        loaded.converted,
        _preprocess_source(model),
        None,
        (*_notes(model), *loaded.notes),
    )


def read_classifier(path: Path | Classifier, output: str | None = None) -> Classifier:
    """Read a float classifier for quantization, with folded BatchNormalization.

    Its output is the logits (N, classes); nodes after them (e.g. a Softmax) are in `ending`.

    Args:
        path: The file; a `Classifier` is returned unchanged.
        output: Name of the logits, for a graph with several outputs.

    Raises:
        ModelError: As `read`; or the graph is quantized already, not float32, or has NaN weights.
    """
    if isinstance(path, Classifier):
        return path
    graph = read(path, quantizable=True, output=output)
    for node in graph.model.graph:
        if is_quantized(node):
            raise ModelError(
                f"{path.name} is quantized already: node '{node.name}' is a {node.op_type}",
                hint="give the float32 model",
            )
    tensors = [*graph.model.graph.inputs, *graph.model.graph.outputs]
    for value in tensors:
        if value.dtype != ir.DataType.FLOAT:
            raise ModelError(
                f"'{value.name}' of {path.name} is {value.dtype}, not float32", hint=EXPORT_AGAIN
            )
    for name, value in graph.model.graph.initializers.items():
        if value.dtype == ir.DataType.FLOAT and not _is_valid_constant(value):
            raise ModelError(
                f"weight '{name}' of {path.name} has NaN or infinite values; finite values are expected",
                hint="give another checkpoint",
            )
    fold_channel_permutations(graph.model)
    fold_batchnorms(graph.model)
    ending = truncate_to_logits(graph.model)
    notes = graph.notes
    normalization = find_input_normalization(graph.model, are_pixels=graph.form.dtype == "uint8")
    if ending is not None and ending.softmax:
        notes = (*notes, "fitted and measured on the logits before the Softmax")
    if notes:
        graph.model.metadata_props[NOTES] = json.dumps(notes)
    return replace(
        graph,
        parameters=_parameters(graph.model.graph),
        output=str(graph.model.graph.outputs[0].name),
        ending=ending,
        notes=notes,
        normalization=normalization,
    )


def save(model: ir.Model, path: Path) -> None:
    """Write a graph to a file, atomically."""
    with replacing(path) as temporary:
        ir.save(model, temporary)


def save_with_ending(model: ir.Model, graph: Classifier, path: Path) -> None:
    """Write a graph derived from `graph`, with the nodes after the logits restored.

    Args:
        model: The graph; changed.
        graph: Result of `read_classifier`.
        path: The file to write.
    """
    if graph.ending is not None:
        restore(model, graph.ending)
    save(model, path)


def copy(model: ir.Model) -> ir.Model:
    """Copy nodes and initializers of a graph; arrays are shared until replaced."""
    return model.clone()


def _dims(value: ir.Value) -> tuple[int | None, ...]:
    if value.shape is None:
        return ()
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def _shape_hint(shape: tuple[int | None, ...], result: tuple[int | None, ...]) -> str:
    """Return the hint for a graph with a wrong input or output shape."""
    if len(shape) != 4:
        return "export it with images as input: (N, C, H, W), i.e. batch, channels, height, width"
    if shape[1] is None:
        return "export it with a fixed number of channels"
    if len([size for size in result[1:] if size != 1]) > 1 or len(result) < 2:
        return "export it with the logits as output: (N, classes), one number per class"
    return "export it with a fixed number of classes"


def _parameters(graph: ir.Graph) -> int:
    """Count weights and biases of any type, without scales and zero points."""
    scales = {
        id(value)
        for node in graph
        if is_quantized(node)
        for place, value in enumerate(node.inputs)
        if place not in PARAMETER_INPUTS.get(node.op_type, (0,))
    }
    initializers = graph.initializers.values()
    return sum(
        _size(value) for value in initializers if value.dtype in PARAMETER_TYPES and id(value) not in scales
    )


def _is_valid_constant(value: ir.Value) -> bool:
    """Return True if a constant is finite; a Pad or Clip may also have infinite values."""
    array = constant(value)
    bounds = all(node.op_type in {"Pad", "Clip"} for node in value.consumers())
    return not np.isnan(array).any() if bounds else bool(np.isfinite(array).all())


def _size(value: ir.Value) -> int:
    return 0 if value.const_value is None else int(value.const_value.size)


def _notes(model: ir.Model) -> tuple[str, ...]:
    """Return the notes from the metadata."""
    try:
        content = json.loads(model.metadata_props.get(NOTES, "[]"))
    except (ValueError, RecursionError):
        return ()
    return tuple(map(str, content)) if isinstance(content, list) else ()


def _preprocess(model: ir.Model) -> Preprocess | None:
    text = model.metadata_props.get("preprocess")
    if not text:
        return None
    try:
        return Preprocess.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None  # foreign metadata with the same key


def _preprocess_source(model: ir.Model) -> PreprocessSource | None:
    text = model.metadata_props.get("preprocess_source")
    return cast(PreprocessSource, text) if text in get_args(PreprocessSource) else None
