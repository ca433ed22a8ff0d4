"""Model repository of NVIDIA Triton Inference Server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.export_app import Readme, program, tensorrt_build
from edgeship.toolkit.export_app.source import Source, Tensor

TARGETS = ("tensorrt", "onnxruntime", "openvino")
SUMMARY = "model repository of NVIDIA Triton: config.pbtxt, version folder, labels; a client"
MOST_IMAGES = 8  # of a batch that Triton forms, of an engine with a dynamic batch
BACKENDS = {  # target -> lines of config.pbtxt
    "tensorrt": ('platform: "tensorrt_plan"', 'default_model_filename: "model.plan"', "KIND_GPU"),
    "onnxruntime": ('platform: "onnxruntime_onnx"', 'default_model_filename: "model.onnx"', "KIND_CPU"),
    "openvino": ('backend: "openvino"', 'default_model_filename: "model.xml"', "KIND_CPU"),
}
TYPES = {"FLOAT": "FP32", "FLOAT16": "FP16", "UINT8": "UINT8"}
SOURCE = "protobuf/model_config.proto of triton-inference-server/common"


def write(source: Source, folder: Path) -> Readme:
    """Write the repository and the client."""
    target = source.variant.target
    model = folder / "repository" / source.name
    (model / "1").mkdir(parents=True)
    if target == "tensorrt":  # built on the device, in the version folder
        shutil.copyfile(source.graph, folder / "model.onnx")
        place = f"repository/{source.name}/1/model.plan"
        build = tensorrt_build.command(source, plan=place, batch=MOST_IMAGES) + "\n"
    else:
        build = ""
        for file in source.engine_files():
            shutil.copyfile(file, model / "1" / file.name)
    write_text(model / "labels.txt", source.labels_text())
    write_text(model / "config.pbtxt", _configuration(source))
    source.copy_client(folder)
    write_text(folder / "client.py", program("kserve_client.py"))
    return Readme(
        start=f"{build}tritonserver --model-repository=$PWD/repository\n"
        "python3 -m pip install 'tritonclient[http]' numpy pillow\n"
        f"python3 client.py --url 127.0.0.1:8000 --model {source.name} photo.jpg",
        text=(
            "The server runs the network alone. `client.py` resizes, crops and normalizes with edgeship's "
            "library, so that the pixels are the run's; its `prepare` is for your own client.",
            *(["The engine is built on the device that serves it."] if target == "tensorrt" else []),
        ),
        checked=f"config.pbtxt by Triton's own message definition ({SOURCE}), which tritonclient has, and "
        "the client's inputs by the library, in edgeship's tests. The server: not run here.",
    )


def _configuration(source: Source) -> str:
    """Return config.pbtxt."""
    platform, file, device = BACKENDS[source.variant.target]
    batched = source.input.shape[0] < 0
    lines = [
        f"# Written by edgeship; the form follows {SOURCE}.",
        f"name: {quoted(source.name)}",
        platform,
        file,
        f"max_batch_size: {MOST_IMAGES if batched else 0}",
        _tensor("input", source.input, batched, ""),
        _tensor("output", source.output, batched, 'label_filename: "labels.txt"'),
        f"instance_group [ {{ kind: {device} count: 1 }} ]",
        *(["dynamic_batching { }"] if batched else []),
        "parameters {",
        '  key: "edgeship.preprocess"',
        f"  value {{ string_value: {quoted(json.dumps(source.record['preprocess']))} }}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, tensor: Tensor, batched: bool, more: str) -> str:
    sides = tensor.shape[1:] if batched else tensor.shape
    return (
        f"{kind} [ {{ name: {quoted(tensor.name)} data_type: TYPE_{TYPES[tensor.type]} "
        f"dims: [ {', '.join(map(str, sides))} ] {more} }} ]"
    )


def quoted(text: str) -> str:
    """Return a string of protobuf's text format: escaped bytes of UTF-8."""
    escapes = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else _octal(c)) for c in text) + '"'


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())
