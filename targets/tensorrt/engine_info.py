"""Engine records: the inspector's layer listing and the per-layer profile, read without trust."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.errors import DataError

PRECISIONS = (  # the first that is in the text; "BFloat16" holds "Float"
    ("bf16", re.compile(r"bf16|bfloat16", re.IGNORECASE)),
    ("fp8", re.compile(r"fp8", re.IGNORECASE)),
    ("int8", re.compile(r"\bint8\b", re.IGNORECASE)),
    ("fp16", re.compile(r"fp16|half", re.IGNORECASE)),
    ("fp32", re.compile(r"fp32|\bfloat\b", re.IGNORECASE)),
)
UNKNOWN = "unknown"
AGAIN = "make it again: trtexec --exportLayerInfo=graph.json --exportProfile=profile.json"


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of an engine layer.

    Attributes:
        name: Name in the engine.
        precision: int8, fp16, bf16, fp32, or "unknown" where the record does not tell.
        layout: The format as the record spells it.
    """

    name: str
    precision: str
    layout: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an engine.

    Attributes:
        name: Name in the engine: the ONNX nodes that were fused, joined by " + ".
        kind: The runtime's type (CaskConvolution, Reformat, kgen, ...).
        inputs: What it reads, activations only.
        outputs: What it writes.
        nodes: Names of the ONNX nodes in it.
        origin: What a Reformat is for: REFORMAT or QDQ; empty elsewhere.
        tactic: Name of the kernel; empty where the record does not tell.
        time_ms: Mean time in the profile; None without one.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]
    origin: str = ""
    tactic: str = ""
    time_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """All layers of an engine in execution order.

    Attributes:
        layers: The layers.
        bindings: Names of the network's inputs and outputs.
        detailed: False where the engine was built without detailed verbosity: names only.
    """

    layers: tuple[Layer, ...]
    bindings: tuple[str, ...]
    detailed: bool


def load(record: Path, profile: Path | None = None) -> Engine:
    """Read an engine record.

    Args:
        record: `graph.json` of the inspector or trtexec, or what the device runner's `inspect` printed; or a
            folder with `graph.json` and perhaps `profile.json`.
        profile: `profile.json` of trtexec; taken from the folder where there is one.

    Raises:
        DataError: A file is missing, cut off, or not a record; or the profile is of another engine.
    """
    if record.is_dir():
        if profile is None and (record / "profile.json").is_file():
            profile = record / "profile.json"
        record = record / "graph.json"
    content = _json(record)
    times = None if profile is None else times_of(_json(profile), str(profile))
    return parse(content, str(record), times)


def parse(content: Any, where: str, times: Mapping[str, float] | None = None) -> Engine:
    """An engine from the inspector's JSON (TensorRT 8.2 to 11) or the device runner's.

    Args:
        content: Parsed JSON.
        where: What it was read from, for messages.
        times: Layer name -> mean time in ms.

    Raises:
        DataError: It is not a record, or the times are of another engine.
    """
    if not isinstance(content, dict):
        raise _unusable(where, "it is not an object with 'Layers'")
    listed = content.get("Layers", content.get("layers"))
    if not isinstance(listed, list) or not listed:
        raise _unusable(where, "it has no list of 'Layers'")
    detailed = all(isinstance(item, dict) for item in listed)
    if not detailed and not all(isinstance(item, str) for item in listed):
        raise _unusable(where, "its layers are neither objects nor names")
    if times is None and "times_ms" in content:
        times = _numbers(content["times_ms"], where)
    layers = [_layer(item, i, where) if detailed else _named(item) for i, item in enumerate(listed)]
    return Engine(
        layers=tuple(_timed(layers, times, where) if times is not None else layers),
        bindings=_bindings(content, where),
        detailed=detailed,
    )


def times_of(content: Any, where: str) -> dict[str, float]:
    """Layer name -> mean time in ms, from trtexec's profile: a count, then one object for each layer.

    Raises:
        DataError: It is not a profile, or a time is no finite number >= 0.
    """
    if isinstance(content, dict) and "times_ms" in content:
        return _numbers(content["times_ms"], where)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise _unusable(where, "it is not a list of layer times")
    entries = [item for item in content if "name" in item]
    count = next((item["count"] for item in content if isinstance(item.get("count"), int)), 0)
    times: dict[str, float] = {}
    for item in entries:
        value = item.get("averageMs")
        if value is None and count > 0 and _is_time(item.get("timeMs")):
            value = item["timeMs"] / count
        if not isinstance(item["name"], str) or not _is_time(value):
            raise _unusable(where, f"layer {item['name']!r} has no usable time")
        times[item["name"]] = times.get(item["name"], 0.0) + float(value)
    if not times:
        raise _unusable(where, "it names no layer")
    return times


