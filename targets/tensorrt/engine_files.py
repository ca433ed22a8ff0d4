"""Engine records and profiles in files: JSON in any Unicode encoding, trtexec logs, folders."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.errors import DataError

AGAIN = (
    "make it again: trtexec --profilingVerbosity=detailed --exportLayerInfo=graph.json "
    "--exportProfile=profile.json"
)
_MAX_BYTES = 64 << 20
_MARKS = (  # UTF-32 first: its little-endian mark starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_RECORD = re.compile(r"(^|[._-])(graph|layers?|layer_?info)\.json$", re.IGNORECASE)
_PROFILE = re.compile(r"(^|[._-])profile\.json$", re.IGNORECASE)
_TAG = re.compile(r"^\s*(?:\[\d\d/\d\d/\d{4}-[\d:]+\] ?)?(?:\[[EFIVW]\] ?)?(?:\[TRT\] ?)?")
_LOGGED = re.compile(r"^\s*(?:\[\d\d/\d\d/\d{4}-[\d:]+\] ?)?\[[EFIVW]\]|^&&&& ")
_TABLE = re.compile(r"=== Profile \((\d{1,12}) iterations? ?\) ===")
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?$")


def locate(record: Path, profile: Path | None) -> tuple[Path, Path | None]:
    """Return the files of layer listing and profile.

    A folder holds `graph.json` and perhaps `profile.json`, or one of each with a prefix, such as
    `model.engine.graph.json`; a record with such a prefix has its profile next to it.

    Args:
        record: A file or a folder.
        profile: The profile where it is given.

    Raises:
        DataError: The folder has no layer listing, or several.
    """
    if not record.is_dir():
        match = re.fullmatch(r"(.+)\.graph\.json", record.name)
        sibling = record.with_name(f"{match[1]}.profile.json") if match else None
        return record, sibling if profile is None and sibling is not None and sibling.is_file() else profile
    graph = _one(record, "graph.json", _RECORD)
    if graph is None:
        raise DataError(f"{record} holds no graph.json or NAME.graph.json", hint=AGAIN)
    return graph, profile or _one(record, "profile.json", _PROFILE)


def _one(folder: Path, exact: str, pattern: re.Pattern[str]) -> Path | None:
    if (folder / exact).is_file():
        return folder / exact
    fitting = sorted(path for path in folder.iterdir() if pattern.search(path.name) and path.is_file())
    if len(fitting) > 1:
        names = ", ".join(path.name for path in fitting[:4])
        raise DataError(f"{folder} holds {len(fitting)} records: {names}", hint=f"name one: {fitting[0]}")
    return fitting[0] if fitting else None


def read(path: Path) -> Any:
    """Read the content of a record or profile: parsed JSON, or a log as the JSON it stands for.

    Raises:
        DataError: The file is missing, over 64 MiB, not text, or holds neither JSON nor a layer listing.
    """
    text = _text(path)
    try:
        return json.loads(text, strict=False)  # TensorRT 8.6 EA writes raw control characters
    except RecursionError as error:
        raise _unusable(path, "it is nested too deeply") from error
    except ValueError as error:
        content = from_log(text, str(path))
        if content is None and _is_log(path, text):
            raise DataError(
                f"{path} is not an engine record: the log has no layer listing",
                hint="run trtexec with --dumpLayerInfo --profilingVerbosity=detailed --dumpProfile",
            ) from error
        if content is None:
            raise DataError(
                f"{path} is not valid JSON: {error}", hint="it was cut off or edited; make it again"
            ) from error
        return content


def _is_log(path: Path, text: str) -> bool:
    return path.suffix.lower() in (".log", ".txt") or bool(_LOGGED.search(text[:4096]))


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise _unusable(path, f"it is larger than {_MAX_BYTES >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    try:
        return data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        raise _unusable(path, "it is not text") from error


def _encoding(data: bytes) -> str:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    head = data[:4096]
    zeros = (head[::2].count(0), head[1::2].count(0))  # UTF-16 without a mark: every other byte is 0
    if max(zeros) > 0.4 * len(head) / 2:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8"


def from_log(text: str, where: str) -> dict[str, Any] | None:
    """Read the last layer listing and profile that trtexec printed; None where there is neither.

    Args:
        text: A capture of trtexec with --dumpLayerInfo, --dumpProfile, or both.
        where: Its origin, for messages.

    Raises:
        DataError: A listing or a table is cut off.

    Source:
        NVIDIA/TensorRT samples/common/sampleEngines.cpp, sampleReporting.cpp (8.2 to 10).
    """
    lines = text.replace("\r\n", "\n").split("\n")  # splitlines would cut at the \x1e in metadata
    bare = [_TAG.sub("", line, count=1).rstrip() for line in lines]
    embedded = next((line for line in reversed(bare) if line.startswith('{"Layers"')), None)
    starts = [i for i, line in enumerate(bare) if line == "Layers:"]
    times = _profile_table(bare, where)
    content: dict[str, Any] | None = None
    if embedded is not None:
        try:
            content = json.loads(embedded, strict=False)
        except (ValueError, RecursionError) as error:
            raise _unusable(where, f"its layer listing is cut off: {error}") from error
    elif starts:
        content = _listing(lines, bare, starts[-1] + 1, where)
    if times is None:
        return content
    return {**(content or {"Layers": list(times), "Bindings": []}), "times_ms": times}


def _listing(lines: list[str], bare: list[str], start: int, where: str) -> dict[str, Any]:
    layers: list[Any] = []
    for i in range(start, len(bare)):
        line = bare[i]
        if line in ("Bindings:", "I/O Tensors:"):
            return {"Layers": layers, "Bindings": _names(lines, bare, i + 1)}
        if line.startswith("Name: "):
            layers.append(_layer(line, where))
        elif layers and _LOGGED.search(lines[i]):
            return {"Layers": layers, "Bindings": []}
        elif line and isinstance(layers[-1] if layers else "", dict):
            raise _unusable(where, f"its layer listing is interrupted by '{line[:80]}'")
        elif line:
            layers.append(line)
    raise _unusable(where, "its layer listing is cut off: no 'Bindings' after it")


def _names(lines: list[str], bare: list[str], start: int) -> list[str]:
    names: list[str] = []
    for i in range(start, len(bare)):
        if not bare[i] or _LOGGED.search(lines[i]):
            break
        names.append(bare[i].removeprefix("Name: ").partition(", Location: ")[0])
    return names


def _layer(line: str, where: str) -> dict[str, Any]:
    """Return the inspector's JSON of a layer in the one-line format."""
    name, comma, rest = line.removeprefix("Name: ").partition(", LayerType: ")
    if not comma:
        raise _unusable(where, f"the line of layer '{name[:80]}' is cut off")
    kind, listed, after = rest.partition(", Inputs: [")
    layer: dict[str, Any] = {"Name": name, "LayerType": kind.partition(", ")[0]}
    if listed:
        inputs, comma, after = after.partition("], Outputs: [")
        empty = after.startswith("]")
        outputs, closed, rest = ("", "]", after[1:]) if empty else after.partition("}]")
        if not comma or not closed:
            raise _unusable(where, f"the line of layer '{name[:80]}' is cut off")
        layer |= {"Inputs": _tensors(inputs), "Outputs": _tensors(outputs)}
    rest, _, metadata = rest.partition(", Metadata: ")
    for key in ("TacticName", "Origin", "Precision"):
        if (match := re.search(rf"(?:^|, ){key}: ([^,]*)", rest)) is not None:
            layer[key] = match[1]
    for key, kind in re.findall(r'(?:^|, )(\w{0,40}Weights): \{"Type": "(\w{1,40})"', rest):
        layer[key] = {"Type": kind}
    return {**layer, "Metadata": metadata}


