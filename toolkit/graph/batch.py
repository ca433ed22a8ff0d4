"""Change of the batch size of an exported graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.graph.edit import add_constant, constant

MAX_PARITY = 1e-4  # largest rounding error, relative to the largest logit


def make_batch_dynamic(model: ir.Model, batch: int) -> None:
    """Replace the fixed batch in Reshape targets by a copy of the input's batch.

    Args:
        model: A graph with inferred shapes; changed.
        batch: Batch size of the export.
    """
    for node in model.graph:
        data, target = [*node.inputs, None, None][:2]
        if node.op_type != "Reshape" or data is None or target is None or target.const_value is None:
            continue
        sizes = constant(target).copy()
        is_fixed = sizes.ndim == 1 and sizes.size > 0 and sizes[0] == batch
        if is_fixed and data.shape and data.shape[0] == batch and not node.attributes.get_int("allowzero", 0):
            sizes[0] = 0
            node.replace_input_with(1, add_constant(model.graph, f"{node.name}/shape", sizes))


def check_batch_change(before: Path, after: Path, images: FloatArray, batches: tuple[int, int]) -> float:
    """Compare the logits of a graph before and after a change of its batch size.

    Args:
        before: The original file.
        after: The changed file.
        images: Images (N, C, H, W); N is a multiple of both batch sizes.
        batches: Batch sizes of `before` and `after`.

    Returns:
        The largest difference, relative to the largest logit.

    Raises:
        ModelError: The graph cannot run the other batch size, or computes other logits.
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
        except Exception as error:  # ONNX Runtime raises direct subclasses of Exception
            raise _fixed(batches, str(error).strip().splitlines()[0]) from error
    if results[0].shape != results[1].shape:
        raise _fixed(batches, f"logits of shape {results[1].shape}; {results[0].shape} is expected")
    largest = max(float(np.abs(results[0]).max()), float(np.finfo(np.float32).tiny))
    difference = float(np.abs(results[0] - results[1]).max()) / largest
    if not difference <= MAX_PARITY:
        raise _fixed(batches, f"logits differ by {difference:.1e} of the largest; at most {MAX_PARITY:.0e}")
    return difference


def _fixed(batches: tuple[int, int], reason: str) -> ModelError:
    return ModelError(
        f"the graph was exported for a batch of {batches[0]} and cannot run one of {batches[1]}: {reason}",
        hint=f"export it with a dynamic batch, or set export.batch={batches[0]}",
    )
