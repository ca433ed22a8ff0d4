"""Engine records: validated layer listing of the engine inspector, with times from the per-layer profile."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeship.targets.tensorrt import engine_files
from edgeship.targets.tensorrt.engine_files import AGAIN
from edgeship.targets.tensorrt.engine_precision import UNKNOWN, completed, of_arithmetic, precision_of
from edgeship.toolkit.core.errors import DataError

_MAX_MS = 1e9  # a layer of 11 days is no measurement
_PROFILE = re.compile(r" ?\[profile (\d{1,4})\]$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of an engine layer.

    Attributes:
        name: Name in the engine.
        precision: int8, fp8, fp16, bf16, fp32, or "unknown" where the record has none.
        layout: The format as recorded; empty where the record has none.
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
        inputs: Activations read.
        outputs: Activations written.
        nodes: Names of the ONNX nodes fused into it.
        origin: Reason of a Reformat: REFORMAT or QDQ; empty elsewhere.
        tactic: Name of the kernel; empty where the record has none.
        computes: Precision by kernel name, weights and metadata; "unknown" where they have none or disagree.
        time_ms: Mean time in the profile; None without one.
    """

    name: str
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[str, ...]
    origin: str = ""
    tactic: str = ""
    computes: str = UNKNOWN
    time_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """All layers of an engine in execution order.

    Attributes:
        layers: The layers of the first optimization profile.
        bindings: Names of the network's inputs and outputs.
        detailed: False where the engine was built without detailed verbosity: names only.
        other_profiles: The layers of each further optimization profile.
    """

    layers: tuple[Layer, ...]
    bindings: tuple[str, ...]
    detailed: bool
    other_profiles: tuple[tuple[Layer, ...], ...] = ()


def load(record: Path, profile: Path | None = None) -> Engine:
    """Read an engine record.

    Args:
        record: Layer listing of the inspector or of trtexec (JSON, or a log of trtexec --dumpLayerInfo),
            output of the device runner's `inspect`, or a folder (see `engine_files.locate`).
        profile: Profile of trtexec (JSON or log); that of the folder by default.

    Raises:
        DataError: A file is missing, cut off, or not a record; or the profile is of another engine.
    """
    record, profile = engine_files.locate(record, profile)
    content = engine_files.read(record)
    times = None if profile is None else times_of(engine_files.read(profile), str(profile))
    return parse(content, str(record), times)


def parse(content: Any, where: str, times: Mapping[str, float] | None = None) -> Engine:
    """Build an engine from the JSON of the inspector (TensorRT 8.2 to 11) or of the device runner.

    Args:
        content: Parsed JSON.
        where: Its origin, for messages.
        times: Layer name -> mean time in ms.

    Raises:
        DataError: It is not a record, or the times are of another engine.
    """
    if not isinstance(content, dict):
        raise _unusable(where, "it is not an object with 'Layers'")
    listed = content.get("Layers", content.get("layers"))
    if not isinstance(listed, list) or not listed:
        raise _unusable(where, "it has no list of 'Layers'")
    if not all(isinstance(item, (dict, str)) for item in listed):
        raise _unusable(where, "its layers are neither objects nor names")
    if times is None and "times_ms" in content:
        times = _numbers(content["times_ms"], where)
    layers = [
        _layer(item, i, where) if isinstance(item, dict) else _named(item) for i, item in enumerate(listed)
    ]
    groups = _by_profile(_timed(layers, times, where) if times is not None else layers)
    return Engine(
        layers=tuple(completed(groups[0])),
        bindings=_bindings(content, where),
        detailed=any(isinstance(item, dict) for item in listed),
        other_profiles=tuple(tuple(completed(group)) for group in groups[1:]),
    )


def _by_profile(layers: list[Layer]) -> list[list[Layer]]:
    """Split layers by optimization profile: all but the first profile mark names with " [profile 1]"."""
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        mark = _PROFILE.search(layer.name)
        bare = layer if mark is None else _unmarked(layer)
        groups.setdefault(int(mark[1]) if mark else 0, []).append(bare)
    return [groups[number] for number in sorted(groups)]


def _unmarked(layer: Layer) -> Layer:
    def bare(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(tensor, name=_PROFILE.sub("", tensor.name)) for tensor in tensors)

    return replace(
        layer, name=_PROFILE.sub("", layer.name), inputs=bare(layer.inputs), outputs=bare(layer.outputs)
    )


