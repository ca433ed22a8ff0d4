"""Read the outputs of an application: JSON lines, a command, or a folder of the tensors that it fed."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from edgeship.toolkit.core.errors import DataError, RecipeError, nearest
from edgeship.toolkit.core.text import printable
from edgeship.toolkit.prove.outputs import Answers, Kind

TIMEOUT_S = 60.0  # of one call of a command
KEYS: tuple[Kind, ...] = ("logits", "probabilities")
FORM = '{"image": "0000.jpg", "logits": [...]}, or "probabilities": [...], or "class": NAME or INDEX'
_MOST_LINE = 200  # characters of a line in a message
_MOST_BYTES = 2**26  # of an output of a command

Row = tuple[Kind, Any]


def from_lines(path: Path, names: Sequence[str], labels: Sequence[str]) -> Answers:
    """Read JSON lines, one for each image in any order.

    Raises:
        DataError: A line is not of the form; an image is missing, unknown or there twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text", hint=f"write lines of {FORM}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    rows: dict[str, Row] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = _json(line)
        if not isinstance(record, dict) or "image" not in record:
            cut = " (cut off?)" if line.lstrip().startswith("{") and not line.rstrip().endswith("}") else ""
            raise DataError(f"{where} is no answer{cut}: {_shown(line)}", hint=f"write {FORM}")
        name = _name(str(record["image"]), names, where)
        if name in rows:
            raise DataError(
                f"{where}: {printable(name)} is there twice", hint="write one line for each image"
            )
        rows[name] = _row(record, labels, where)
    return together(rows, names, str(path))


def from_command(
    command: str, images: Mapping[str, bytes], labels: Sequence[str], timeout_s: float = TIMEOUT_S
) -> Answers:
    """Run an application and read its standard output.

    Args:
        command: Its command line, run without a shell. `{image}`: the path of an image, and the last
            line that is an answer counts; `{folder}`: the folder of all, and it prints JSON lines.
        images: Name -> content.
        labels: Class names.
        timeout_s: Seconds for one call.

    Raises:
        RecipeError: The command has no place for the image.
        DataError: It cannot be started, fails, takes too long, or prints no answer.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise RecipeError(f"--command {command!r}: {error}", hint="quote it as for a shell") from error
    several = any("{folder}" in part for part in parts)
    if not several and not any("{image}" in part for part in parts):
        raise RecipeError(
            f"--command {command!r} has no {{image}}", hint="write {image} or {folder} in the command"
        )
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="edgeship-prove-") as scratch:
        folder = Path(scratch)
        for name, content in images.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        if several:
            printed = _run([part.replace("{folder}", scratch) for part in parts], timeout_s)
            for line in printed.splitlines():
                record = _json(line)
                if isinstance(record, dict) and "image" in record:
                    name = _name(str(record["image"]), [*images], "output of the command")
                    rows[name] = _row(record, labels, f"output for {name}")
        else:
            for name in images:
                printed = _run([part.replace("{image}", str(folder / name)) for part in parts], timeout_s)
                rows[name] = _last(printed, labels, name)
    return together(rows, [*images], "the output of the command")


def from_tensors(folder: Path, names: Sequence[str], shape: tuple[int, ...]) -> Answers:
    """Read the tensors that an application fed: NAME.npy, or NAME.bin or .raw of float32, for each image.

    Args:
        folder: The folder.
        names: Names of the images.
        shape: Shape of one input of the engine.

    Raises:
        DataError: A tensor is missing, unreadable, of another size, or not finite.
    """
    if not folder.is_dir():
        raise DataError(f"no folder of tensors at {folder}", hint="write NAME.npy for each image NAME.jpg")
    size = math.prod(shape)
    rows = []
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        paths = [folder / f"{each}{suffix}" for each in (stem, name) for suffix in (".npy", ".bin", ".raw")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise DataError(
                f"{folder} has no tensor of {printable(name)}: expected {stem}.npy, or {stem}.bin of float32",
                hint="write one for each image",
            )
        try:
            values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.fromfile(path, "<f4")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is no array: {printable(str(error), _MOST_LINE)}",
                            hint="write it with numpy.save") from error  # fmt: skip
        if values.size != size or values.dtype.kind not in "fiu":
            raise DataError(
                f"{path} has shape {values.shape} and type {values.dtype}, expected {size} numbers: {shape}",
                hint="write the input of one image as the engine receives it",
            )
        rows.append(_finite(values.reshape(-1).astype(np.float32), str(path)))
    return Answers("tensors", np.stack(rows))


def from_function(
    function: Callable[[Path], Any], images: Mapping[str, bytes], labels: Sequence[str]
) -> Answers:
    """Call a function with the path of each image; it returns logits (classes,), or a class."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="edgeship-prove-") as scratch:
        for name, content in images.items():
            path = Path(scratch) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            value = function(path)
            one = isinstance(value, (str, int, np.integer))
            rows[name] = _row({"class" if one else "logits": value}, labels, f"the answer for {name}")
    return together(rows, [*images], "the answers")


