"""Read and edit the device inventory `devices.toml`."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from edgeship import targets
from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.core.errors import DataError, DeviceError, nearest
from edgeship.toolkit.core.paths import user_path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCAL = "local"  # the host name that means this machine

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_HOST = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]{0,252}\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}\Z")
# ssh puts jump hosts into a shell command: only characters of host names are allowed.
_JUMP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@:\[\]-]*(,[A-Za-z0-9_][A-Za-z0-9._@:\[\]-]*)*\Z")

_HEADER = """\
# Devices of edgeship; written by `edgeship device add`, may be edited.
# [defaults] sets values for devices that do not set them.
"""


@dataclass(frozen=True, slots=True)
class Device:
    """Device in the inventory.

    Attributes:
        name: Name for commands and reports.
        host: Host name, address or ssh_config alias; "local" is this machine.
        target: Runtime on the device: a name of `targets`.
        user: Login; empty: ssh's default, likewise for port 0 and empty key, jump and ssh_config.
        port: Port of the device's sshd.
        key: Private key file.
        jump: Jump hosts in the format of `ssh -J`.
        tags: Tags for choosing devices.
        root: Folder on the device; ~ is the login's home.
        health: Shell command that must succeed in the new release's folder; empty: the self-test.
        python: Command of a Python 3.8+ on the device that can import its runtime, quoted as for a shell;
            with arguments (`docker exec -i NAME python3`) all programs run in its environment.
        ssh_config: Configuration file in place of ~/.ssh/config.
    """

    name: str
    host: str
    target: str
    user: str = ""
    port: int = 0
    key: str = ""
    jump: str = ""
    tags: tuple[str, ...] = ()
    root: str = "~/edgeship"
    health: str = ""
    python: str = "python3"
    ssh_config: str = ""

    @property
    def python_words(self) -> list[str]:
        """Return the command and arguments of `python`."""
        return shlex.split(self.python)

    @property
    def local(self) -> bool:
        """Return True if the device is this machine."""
        return self.host == LOCAL


def default_path() -> Path:
    """Return the path of `edgeship/devices.toml` in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME") or user_path("~/.config")
    return Path(base) / "edgeship" / "devices.toml"


def load(path: Path) -> dict[str, Device]:
    """Read an inventory; a missing file is an empty one.

    Raises:
        DeviceError: The file is not TOML, or a device is invalid.
    """
    if not path.exists():
        return {}
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DeviceError(
            f"cannot read {path}: {error}", hint="correct the file, or use another with --inventory FILE"
        ) from error
    defaults = document.get("defaults", {})
    devices = document.get("devices", {})
    unknown = set(document) - {"defaults", "devices"}
    tables = isinstance(devices, dict) and all(isinstance(d, dict) for d in (defaults, *devices.values()))
    if unknown or not tables:
        raise DeviceError(
            f"{path} is not an inventory", hint="it has [defaults] and one [devices.NAME] for each device"
        )
    return {name: parse(name, {**defaults, **fields}) for name, fields in devices.items()}


def parse(name: str, fields: Mapping[str, Any]) -> Device:
    """Validate the fields of one device.

    Raises:
        DeviceError: A field is unknown or of the wrong type, or a value is unsafe for a shell.
    """
    allowed = {f.name: f for f in dataclasses.fields(Device) if f.name != "name"}
    for key, value in fields.items():
        if key not in allowed:
            raise DeviceError(f"device {name!r}: no field {key!r}", hint=nearest(key, allowed))
        if not isinstance(value, _KINDS.get(key, (str,))) or isinstance(value, bool):
            raise DeviceError(f"device {name!r}: {key} = {value!r} is of the wrong kind", hint=_EXAMPLES)
    for key in ("host", "target"):
        if not fields.get(key):
            raise DeviceError(f"device {name!r} has no {key}", hint=_EXAMPLES)
    tags = fields.get("tags", ())
    checks: list[tuple[str, str, re.Pattern[str]]] = [
        ("name", name, _NAME),
        ("host", fields["host"], _HOST),
        ("target", fields["target"], _NAME),
        *(("tag", str(tag), _NAME) for tag in tags),
        *((key, fields[key], pattern) for key, pattern in _OPTIONAL if fields.get(key)),
    ]
    for what, value, pattern in checks:
        if not pattern.match(value):
            raise DeviceError(
                f"device {name!r}: {value!r} cannot be a {what}", hint="use letters, digits, '.', '_' and '-'"
            )
    if fields["target"] not in targets.names():
        raise DeviceError(
            f"device {name!r}: no target named {fields['target']!r}",
            hint=nearest(fields["target"], targets.names()),
        )
    if not 0 <= fields.get("port", 0) < 65536:
        raise DeviceError(f"device {name!r}: no port {fields['port']}", hint="set port to 1 to 65535")
    for key in ("root", "health", "python", "key", "ssh_config"):
        if "\0" in fields.get(key, "") or "\n" in fields.get(key, ""):
            raise DeviceError(f"device {name!r}: {key} has a line break in it", hint="write it on one line")
    parts = PurePosixPath(root := fields.get("root", "~/edgeship")).parts
    if all(part[0] in "/~" for part in parts) or ".." in parts:
        raise DeviceError(
            f"device {name!r}: root = {root!r} is no folder of its own, and its files may be removed",
            hint="write the path of a folder for edgeship alone, e.g. ~/edgeship",
        )
    try:
        words = shlex.split(fields.get("python", "python3"))
    except ValueError as error:
        raise DeviceError(f"device {name!r}: python = {fields['python']!r}: {error}", hint=_PYTHON) from error
    if not words:
        raise DeviceError(f"device {name!r}: python is empty", hint=_PYTHON)
    for key in ("key", "ssh_config"):  # files on this machine
        try:
            user_path(fields.get(key, ""))
        except DataError as error:
            raise DeviceError(
                f"device {name!r}: {key} = {fields[key]!r}: {error}", hint="write the whole path"
            ) from error
    return Device(name, **{**fields, "tags": tuple(tags)})


