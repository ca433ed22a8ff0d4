"""Types of what a device sends, for `typed_json`: fields that are read, with their limits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeVar

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
class Alarm:
    """Alarm of the monitor."""

    frame: Count
    time: Count
    cause: str
    title: str


@dataclass(frozen=True)
class Monitored:
    """State of the monitor of an application."""

    frames: Count
    evidence: Amount
    frames_to_false_alarm: Amount
    updated: Count
    alarm: Alarm | None


@dataclass(frozen=True)
class Policy:
    """Model and lowest version that a device accepts."""

    floor: Count
    model: str | None


@dataclass(frozen=True)
class Status:
    """Answer to status; a record that is damaged is None."""

    root: str
    hostname: str
    free_bytes: Count
    takes_signed_only: bool
    policy: Policy
    locked_by: str | None
    current: ReleaseName | None
    previous: ReleaseName | None
    pending: Trial | None
    releases: dict[ReleaseName, dict[str, object] | None]
    history: list[Switch]
    bad: dict[ReleaseName, str]
    monitor: dict[str, object] | None = None


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
    rerun: Count | None = None


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
