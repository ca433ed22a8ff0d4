"""Numeric check of a graph that was converted to another layout or type."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Size, sides
from edgeship.toolkit.graph.io import Classifier
from edgeship.toolkit.graph.layout import InputForm
from edgeship.toolkit.graph.reference import Reference

MAX_ERROR = 1e-4  # relative to the largest logit
IMAGES = 2  # random images for a dynamic batch


def check_conversion(graph: Classifier, size: Size) -> float | None:
    """Return `conversion_error` of a converted graph; 0 if it was not converted.

    Raises:
        ModelError: The error is above `MAX_ERROR`.
    """
    error = conversion_error(graph, size) if graph.converted else 0.0
    if error is not None and not error <= MAX_ERROR:
        raise ModelError(
            f"{graph.path.name} converted to {InputForm()} differs by {error:.1e} of the largest logit; "
            f"at most {MAX_ERROR:.0e} is expected",
            hint=f"export it with images as {InputForm()}",
        )
    return error


def conversion_error(graph: Classifier, size: Size) -> float | None:
    """Compare the logits of a file and of its converted graph on random pixels.

    Args:
        graph: The classifier.
        size: Height and width of the images in pixels, for dynamic dimensions.

    Returns:
        Largest difference of the logits, relative to the largest logit; None if the file has no float32
        logits.

    Raises:
        ModelError: ONNX Runtime rejects one of the graphs.
    """
    original = ir.load(graph.path)
    ir.external_data.load_to_model(original)
    values = {value.name: value for node in original.graph for value in node.outputs}
    logits = values.get(graph.output)
    halves = any(value.dtype == ir.DataType.FLOAT16 for value in original.graph.initializers.values())
    if logits is None or halves:
        return None
    original.graph.outputs.clear()
    original.graph.outputs.append(logits)
    height, width = (
        fixed or default for fixed, default in zip((graph.height, graph.width), sides(size), strict=True)
    )
    random = np.random.default_rng(0)
    planes = random.integers(0, 256, (graph.batch or IMAGES, graph.channels, height, width)).astype(
        np.float32
    )
    if graph.normalization is None or graph.normalization.scale == 1:
        planes /= np.float32(255)
    pixels = planes.transpose(0, 2, 3, 1) if graph.form.layout == "NHWC" else planes
    pixels = np.ascontiguousarray(pixels, np.uint8 if graph.form.dtype == "uint8" else np.float32)
    (expected,) = Reference(original, [graph.output]).run(pixels)
    (converted,) = Reference(graph.model, [graph.output]).run(planes)
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(expected.reshape(-1) - converted.reshape(-1)).max() / largest)
