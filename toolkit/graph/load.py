"""Loading of ONNX files into a canonical graph, from any exporter, opset and float type."""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from edgeship.toolkit.core.errors import ModelError, missing
from edgeship.toolkit.core.text import printable
from edgeship.toolkit.graph.dialect import canonicalize, drop_identities
from edgeship.toolkit.graph.edit import constant, set_constant
from edgeship.toolkit.graph.ending import select_output
from edgeship.toolkit.graph.fused import unfuse
from edgeship.toolkit.graph.layout import InputForm, convert_input_to_nchw, input_form_of
from edgeship.toolkit.graph.opset import PORTABLE_OPSET, downgrade_opset
from edgeship.toolkit.graph.padding import make_padding_explicit
from edgeship.toolkit.graph.shapes import infer, mark_dynamic_dimensions
from edgeship.toolkit.graph.simplify import fold_constants, fold_reshape_targets, inline_constant_branches
from edgeship.toolkit.graph.standard import (
    check_layers,
    is_quantized,
    reject_nonstandard_operators,
    reject_training_mode,
    remove_float_casts,
    reshape_scalars,
    to_float32,
)

logging.getLogger("onnx_ir").addHandler(logging.NullHandler())  # its warnings become our errors
SMALL_BYTES = 1024  # largest constants used by inference: shapes, axes, bounds

