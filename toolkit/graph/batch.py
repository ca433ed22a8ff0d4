"""The number of images of one inference: another one than a graph was exported with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.graph.edit import add_constant, constant

MAX_PARITY = 1e-4  # relative to the largest logit: more is no rounding


def release(model: ir.Model, batch: int) -> None:
    """Have every Reshape that states the batch copy it from its input, so that it may be another.

    Args:
        model: A graph with its shapes.
        batch: The batch it was exported with.
    """
    for node in model.graph:
        data, wanted = [*node.inputs, None, None][:2]
        if node.op_type != "Reshape" or data is None or wanted is None or wanted.const_value is None:
            continue
        sizes = constant(wanted).copy()
        states = sizes.ndim == 1 and sizes.size > 0 and sizes[0] == batch
        if states and data.shape and data.shape[0] == batch and not node.attributes.get_int("allowzero", 0):
            sizes[0] = 0
            node.replace_input_with(1, add_constant(model.graph, f"{node.name}/shape", sizes))


def check(before: Path, after: Path, images: FloatArray, batches: tuple[int, int]) -> float:
    """Compare the logits of a graph with those of the graph that it was made from.

    Args:
        before: The file whose batch is the first of `batches`.
        after: The file whose batch is the second.
        images: So many images that both divide them, (N, C, H, W).
        batches: Images of one inference of each.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        ModelError: The graph cannot run another batch, or computes something else with it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    results = []
    for path, batch in zip((before, after), batches, strict=True):
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            name = session.get_inputs()[0].name
            parts = np.split(images, len(images) // batch)
            results.append(np.concatenate([session.run(None, {name: part})[0] for part in parts]))
        except Exception as error:  # ONNX Runtime raises bare exceptions of its own
            raise _fixed(batches, str(error).strip().splitlines()[0]) from error
    if results[0].shape != results[1].shape:
        raise _fixed(batches, f"logits of shape {results[1].shape}, not {results[0].shape}")
    largest = max(float(np.abs(results[0]).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(results[0] - results[1]).max()) / largest
    if not difference <= MAX_PARITY:
        raise _fixed(batches, f"logits differ by {difference:.1e} of the largest")
    return difference


def _fixed(batches: tuple[int, int], reason: str) -> ModelError:
    return ModelError(
        f"the graph was exported for a batch of {batches[0]} and cannot run one of {batches[1]}: {reason}",
        hint=f"export it with a dynamic batch, or set export.batch={batches[0]}",
    )
