"""The float reference: a graph in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray, PixelArray


class Reference:
    """Runs a float graph on one thread and gives any of its tensors; threads may share it.

    Attributes:
        input: Name of the images.

    Args:
        model: The graph; images come in batches of its own size.
        outputs: Names of the tensors to give, in this order; they must be outputs of the graph.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
    """

    def __init__(self, model: ir.Model, outputs: Sequence[str]) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1  # images side by side are faster, and do not wait for each other
        self._outputs = list(outputs)
        self.input = str(model.graph.inputs[0].name)
        try:
            self._session: Any = onnxruntime.InferenceSession(
                ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime raises bare exceptions of its own
            raise ModelError(
                f"ONNX Runtime refuses the graph: {str(error).splitlines()[0]}",
                hint="check it with onnx.checker, and export it again",
            ) from error

    def run(self, images: FloatArray | PixelArray) -> list[FloatArray]:
        """The asked tensors for images, as the graph takes them."""
        result: list[FloatArray] = self._session.run(self._outputs, {self.input: images})
        return result