CHECKPOINTS = {".pth", ".pt", ".safetensors", ".ckpt"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded ONNX file.

    Attributes:
        model: The graph.
        form: Input layout and type of the file.
        converted: Whether the graph has another layout or input type than the file.
        notes: Conversions, for the user.
    """

    model: ir.Model
    form: InputForm
    converted: bool
    notes: tuple[str, ...]


def load(path: Path, *, float_only: bool, output: str | None = None) -> Loaded:
    """Load an ONNX file: constants folded, shapes inferred, one output.

    Args:
        path: The file; external weights are in files in its folder or below.
        float_only: Whether to convert it for quantization: to float32, input (N, C, H, W), standard
            operators, and an opset from 13 to 17 if it has a form there.
        output: Name of the output, if there are several.

    Raises:
        ModelError: The file is absent, truncated, or an unusable graph.
    """
    model = _read(path)
    try:
        return _normalize(model, path.name, float_only=float_only, output=output)
    except ModelError:
        raise
    except Exception as error:  # an invalid graph raises many types
        raise ModelError(
            f"{path.name} is not a valid ONNX graph: {_first_line(error)}",
            hint="check it with `onnx.checker.check_model`",
        ) from error


def load_unchanged(path: Path) -> ir.Model:
    """Load a valid ONNX file as it is; constants become initializers.

    Raises:
        ModelError: The file is absent, truncated, or breaks the definition of an operator.
    """
    model = _read(path)
    try:
        onnx.checker.check_model(str(path))  # the file: onnx-ir drops duplicates on reading
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        _load_constants(model)
    except Exception as error:  # an invalid graph raises many types
        raise ModelError(
            f"{path} is not a valid ONNX model: {_first_line(error)}",
            hint="export it again; it may have been cut off",
        ) from error
    return model


def _read(path: Path) -> ir.Model:
    if not path.is_file():
        raise missing(ModelError(f"no such file: {path}", hint="check the path"))
    if not path.stat().st_size:
        raise ModelError(f"{path.name} is empty, expected an ONNX file", hint="export it again")
    try:
        model = ir.load(path)
        _check_external(model, path)
        _load_constants(model)
        _escape_names(model)
    except ModelError:
        raise
    except Exception as error:  # protobuf and onnx-ir raise many types for a damaged file
        if path.suffix.lower() not in CHECKPOINTS and zipfile.is_zipfile(path):
            raise ModelError(
                f"{path.name} is a zip file, as PyTorch writes checkpoints, not an ONNX file",
                hint="rename a checkpoint to end in .pth",
            ) from error
        raise ModelError(
            f"{path.name} is not a readable ONNX file: {_first_line(error)}",
            hint="a checkpoint is a MODEL of `edgeship run` and `edgeship prune`"
            if path.suffix.lower() in CHECKPOINTS
            else "export it again",
        ) from error
    return model


def _escape_names(model: ir.Model) -> None:
    """Escape control characters in the names of nodes and tensors, which reach terminals and reports."""
    nodes = list(model.graph.all_nodes())
    values = {*model.graph.inputs, *model.graph.initializers.values()}
    named: list[ir.Node | ir.Value] = [*nodes, *values.union(*(node.outputs for node in nodes))]
    for each in named:
        if each.name and not each.name.isprintable():
            each.name = printable(each.name)


def external_files(path: Path) -> list[Path]:
    """List the external weight files of an ONNX file; [] if it cannot be read."""
    try:
        model = ir.load(path)
    except Exception:  # `load` reports the error
        return []
    return sorted({path.parent / str(tensor.location) for tensor in _external(model) if _is_inside(tensor)})


def _normalize(model: ir.Model, file: str, *, float_only: bool, output: str | None) -> Loaded:
    notes: list[str | None] = []
    float_only = float_only and not any(is_quantized(node) for node in model.graph)
    mark_dynamic_dimensions(model)
    model = canonicalize(model, raised=float_only)
    select_output(model, output, file)
    reject_training_mode(model)
    if float_only:
        notes.append(unfuse(model))
        notes.append(to_float32(model))
    infer(model)
    while fold_constants(model) or inline_constant_branches(model):
        infer(model)
    drop_identities(model)  # moved out of the branches
    images = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    form = input_form_of(images[0]) if len(images) == 1 else InputForm()
    converted = False
    if float_only:
        remove_float_casts(model)
        converted = len(images) == 1 and convert_input_to_nchw(model, images[0])
    reshape_scalars(model)
    make_padding_explicit(model)
    fold_reshape_targets(model)
    if float_only:
        reject_nonstandard_operators(model)
        notes.append(_lower_opset(model))
        RemoveUnusedOpsetsPass()(model)
    RemoveUnusedNodesPass()(model)
    _check(model, full=float_only)
    if float_only:
        check_layers(model)
    return Loaded(model, form, converted, tuple(note for note in notes if note))


def _lower_opset(model: ir.Model) -> str | None:
    opset = model.graph.opset_imports.get("", PORTABLE_OPSET)
    if opset <= PORTABLE_OPSET:
        return None
    unsupported = downgrade_opset(model, PORTABLE_OPSET)
    infer(model)
    if unsupported is not None:
        return f"opset {opset} was kept: opset {PORTABLE_OPSET} has no form of {unsupported}"
    return f"converted from opset {opset} to {PORTABLE_OPSET}"


def _check(model: ir.Model, *, full: bool) -> None:
    """Check a graph by the definitions of its operators, without large weights.

    Args:
        model: The graph.
        full: Whether to check shapes and types too.

    Raises:
        ValidationError: A node breaks the definition of its operator.
        InferenceError: Shapes or types contradict each other.
    """
    skeleton = model.clone()
    graph = skeleton.graph
    for value in list(graph.initializers.values()):
        if value.const_value is not None and value.const_value.nbytes > SMALL_BYTES:
            graph.initializers.pop(str(value.name))
            value.const_value = None
            graph.inputs.append(value)
    onnx.checker.check_model(ir.to_proto(skeleton), full_check=full)


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    return [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]


def _check_external(model: ir.Model, path: Path) -> None:
    """Check that external weight files exist below the folder of the graph.

    Raises:
        ModelError: A file is absent or outside the folder.
    """
    for tensor in _external(model):
        location = Path(tensor.location)
        if not _is_inside(tensor):
            raise ModelError(
                f"{path.name} has weight '{tensor.name}' outside its folder: {location}",
                hint="save it again with its external data in the folder of the graph",
            )
        if not (path.parent / location).is_file():
            raise ModelError(
                f"{path.name} has weight '{tensor.name}' in {location}, which is not there",
                hint=f"copy it to {path.parent / location}",
            )


def _is_inside(tensor: ir.ExternalTensor) -> bool:
    """Return True if a tensor is stored below the folder of its graph."""
    location = Path(tensor.location)
    return not location.is_absolute() and ".." not in location.parts


def _load_constants(model: ir.Model) -> None:
    """Copy the array of each initializer, to release the file's buffer, and set its shape and type."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            array = np.array(constant(value))
            set_constant(value, array)
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(tensor.dtype)


def _first_line(error: BaseException) -> str:
    """Return the first line of the root cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
