"""Write class names and preprocessing into engine files, in the forms that other tools read.

ONNX: metadata_props `labels` (JSON list), `preprocess` (JSON) and `preprocess_source`; and `model_info KEY`.
OpenVINO IR: `rt_info/edgeship` with the same three, and `rt_info/model_info`.

`model_info` is that of OpenVINO Model API (`model_api.models.parameters`, 0.4) and Intel DL Streamer
("Model Info Section"). Its resize knows no margin between resize and crop, and its filter is not antialiased:
resize images as model.json says before a tool that reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgeship.toolkit.core.errors import ModelError

MODEL_INFO, OWN = "model_info", "edgeship"
_INTERPOLATION = {"bilinear": "LINEAR", "bicubic": "CUBIC", "nearest": "NEAREST"}
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def own_properties(description: Mapping[str, Any]) -> dict[str, str]:
    """Return what `targets.runner.classifier` reads, from the content of model.json."""
    return {
        "labels": json.dumps(description["labels"]),
        "preprocess": json.dumps(description["preprocess"]),
        "preprocess_source": description["preprocess_source"],
    }


def stated_labels(properties: Mapping[str, str]) -> tuple[str, ...]:
    """Return the class names in metadata_props; empty without."""
    try:
        names = json.loads(properties.get("labels", "[]"))
    except (ValueError, RecursionError):  # of another tool
        return ()
    usable = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if usable else ()


def model_info(description: Mapping[str, Any], *, pixel_input: bool) -> dict[str, str]:
    """Return the `model_info` of a classifier.

    Args:
        description: Content of model.json.
        pixel_input: True: the graph normalizes uint8 NHWC pixels; else it takes float32 NCHW, and mean and
            scale are stated, in units of 0..255.
    """
    values = description["preprocess"]
    info = {
        "model_type": "Classification",
        "labels": " ".join(re.sub(r"\s+", "_", name.strip()) for name in description["labels"]),
        "resize_type": "crop" if isinstance(values["resize"], int) else "standard",
        "layout": "NHWC" if pixel_input else "NCHW",
    }
    if values["interpolation"] in _INTERPOLATION:  # there is no Lanczos
        info["interpolation_mode"] = _INTERPOLATION[values["interpolation"]]
    if len(values["mean"]) == 3:
        info["reverse_input_channels"] = "True"  # callers give BGR, as cv2.imread returns it
    if not pixel_input:
        for key, name in (("mean", "mean_values"), ("std", "scale_values")):
            info[name] = " ".join(repr(value * 255) for value in values[key])
    return info


def annotate(file: Path, description: Mapping[str, Any]) -> None:
    """Write class names and preprocessing into an ONNX file or OpenVINO's model.xml; leave other files.

    Raises:
        ModelError: The file is damaged.
    """
    if write := _WRITERS.get(file.suffix):
        write(file, description)


def _annotate_onnx(file: Path, description: Mapping[str, Any]) -> None:
    """Append metadata_props: fields of concatenated protobuf messages are merged."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(file, load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{file} is no ONNX file", hint="run the recipe again") from error
    constants = {each.name for each in model.graph.initializer}
    images = next(each for each in model.graph.input if each.name not in constants)
    pixels = images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    info = model_info(description, pixel_input=pixels)
    stated = {each.key: each.value for each in model.metadata_props}
    wanted = own_properties(description) | {f"{MODEL_INFO} {key}": value for key, value in info.items()}
    if stated | wanted == stated:
        return
    if not stated.keys() & wanted.keys():
        added = onnx.ModelProto()
        onnx.helper.set_model_props(added, wanted)
        with file.open("ab") as stream:
            stream.write(added.SerializeToString())
        return
    onnx.helper.set_model_props(model, stated | wanted)
    file.write_bytes(model.SerializeToString())


def _annotate_openvino(file: Path, description: Mapping[str, Any]) -> None:
    try:
        tree = ElementTree.parse(file)  # noqa: S314 (written by OpenVINO a moment ago)
        element_type = next(
            data.get("element_type")
            for layer in tree.iter("layer")
            if layer.get("type") == "Parameter" and (data := layer.find("data")) is not None
        )
    except (ElementTree.ParseError, StopIteration) as error:
        raise ModelError(f"{file} is no OpenVINO IR", hint="run the recipe again") from error
    root = tree.getroot()
    runtime_info = root.find("rt_info")
    if runtime_info is None:
        runtime_info = ElementTree.SubElement(root, "rt_info")
    info = model_info(description, pixel_input=element_type == "u8")
    for name, values in ((MODEL_INFO, info), (OWN, own_properties(description))):
        if (stated := runtime_info.find(name)) is not None:
            runtime_info.remove(stated)
        section = ElementTree.SubElement(runtime_info, name)
        for key, value in values.items():
            ElementTree.SubElement(section, key, value=_NO_XML.sub("\N{REPLACEMENT CHARACTER}", value))
    tree.write(file, encoding="utf-8", xml_declaration=True)


_WRITERS: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {
    ".onnx": _annotate_onnx,
    ".xml": _annotate_openvino,
}
ANNOTATED = frozenset(_WRITERS)
