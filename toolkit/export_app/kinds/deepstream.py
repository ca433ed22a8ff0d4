"""Configuration of DeepStream's nvinfer, with the std of the channels in the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeship.targets import onnxruntime
from edgeship.targets.runner.imaging import normalize
from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.export_app import Readme, tensorrt_build
from edgeship.toolkit.export_app.source import Source, tensors
from edgeship.toolkit.graph.scalar_input import ScalarInput, to_scalar_input
from edgeship.toolkit.runs.index import RunIndex

TARGETS = ("tensorrt",)
SUMMARY = "nvinfer configuration and graph for NVIDIA DeepStream"
NOISE_IMAGES = 16
SOURCE = "NVIDIA DeepStream 9.2, Gst-nvinfer (docs.nvidia.com/deepstream, DS_plugin_gst-nvinfer)"
FORMS = {
    "unchanged": "The std of the channels are equal: the graph is the run's, with a Softmax.",
    "first weights": "The ratios of the channels' std are in the weights of the first convolution.",
    "multiplication": "A multiplication by the ratios of the channels' std is the first node: the quantized "
    "weights and the integers of every pixel level are those of the run's graph.",
}


def write(source: Source, folder: Path) -> Readme:
    """Write the graph with one scale, labels and the configuration; compare it with the run's graph."""
    source = _float_input(source)
    preprocess = Preprocess.from_json(source.record["preprocess"])
    converted = to_scalar_input(source.graph, preprocess, folder / "model.onnx")
    checked = _compare(source, converted, folder / "model.onnx")
    labels = ";".join(" ".join(name.replace(";", ",").split()) for name in source.how.labels)
    write_text(folder / "labels.txt", f"{labels}\n")
    write_text(folder / "config_infer.txt", _configuration(source, converted))
    height, width = source.how.crop
    lossy = [name for name in source.how.labels if ";" in name]
    return Readme(
        start=f"{tensorrt_build.command(source)}\n"
        "gst-launch-1.0 uridecodebin uri=file:///path/video.mp4 ! m.sink_0 \\\n"
        f"  nvstreammux name=m batch-size=1 width={width} height={height} \\\n"
        "  ! nvinfer config-file-path=config_infer.txt ! fakesink",
        text=(
            FORMS[converted.form],
            "Build the engine first, as above: nvinfer would build INT8 only with a calibration file, and "
            "falls back to FP16 for a graph with Q/DQ nodes.",
            f"nvinfer scales whole frames to {width} x {height} with its own filter. The pixels are those of "
            "the run only for frames that arrive in that size, resized and cropped as below; `nvvideoconvert "
            "src-crop=LEFT:TOP:WIDTH:HEIGHT` crops. `edgeship prove` measures the difference.",
            *([f"nvinfer separates labels by `;`: it is `,` in {len(lossy)} of them."] if lossy else []),
        ),
        checked=f"{checked} DeepStream itself: not run here. The keys follow {SOURCE}.",
        pixels=source.pixels,
    )


def _float_input(source: Source) -> Source:
    """Return the source with the variant's graph that takes float32, from the store if need be."""
    if not source.takes_pixels:
        return source
    folders = RunIndex.read(source.run).folders
    graph = source.variant.graph(folders) if {"quantize", "export"} <= set(folders) else None
    if graph is None or not graph.is_file():
        raise DataError(
            f"nvinfer feeds float32, {source.graph} takes uint8, and the store has no other graph of the run",
            hint="run the recipe with --set export.input=float32",
        )
    inputs, outputs = tensors(graph)
    return replace(source, graph=graph, input=inputs[0], output=outputs[0])


def _compare(source: Source, converted: ScalarInput, graph: Path) -> str:
    """Return the result of the comparison with the run's graph in ONNX Runtime, on noise."""
    height, width = source.how.crop
    shape = (NOISE_IMAGES, height, width, len(source.how.mean))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with onnxruntime.simulate(source.graph) as session:
        logits = session.infer(normalize(pixels, source.how.mean, source.how.std))
    with onnxruntime.simulate(graph) as session:
        probabilities = session.infer(converted.inputs(pixels))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    difference = float(np.abs(powers / powers.sum(1, keepdims=True) - probabilities).max())
    equal = int((logits.argmax(1) == probabilities.argmax(1)).sum())
    return (
        f"by ONNX Runtime on {NOISE_IMAGES} images of noise: {equal} of {NOISE_IMAGES} classes equal to the "
        f"run's graph, probabilities within {difference:.1e}."
    )


def _configuration(source: Source, converted: ScalarInput) -> str:
    """Return the configuration file; numbers have the digits that a float32 needs."""
    height, width = source.how.crop
    channels = len(source.how.mean)
    batch = source.input.shape[0]
    values = {
        "gpu-id": 0,
        "onnx-file": "model.onnx",
        "model-engine-file": "model.plan",
        "labelfile-path": "labels.txt",
        "batch-size": batch if batch > 0 else 1,
        "network-mode": {"fp32": 0, "int8": 1}.get(source.variant.precision, 2),
        "network-type": 1,
        "process-mode": 1,
        "gie-unique-id": 1,
        "infer-dims": f"{channels};{height};{width}",
        "model-color-format": 0 if channels == 3 else 2,
        "net-scale-factor": f"{converted.scale:.9g}",
        "offsets": ";".join(f"{value:.9g}" for value in converted.offsets),
        "maintain-aspect-ratio": 0,
        "output-blob-names": converted.output,
        "classifier-threshold": 0,
    }
    lines = "".join(f"{key}={_escaped(str(value))}\n" for key, value in values.items())
    return f"# Written by edgeship; the keys follow {SOURCE}. Not run here.\n[property]\n{lines}"


def _escaped(value: str) -> str:
    r"""Return a value of a GLib key file: backslashes and control characters are escaped."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