def _tensors(text: str) -> list[dict[str, str]]:
    tensors = []
    for part in text.split("}, {") if text.strip() else []:
        inner = part.strip().removeprefix("{").removesuffix("}").strip()
        name = inner.removeprefix("Name: ").partition(", Location: ")[0].partition(", Dimensions: ")[0]
        tensor = {"Name": name}
        for key in ("Format/Datatype", "Datatype", "DataType", "Format"):
            _, colon, value = inner.partition(f", {key}: ")
            if colon:
                tensor[key] = re.split(r", \w+: ", value, maxsplit=1)[0]
        tensors.append(tensor)
    return tensors


def _profile_table(bare: list[str], where: str) -> dict[str, float] | None:
    """Return layer name -> mean time in ms of the last printed profile."""
    starts = [(i, match) for i, line in enumerate(bare) if (match := _TABLE.search(line)) is not None]
    if not starts:
        return None
    start, match = starts[-1]
    count = int(match[1])
    header = next((i for i in range(start + 1, min(start + 3, len(bare))) if "Layer" in bare[i]), None)
    if header is None or count == 0:
        raise _unusable(where, "its profile is cut off")
    numbers = 4 if "Median" in bare[header] else 3
    last = bare[header].rstrip().endswith("Layer")  # the name follows the numbers from 8.6 on
    times: dict[str, float] = {}
    for line in bare[header + 1 :]:
        words = line.split(None, numbers) if last else line.rsplit(None, numbers)
        name = words.pop(-1 if last else 0) if len(words) == numbers + 1 else ""
        if not name or not all(_NUMBER.match(word) for word in words):
            break
        if name.strip() == "Total":
            return times
        times[name.strip()] = times.get(name.strip(), 0.0) + float(words[0]) / count
    raise _unusable(where, "its profile is cut off: no 'Total'")


def _unusable(where: Path | str, reason: str) -> DataError:
    return DataError(f"{where} is not an engine record: {reason}", hint=AGAIN)
