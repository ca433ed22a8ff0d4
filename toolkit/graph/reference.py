"""Float reference inference in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray, PixelArray


class Reference:
    """Session of a float graph with one thread; it may be shared between threads.

    Attributes:
        input: Name of the image input.

    Args:
        model: The graph; batches have its own size.
        outputs: Names of the outputs to return, in this order.

    Raises:
        ModelError: ONNX Runtime rejects the graph.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # callers run images in parallel
        self._outputs = list(outputs)
        self.input = str(model.graph.inputs[0].name)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises direct subclasses of Exception
            raise ModelError(
                f"ONNX Runtime rejects the graph: {str(error).splitlines()[0]}",
                hint="check it with `onnx.checker.check_model`",
            ) from error

    def run(self, images: FloatArray | PixelArray) -> list[FloatArray]:
        """Return the requested outputs for images in the input format of the graph."""
        result: list[FloatArray] = self._session.run(self._outputs, {self.input: images})
        return result