def node_names(text: str) -> tuple[str, ...]:
    """The ONNX nodes in a layer's name: "w + q + conv", "a || b", "PWN(PWN(relu), add)", copies."""
    text = re.sub(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ to ", "", text).strip()
    foreign = re.fullmatch(r"\{ForeignNode\[(.*)\]\}", text)
    if foreign:
        return tuple(part for part in foreign[1].split("...") if part)
    parts: list[str] = []
    for part in re.split(r" \+ | \|\| ", text):
        while (inner := re.fullmatch(r"PWN\((.*)\)", part)) is not None:
            part = inner[1]  # noqa: PLW2901  # peel one wrapper after the other
        parts.extend(re.sub(r"^PWN\(|\)$", "", piece).strip() for piece in part.split(", "))
    return tuple(dict.fromkeys(part for part in parts if part))


def _layer(item: dict[str, Any], number: int, where: str) -> Layer:
    name, kind = item.get("Name"), item.get("LayerType")
    if not isinstance(name, str) or not isinstance(kind, str):
        raise _unusable(where, f"layer {number} has no 'Name' or 'LayerType'")
    metadata = item.get("Metadata")
    stated = re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata) if isinstance(metadata, str) else []
    return Layer(
        name=name,
        kind=kind,
        inputs=_tensors(item, "Inputs", name, where),
        outputs=_tensors(item, "Outputs", name, where),
        nodes=tuple(dict.fromkeys(stated)) or node_names(name),
        origin=str(item.get("Origin", "")),
        tactic=str(item.get("TacticName", "")),
    )


def _named(name: str) -> Layer:
    kind = "Reformat" if name.startswith("Reformatting CopyNode") else UNKNOWN
    return Layer(name, kind, (), (), node_names(name))


def _tensors(item: dict[str, Any], role: str, layer: str, where: str) -> tuple[Tensor, ...]:
    listed = item.get(role)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise _unusable(where, f"layer '{layer}' has no list of '{role}'")
    found = []
    for entry in listed:
        stated = [entry.get(key) for key in ("Format/Datatype", "Datatype", "Format")]
        layout = ", ".join(text for text in stated if isinstance(text, str))
        if not isinstance(entry.get("Name"), str) or not layout:
            raise _unusable(where, f"an entry of '{role}' of layer '{layer}' has no name or format")
        found.append(Tensor(entry["Name"], precision_of(layout), layout))
    return tuple(found)


def precision_of(layout: str) -> str:
    """The precision in a format: "Row major linear FP32", "Half", "Int8, (NHWC) Channel major format"."""
    return next((name for name, pattern in PRECISIONS if pattern.search(layout)), UNKNOWN)


def _bindings(content: dict[str, Any], where: str) -> tuple[str, ...]:
    keys = ("Bindings", "I/O Tensors", "bindings")  # up to 10, from 11, the device runner's
    listed: Any = next((content[key] for key in keys if key in content), [])
    if not isinstance(listed, list):
        raise _unusable(where, "its bindings are not a list")
    names = [item.get("Name") if isinstance(item, dict) else item for item in listed]
    return tuple(name for name in names if isinstance(name, str))


def _timed(layers: list[Layer], times: Mapping[str, float], where: str) -> list[Layer]:
    strangers = set(times) - {layer.name for layer in layers}
    if strangers:
        raise DataError(
            f"the profile is of another engine than {where}, which has no layer '{sorted(strangers)[0]}'",
            hint="take both from one build and one run of trtexec",
        )
    seen: set[str] = set()
    timed = []
    for layer in layers:  # a name that comes twice has one time for both: it is counted once
        timed.append(layer if layer.name in seen else replace(layer, time_ms=times.get(layer.name)))
        seen.add(layer.name)
    return timed


def _numbers(value: Any, where: str) -> dict[str, float]:
    if not isinstance(value, dict) or not all(_is_time(item) for item in value.values()):
        raise _unusable(where, "its times are not numbers")
    return {str(name): float(item) for name, item in value.items()}


def _is_time(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return bool(number and math.isfinite(value) and value >= 0)


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except RecursionError as error:
        raise _unusable(str(path), "it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _unusable(str(path), "it is not text") from error


def _unusable(where: str, reason: str) -> DataError:
    return DataError(f"{where} is not an engine record: {reason}", hint=AGAIN)