def times_of(content: Any, where: str) -> dict[str, float]:
    """Return layer name -> mean time in ms of trtexec's profile: a count, then one object for each layer.

    Raises:
        DataError: It is not a profile, or a time is no finite number >= 0.
    """
    if isinstance(content, dict) and "times_ms" in content:
        return _numbers(content["times_ms"], where)
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise _unusable(where, "it is not a list of layer times")
    entries = [item for item in content if "name" in item]
    count = next((item["count"] for item in content if _is_time(item.get("count")) and item["count"] >= 1), 0)
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
    """Return the ONNX nodes in a layer's name: "w + q + conv", "a || b", "PWN(PWN(relu), add)", copies."""
    text = re.sub(
        r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ to ", "", _PROFILE.sub("", text)
    ).strip()
    foreign = re.fullmatch(r"\{ForeignNode\[(.*)\]\}", text)
    if foreign:
        return tuple(part for part in foreign[1].split("...") if part)
    parts: list[str] = []
    for part in re.split(r" \+ | \|\| ", text):
        for piece in part.split(", "):
            wrappers = re.match(r"(?:PWN\()*", piece)
            bare = piece[wrappers.end() :] if wrappers else piece
            extra = bare.count(")") - bare.count("(")  # brackets that close a wrapper opened here or before
            closing = len(bare) - len(bare.rstrip(")"))
            parts.append(bare[: len(bare) - max(0, min(extra, closing))].strip())
    return tuple(dict.fromkeys(part for part in parts if part))


def _layer(item: dict[str, Any], number: int, where: str) -> Layer:
    name, kind = item.get("Name"), item.get("LayerType")
    if not isinstance(name, str) or not isinstance(kind, str):
        raise _unusable(where, f"layer {number} has no 'Name' or 'LayerType'")
    metadata = item.get("Metadata")
    stated = re.findall(r"\[ONNX Layer: ([^\]]+)\]", metadata) if isinstance(metadata, str) else []
    tactic = item.get("TacticName")
    tactic = tactic if isinstance(tactic, str) else ""
    return Layer(
        name=name,
        kind=kind,
        inputs=_tensors(item, "Inputs", name, where),
        outputs=_tensors(item, "Outputs", name, where),
        nodes=tuple(dict.fromkeys(stated)) or node_names(name),
        origin=str(item.get("Origin", "")),
        tactic=tactic,
        computes=of_arithmetic(item, tactic, metadata if isinstance(metadata, str) else ""),
    )


def _named(name: str) -> Layer:
    kind = "Reformat" if name.startswith("Reformatting CopyNode") else UNKNOWN
    return Layer(name, kind, (), (), node_names(name))


def _tensors(item: dict[str, Any], role: str, layer: str, where: str) -> tuple[Tensor, ...]:
    listed = item.get(role)
    if listed is None:  # signal and wait layers have none
        return ()
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise _unusable(where, f"'{role}' of layer '{layer}' is not a list of objects")
    tensors = []
    for entry in listed:
        if not isinstance(entry.get("Name"), str):
            raise _unusable(where, f"an entry of '{role}' of layer '{layer}' has no name")
        texts = {
            key.replace(" ", "").lower(): value for key, value in entry.items() if isinstance(value, str)
        }
        formats = [texts[key] for key in ("datatype", "format/datatype", "format") if key in texts]
        precision = next((each for text in formats if (each := precision_of(text)) != UNKNOWN), UNKNOWN)
        tensors.append(Tensor(entry["Name"], precision, ", ".join(formats)))
    return tuple(tensors)


def _bindings(content: dict[str, Any], where: str) -> tuple[str, ...]:
    keys = ("Bindings", "I/O Tensors", "bindings")  # up to 10, from 11, the device runner's
    listed: Any = next((content[key] for key in keys if key in content), [])
    if not isinstance(listed, list):
        raise _unusable(where, "its bindings are not a list")
    names = [item.get("Name") if isinstance(item, dict) else item for item in listed]
    return tuple(dict.fromkeys(_PROFILE.sub("", name) for name in names if isinstance(name, str)))


def _timed(layers: list[Layer], times: Mapping[str, float], where: str) -> list[Layer]:
    unlisted = set(times) - {layer.name for layer in layers}
    if unlisted:
        raise DataError(
            f"the profile is of another engine than {where}, which has no layer '{sorted(unlisted)[0]}'",
            hint="take both from one build and one run of trtexec",
        )
    counted: set[str] = set()
    timed = []
    for layer in layers:  # two layers of one name share one time, which counts once
        timed.append(layer if layer.name in counted else replace(layer, time_ms=times.get(layer.name)))
        counted.add(layer.name)
    return timed


def _numbers(value: Any, where: str) -> dict[str, float]:
    if not isinstance(value, dict) or not all(_is_time(item) for item in value.values()):
        raise _unusable(where, "its times are not numbers")
    return {str(name): float(item) for name, item in value.items()}


def _is_time(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return bool(number and 0 <= value <= _MAX_MS)


def _unusable(where: str, reason: str) -> DataError:
    return DataError(f"{where} is not an engine record: {reason}", hint=AGAIN)
