"""Read ONNX files by one TensorRT-RTX, without a GPU: python parser_worker.py FOLDER OUT."""

import json
import sys
from pathlib import Path


def read(trt, path):
    """Return what the parser makes of a file: errors, warnings, and the Q and DQ layers of the network."""

    class Logger(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.warnings = []

        def log(self, severity, message):
            if severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(message)

    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    accepted = parser.parse_from_file(str(path))
    layers = {}
    for number in range(network.num_layers if accepted else 0):
        layer = network.get_layer(number)
        kind = {trt.LayerType.QUANTIZE: trt.IQuantizeLayer, trt.LayerType.DEQUANTIZE: trt.IDequantizeLayer}
        if layer.type in kind:
            layer.__class__ = kind[layer.type]
            scale, integers = layer.get_input(1), layer.get_output(0)
            if layer.type == trt.LayerType.DEQUANTIZE:
                integers = layer.get_input(0)
            axis = layer.axis if len(tuple(scale.shape)) else None
            layers[layer.name] = {"axis": axis, "type": integers.dtype.name.lower()}
    return {
        "accepted": accepted,
        "errors": [parser.get_error(number).desc() for number in range(parser.num_errors)],
        "warnings": logger.warnings,
        "layers": layers,
    }


if __name__ == "__main__":
    import tensorrt_rtx

    results = {path.stem: read(tensorrt_rtx, path) for path in sorted(Path(sys.argv[1]).glob("*.onnx"))}
    Path(sys.argv[2]).write_text(json.dumps({"version": tensorrt_rtx.__version__, "graphs": results}))
