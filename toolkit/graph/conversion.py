"""Check that a file read in another layout or type computes what the file computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.tensors import Size, sides
from edgeship.toolkit.graph.io import Classifier
from edgeship.toolkit.graph.layout import InputForm
from edgeship.toolkit.graph.reference import Reference

MAX_ERROR = 1e-4  # relative to the largest logit
IMAGES = 2  # of random pixels, where the batch is open


def check_conversion(graph: Classifier, size: Size) -> float | None:
    """Return `conversion_error` of what was converted; 0 where nothing was.

    Raises:
        ModelError: What was read computes something else than the file.
    """
    found = conversion_error(graph, size) if graph.converted else 0.0
    if found is not None and not found <= MAX_ERROR:
        raise ModelError(
            f"{graph.path.name} read as {InputForm()} differs by {found:.1e} of the largest logit",
            hint=f"at most {MAX_ERROR:.0e} is rounding; export it with images as {InputForm()}",
        )
    return found


def conversion_error(graph: Classifier, size: Size) -> float | None:
    """Run the file and what was read of it on the same random pixels.

    Args:
        graph: What was read of a file.
        size: Of the images in pixels, where the file leaves it open.

    Returns:
        Largest difference of the logits, relative to the largest logit; None where the file does not hold
        the logits in float32.

    Raises:
        ModelError: ONNX Runtime refuses one of them.
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
        own or asked for own, asked in zip((graph.height, graph.width), sides(size), strict=True)
    )
    random = np.random.default_rng(0)
    planes = random.integers(0, 256, (graph.batch or IMAGES, graph.channels, height, width)).astype(
        np.float32
    )
    if graph.normalization is None or graph.normalization.scale == 1:
        planes /= np.float32(255)
    given = planes.transpose(0, 2, 3, 1) if graph.form.layout == "NHWC" else planes
    given = np.ascontiguousarray(given, np.uint8 if graph.form.dtype == "uint8" else np.float32)
    (expected,) = Reference(original, [graph.output]).run(given)
    (got,) = Reference(graph.model, [graph.output]).run(planes)
    largest = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return float(np.abs(expected.reshape(-1) - got.reshape(-1)).max() / largest)