def select(path: Path | None, names: Iterable[str], tags: Iterable[str]) -> list[Device]:
    """Return the devices of an inventory (None: the default one) with one of the names or tags.

    Raises:
        DeviceError: A name or tag does not exist, neither is specified, or the inventory is invalid.
    """
    return choose(load(path or default_path()), names, tags)


def choose(entries: Mapping[str, Device], names: Iterable[str], tags: Iterable[str]) -> list[Device]:
    """Return the devices with one of the names or tags, in inventory order.

    Raises:
        DeviceError: A name or tag does not exist, or neither is specified.
    """
    names, tags = list(names), list(tags)
    for name in names:
        if name not in entries:
            raise DeviceError(f"no device named '{name}'", hint=nearest(name, entries) if entries else _EMPTY)
    for tag in tags:
        every = {t for entry in entries.values() for t in entry.tags}
        if tag not in every:
            tagless = "no device has tags: `edgeship device list`" if entries else _EMPTY
            hint = nearest(tag, every) if every else tagless
            raise DeviceError(f"no device has the tag '{tag}'", hint=hint)
    chosen = [e for e in entries.values() if e.name in names or set(tags) & set(e.tags)]
    if not chosen:
        hint = "choose with --device NAME or --tag TAG" if entries else _EMPTY
        raise DeviceError("no device is chosen", hint=hint)
    return chosen


def add(path: Path, entry: Device) -> None:
    """Append a device to an inventory without changing the rest.

    Raises:
        DeviceError: The name exists already, or the entry is invalid.
    """
    if entry.name in load(path):
        raise DeviceError(
            f"{path} has a device '{entry.name}' already", hint=f"`edgeship device remove {entry.name}` first"
        )
    defaults = {f.name: f.default for f in dataclasses.fields(Device)}
    fields = {
        key: value
        for key, value in dataclasses.asdict(entry).items()
        if key != "name" and value != defaults[key]
    }
    parse(entry.name, fields)
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items()]
    before = path.read_text(encoding="utf-8") if path.exists() else _HEADER
    block = "\n".join([f"[devices.{_toml(entry.name)}]", *lines])
    write_text(path, f"{before.rstrip()}\n\n{block}\n")


def remove(path: Path, name: str) -> None:
    """Remove a device's table from an inventory.

    Raises:
        DeviceError: There is no such device, or its table is not in the form that `add` writes.
    """
    entries = load(path)
    if name not in entries:
        raise DeviceError(f"no device named '{name}'", hint=nearest(name, entries) if entries else _EMPTY)
    headers = {f"[devices.{name}]", f"[devices.{_toml(name)}]"}
    remaining, inside = [], False
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            inside = line.split("#")[0].strip() in headers
        if not inside:
            remaining.append(line)
    text = "\n".join(remaining).rstrip() + "\n"
    rest = tomllib.loads(text).get("devices", {})
    if set(rest) != set(entries) - {name}:
        raise DeviceError(f"'{name}' is not a table of its own in {path}", hint="remove it by hand")
    write_text(path, text)


_EMPTY = "the inventory is empty: `edgeship device add NAME --host HOST --target openvino`"
_PYTHON = "for example: python3, or docker exec -i NAME python3"
_EXAMPLES = 'for example: host = "10.0.0.5", target = "tensorrt", port = 22, tags = ["lab"]'
_KINDS: dict[str, tuple[type, ...]] = {"port": (int,), "tags": (list, tuple)}
_OPTIONAL = (("user", _USER), ("jump", _JUMP))


def _toml(value: Any) -> str:
    """Format a string, number or list as TOML, which for these equals JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )
