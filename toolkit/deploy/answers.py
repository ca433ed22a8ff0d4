"""Schema of what a device sends: a device may be broken or hostile, so that all is bounded and checked."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from edgeship.toolkit.core.errors import DataError, DeviceError
from edgeship.toolkit.core.typed_json import from_json

LINE_BYTES = 4 << 20  # the status of some hundred releases
TEXT = 5000  # characters of a text; the rest is cut off
DEPTH = 30
RELEASE = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}\Z")

N = TypeVar("N", bound="_Number")


class _Number(float):
    """Number with limits, for `typed_json`."""

    low, high = -math.inf, math.inf
    whole = False

    @classmethod
    def from_json(cls: type[N], value: object) -> N:
        """Convert a JSON number.

        Raises:
            ValueError: It is no number, or outside the limits.
        """
        kinds = int if cls.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not cls.low <= value <= cls.high:
            raise ValueError(f"{'an integer' if cls.whole else 'a number'} of {cls.low:g} to {cls.high:g}")
        return cls(value)


class Fraction(_Number):
    """Share of images."""

    low, high = 0.0, 1.0


class Cosine(_Number):
    """Cosine of two vectors, with rounding."""

    low, high = -1.000001, 1.000001


class Amount(_Number):
    """Measured quantity: milliseconds, milliwatts, images per second."""

    low, high = 0.0, 1e15


class Count(_Number):
    """Number of things: bytes, images, runs."""

    low, high, whole = 0, 2**53, True


class ExitCode(_Number):
    """Exit code of a program; negative: killed by that signal."""

    low, high, whole = -64, 255, True


class ReleaseName(str):
    """Name of a release."""

    __slots__ = ()

    @classmethod
    def from_json(cls, value: object) -> ReleaseName:
        """Convert a JSON text.

        Raises:
            ValueError: It is no name of a release.
        """
        if not isinstance(value, str) or not RELEASE.match(value):
            raise ValueError("lower-case letters, digits, '.', '_' and '-'")
        return cls(value)


@dataclass(frozen=True)
class Refusal:
    """Error answer of the agent."""

    error: str
    hint: str
    code: str


@dataclass(frozen=True)
class Trial:
    """Release that is live until its health check has passed."""

    to: ReleaseName


@dataclass(frozen=True)
class Switch:
    """Entry of the history."""

    release: str


@dataclass(frozen=True)
class Status:
    """Answer to status; a record that is damaged is None."""

    root: str
    hostname: str
    free_bytes: Count
    takes_signed_only: bool
    locked_by: str | None
    current: ReleaseName | None
    previous: ReleaseName | None
    pending: Trial | None
    releases: dict[ReleaseName, dict[str, object] | None]
    history: list[Switch]
    bad: dict[ReleaseName, str]


@dataclass(frozen=True)
class Have:
    """Answer to have."""

    whole: list[str]
    part: dict[str, Count]


@dataclass(frozen=True)
class Stage:
    """Answer to stage."""

    folder: str


@dataclass(frozen=True)
class Run:
    """Answer to run."""

    exit: ExitCode
    log: str


@dataclass(frozen=True)
class Pruned:
    """Answer to prune."""

    removed: list[ReleaseName]
    freed_bytes: Count


@dataclass(frozen=True)
class Problem:
    """Problem of a device."""

    code: str
    cause: str
    cure: str


@dataclass(frozen=True)
class Cpu:
    """Processor of a device."""

    name: str | None
    instruction_sets: list[str] | None


@dataclass(frozen=True)
class Jetson:
    """Board of a device."""

    module: str | None
    jetpack: str | None
    l4t: str | None
    sm: str | None
    gpu_int8: bool | None
    dla_cores: Count | None


@dataclass(frozen=True)
class GpuClock:
    """Clock of a GPU."""

    max_hz: Amount | None
    locked: bool | None


@dataclass(frozen=True)
class Clocks:
    """Clocks of a device."""

    gpu: GpuClock | None


@dataclass(frozen=True)
class Memory:
    """Memory of a device."""

    total_bytes: Count | None


@dataclass(frozen=True)
class Sdk:
    """SDKs of a device."""

    cuda: str | None


@dataclass(frozen=True)
class Power:
    """Power mode of a device."""

    mode: str | None


@dataclass(frozen=True)
class Rails:
    """Power of a device."""

    total_mw: Amount | None
    total_from: str | None


@dataclass(frozen=True)
class Thermal:
    """Temperatures of a device."""

    temperatures_c: dict[str, float]


@dataclass(frozen=True)
class Python:
    """Python of a device."""

    version: str


@dataclass(frozen=True)
class Facts:
    """Facts of a device."""

    arch: str
    os: str | None
    cpu: Cpu
    jetson: Jetson | None
    clocks: Clocks
    memory: Memory
    sdk: Sdk
    power: Power
    rails: Rails
    thermal: Thermal
    python: Python


@dataclass(frozen=True)
class Backend:
    """Runtime of a device."""

    available: bool
    version: str | None
    precisions: list[str]
    typed_only: bool
    fake: bool
    cause: str | None
    cure: str | None


@dataclass(frozen=True)
class Probe:
    """Result of the runner's probe."""

    facts: Facts
    backends: dict[str, Backend]
    problems: list[Problem]


@dataclass(frozen=True)
class Built:
    """Result of the runner's build."""

    backend: str
    version: str
    key: str
    reused: bool
    build_s: Amount | None
    size_bytes: Count
    warnings: list[str]
    fake: bool = False


@dataclass(frozen=True)
class Tested:
    """Result of the runner's selftest."""

    images: Count
    cosine_min: Cosine
    cosine_mean: Cosine
    top1_agreement: Fraction
    largest_difference: Amount
    verdict: Literal["pass"]
    fake: bool = False


@dataclass(frozen=True)
class Evaluated:
    """Result of the runner's evaluate; without labels there is no top-1."""

    images: Count
    top1: Fraction | None
    top5: Fraction | None
    agreement: Fraction | None
    sqnr_db: float | None
    fake: bool = False


@dataclass(frozen=True)
class Spread:
    """Quantiles of latencies in milliseconds."""

    median: Amount
    p90: Amount
    p99: Amount
    mean: Amount


@dataclass(frozen=True)
class Timing:
    """Timing of one engine."""

    batch: Count
    runs: Count
    threads: Count | None
    latency_ms: Spread | None
    wall_ms: Spread
    throughput_ips: Amount
    included: str
    power_mw: Amount | None
    power_of: str | None
    energy_mj: Amount | None
    marks: list[str]


@dataclass(frozen=True)
class Timed:
    """Result of the runner's time."""

    timings: list[Timing]
    throttled: bool | None
    marks: list[str]
    fake: bool = False


@dataclass(frozen=True)
class Progress:
    """Progress of the runner."""

    elapsed_s: Amount
    done: Count | None = None
    total: Count | None = None


@dataclass(frozen=True)
class Fault:
    """Error of the runner."""

    message: str
    cure: str | None = None


@dataclass(frozen=True)
class RecordLatency:
    """Latency in a record; records of earlier versions lack threads."""

    batch: Count
    p50: Amount
    threads: Count | None = None


@dataclass(frozen=True)
class RecordAccuracy:
    """Accuracy in a record."""

    top1: Fraction | None
    gap_pp: float | None = None


@dataclass(frozen=True)
class RecordBuild:
    """Build in a record."""

    backend: str
    version: str


@dataclass(frozen=True)
class Record:
    """Record of a release: what its readers need of it."""

    variant: str
    target: str
    fake: bool
    facts: dict[str, object]
    problems: list[Problem]
    build: RecordBuild
    accuracy: RecordAccuracy | None
    latency_ms: RecordLatency
    power_mw: Amount | None
    marks: list[str] | None


ANSWERS: dict[str, type] = {
    "status": Status,
    "have": Have,
    "stage": Stage,
    "run": Run,
    "prune": Pruned,
    "error": Refusal,
}
RESULTS: dict[str, type] = {
    "probe": Probe,
    "build": Built,
    "selftest": Tested,
    "evaluate": Evaluated,
    "time": Timed,
    "progress": Progress,
    "error": Fault,
}


def check(device: str, name: str, value: object, kind: Any) -> Any:
    """Return an answer if it has its type; unknown fields stay.

    Args:
        device: Name of the device.
        name: Name of the command, for the message.
        value: Answer.
        kind: Type of `typed_json`.

    Raises:
        DeviceError: A field is absent or of another type.
    """
    try:
        from_json(value, kind, f"{device}: answer to {name}")
    except DataError as error:
        raise _untrusted(device, str(error)) from error
    if kind is Status and isinstance(value, dict):
        value["releases"] = {key: record_or_none(record) for key, record in value["releases"].items()}
    return value


def record_or_none(record: object) -> Any:
    """Return a record of a release; None if it is damaged."""
    try:
        from_json(record, Record, "record")
    except DataError:
        return None
    return record


def parse(device: str, line: bytes, *, strict: bool = True) -> dict[str, Any] | None:
    """Parse a line of the agent; None: it is noise.

    Args:
        device: Name of the device.
        line: The line.
        strict: Refuse other JSON; before the agent answers, a login may print it.

    Raises:
        DeviceError: It is other JSON, a number is not finite, or the nesting is too deep.
    """
    try:
        message = json.loads(line.decode(), parse_int=_integer)
    except ValueError:
        return None
    except RecursionError:
        message = None
    if not isinstance(message, dict) or not {"ok", "error", "event"} & set(message):
        if not strict:
            return None
        shown = printable_text(line[:60].decode(errors="replace"))
        raise _untrusted(device, f"{device}: answer is {shown!r}, expected an object with ok, error or event")
    cleaned: dict[str, Any] = _clean(device, message, "", 0)
    return cleaned


def printable_text(text: str) -> str:
    """Return a text of a device on one line and without control characters."""
    text = text if len(text) <= TEXT else f"{text[: TEXT // 2]} ... {text[-TEXT // 2 :]}"
    if text.isprintable():
        return text
    lines = " | ".join(line.rstrip() for line in text.strip("\n").split("\n"))
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in lines)


def _integer(text: str) -> int | float:
    return int(text) if len(text) < 20 else float(text)


def _clean(device: str, value: object, field: str, depth: int) -> Any:
    """Make texts printable; refuse what is not finite."""
    if depth > DEPTH:
        raise _untrusted(device, f"{device}: field '{field[:60]}' is nested more than {DEPTH} times")
    if isinstance(value, str):
        return printable_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise _untrusted(device, f"{device}: field '{field}' is {value}, expected a finite number")
    if isinstance(value, list):
        return [_clean(device, item, f"{field}.{place}", depth + 1) for place, item in enumerate(value)]
    if isinstance(value, dict):
        names = {printable_text(key)[:200]: item for key, item in value.items()}
        return {
            key: _clean(device, item, f"{field}.{key}".lstrip("."), depth + 1) for key, item in names.items()
        }
    return value


def _untrusted(device: str, message: str) -> DeviceError:
    return DeviceError(
        message, hint=f"check that {device} is the device you expect, and its storage; then deploy again"
    )