def together(rows: Mapping[str, Row], names: Sequence[str], source: str) -> Answers:
    """Return the answers in the order of the images.

    Raises:
        DataError: An image has none, or the answers are of several kinds.
    """
    missing = [name for name in names if name not in rows]
    if missing:
        raise DataError(
            f"{source} has no answer for {len(missing)} of {len(names)} images: {printable(missing[0])}, ...",
            hint="answer every image, or name the folder with the images that were shown with --images",
        )
    kinds = Counter(rows[name][0] for name in names)
    if len(kinds) > 1:
        raise DataError(f"{source} has answers of several kinds: {', '.join(kinds)}", hint="write one kind")
    return Answers(next(iter(kinds)), np.array([rows[name][1] for name in names]))


def _row(record: Mapping[str, Any], labels: Sequence[str], where: str) -> Row:
    """Return kind and values of an answer."""
    given: list[Any] = [key for key in (*KEYS, "class", "classes") if key in record]
    if len(given) != 1:
        raise DataError(
            f"{where} has {' and '.join(given) or 'none'} of logits, probabilities and class",
            hint=f"write {FORM}",
        )
    value = record[given[0]]
    if given[0] not in KEYS:
        if given[0] == "classes":  # of `edgeship predict --json`
            first = value[0] if isinstance(value, list) and value else {}
            value = first.get("index") if isinstance(first, dict) else None
        return "classes", _class(value, labels, where)
    try:
        values = np.array(value, np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: {given[0]} is no list of numbers", hint=f"write {FORM}") from error
    if len(values) != len(labels):
        raise DataError(f"{where} has {len(values)} {given[0]}, expected {len(labels)}, one for each class",
                        hint="write all outputs, in the order of labels.txt")  # fmt: skip
    return given[0], _finite(values.astype(np.float32), where)


def _finite(values: Any, where: str) -> Any:
    if not np.isfinite(values).all():
        raise DataError(f"{where} has NaN or infinite values", hint="look for a division by 0 or an overflow")
    return values


def _class(value: Any, labels: Sequence[str], where: str) -> int:
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        if 0 <= value < len(labels):
            return int(value)
        raise DataError(
            f"{where}: class {value}, expected 0 to {len(labels) - 1}", hint="number classes from 0"
        )
    if isinstance(value, str):
        name = " ".join(value.split())
        if name in labels:
            return list(labels).index(name)
        if name.isdecimal():
            return _class(int(name), labels, where)
        raise DataError(
            f"{where}: no class named '{printable(name, _MOST_LINE)}'", hint=nearest(name, labels)
        )
    raise DataError(f"{where}: the class is {_shown(repr(value))}", hint="write a class name or its index")


def _last(printed: str, labels: Sequence[str], name: str) -> Row:
    """Return the answer in the last line of an output that is one: JSON, numbers, a class name or index."""
    where = f"the output for {name}"
    for line in reversed(printed.splitlines()):
        text, record = line.strip(), _json(line)
        if isinstance(record, list) and record:
            return _row({"logits": record}, labels, where)
        if isinstance(record, dict) and {*KEYS, "class", "classes"} & record.keys():
            return _row(record, labels, where)
        if " ".join(text.split()) in labels or text.isdecimal():
            return _row({"class": text}, labels, where)
    lines = [line for line in printed.splitlines() if line.strip()]
    raise DataError(f"{where} has no answer: {_shown(lines[-1]) if lines else 'it is empty'}",
                    hint='print {"logits": [...]} or the class in one line')  # fmt: skip


def _run(parts: list[str], timeout_s: float) -> str:
    """Run a command and return its standard output."""
    shown, pipe = _shown(shlex.join(parts)), subprocess.PIPE
    try:
        process = subprocess.Popen(
            parts, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, start_new_session=True
        )
    except OSError as error:
        raise DataError(
            f"cannot start {shown}: {error.strerror}", hint="check the path of the program"
        ) from error
    with process, ThreadPoolExecutor(2) as pool:
        reads = [pool.submit(_read, process, stream) for stream in (process.stdout, process.stderr)]
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"{shown} took over {timeout_s:g} s", hint="raise --timeout, or answer all with {folder}"
            ) from error
        finally:
            _kill(process)
        printed, log = (read.result() for read in reads)
    if max(len(printed), len(log)) > _MOST_BYTES:
        raise DataError(f"{shown} printed over {_MOST_BYTES >> 20} MB", hint="print one line for each image")
    if process.returncode:
        lines = log.decode(errors="replace").strip().splitlines()
        message = _shown(lines[-1]) if lines else "no message"
        raise DataError(f"{shown} ended with exit code {process.returncode}: {message}",
                        hint="run it by itself on one of the images")  # fmt: skip
    return printed.decode(errors="replace")


def _read(process: subprocess.Popen[bytes], stream: IO[bytes] | None) -> bytes:
    """Read an output of a process; kill the process if there is more than is accepted."""
    assert stream is not None
    content = stream.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        _kill(process)
    return content


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, and those of its group that hold its outputs open."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _name(text: str, names: Sequence[str], where: str) -> str:
    """Return the image that a path means: its name, or the end of the path."""
    path = text.replace("\\", "/")
    if path in names:
        return path
    ends = [name for name in names if path.endswith(f"/{name}") or name.endswith(f"/{path}")]
    if len(ends) == 1:
        return ends[0]
    problem = f"means several images: {', '.join(ends[:3])}" if ends else "is none of the images"
    raise DataError(f"{where}: {_shown(text)} {problem}", hint=nearest(path, names))


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _shown(text: str) -> str:
    return printable(text, _MOST_LINE)
