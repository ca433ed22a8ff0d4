"""Graphs of the fake TensorRT: a made-up graph in JSON, or an ONNX file run by ONNX Runtime."""

import array
import json


class Graph:
    """shape (N or -1, C, H, W), classes; `fault` names the step that fails with `message`.

    `unsigned`: images are uint8, as (N, H, W, C).
    """

    def __init__(self, data, shape, classes, quantized, fault=None, message="", warnings=(), unsigned=False):
        self.unsigned = unsigned
        self.data, self.shape, self.classes, self.quantized = data, tuple(shape), classes, quantized
        self.fault, self.message, self.warnings = fault, message, warnings
        self.pixels = shape[1] * shape[2] * shape[3]
        self._session = None

    def run(self, images, batch):
        """Raw logits of raw images; the made-up graph sums every classes-th pixel."""
        if self.data.startswith(b"{"):
            values, logits = array.array("B" if self.unsigned else "f", images), array.array("f")
            for start in range(0, batch * self.pixels, self.pixels):
                pixels = values[start : start + self.pixels]
                logits.extend(sum(pixels[k :: self.classes]) for k in range(self.classes))
            return logits.tobytes()
        import numpy
        import onnxruntime

        if self._session is None:
            self._session = onnxruntime.InferenceSession(self.data, providers=["CPUExecutionProvider"])
        kind = numpy.uint8 if self.unsigned else numpy.float32
        inputs = numpy.frombuffer(images, kind).reshape((batch, *self.shape[1:]))
        return self._session.run(None, {self._session.get_inputs()[0].name: inputs})[0].tobytes()


def read(data):
    """Parse either kind; ValueError with the parser's words when it is refused."""
    if data.startswith(b"{"):
        record = json.loads(data)
        if record.get("fault") == "parse":
            raise ValueError(record["message"])
        fault, message = record.get("fault"), record.get("message", "")
        quantized, warnings = record.get("quantized", False), record.get("warnings", ())
        unsigned = record.get("unsigned", False)
        return Graph(data, record["shape"], record["classes"], quantized, fault, message, warnings, unsigned)
    try:
        import onnx

        model = onnx.load_from_string(data)
    except Exception:
        raise ValueError("Failed to parse ONNX model") from None
    image, logits = model.graph.input[0].type.tensor_type, model.graph.output[0].type.tensor_type
    sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in image.shape.dim]
    quantized = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    unsigned = image.elem_type == onnx.TensorProto.UINT8
    return Graph(data, sizes, logits.shape.dim[-1].dim_value, quantized, unsigned=unsigned)
