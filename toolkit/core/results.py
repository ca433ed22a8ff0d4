"""What is measured: accuracy, latency, the device they belong to, and the report they end in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, slots=True)
class Device:
    """One machine: what a latency is bound to.

    Attributes:
        name: Processor or module name.
        arch: x86_64 or aarch64.
        instruction_sets: Those that matter for INT8 (avx2, avx512_vnni, avx_vnni, amx_int8, ...).
        cores: Physical or granted cores.
        memory_bytes: Main memory.
        power_mode: Name of the power mode or governor; None where there is none.
        clocks_mhz: Current clock of the processor; None where unknown.
        versions: SDK name -> version.
    """

    name: str
    arch: str
    instruction_sets: tuple[str, ...] = ()
    cores: int = 0
    memory_bytes: int = 0
    power_mode: str | None = None
    clocks_mhz: float | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy over labelled images; fractions in [0, 1], None without labels."""

    top1: float | None
    top5: float | None
    images: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Timed inferences of one batch.

    Attributes:
        batch: Images an inference.
        threads: CPU threads the session could use; None on a GPU.
        samples_ms: Every timed inference, in order.
        included: What the time holds, e.g. "inference call, input and output copies".
    """

    batch: int
    threads: int | None
    samples_ms: tuple[float, ...]
    included: str


@dataclass(frozen=True, slots=True)
class LayerAudit:
    """One layer of a compiled engine, as the runtime says it executes.

    Attributes:
        name: Name of the ONNX node(s), or the runtime's own where they cannot be told.
        kind: Convolution, Add, FullyConnected, Pooling, ...
        precision: Runtime precision of the arithmetic: int8, fp16, fp32, bf16.
        weighted: Whether the layer has weights.
        warning: What is wrong with it, and why; empty when nothing is.
        time_ms: Time of the layer in the profile; None when not profiled.
    """

    name: str
    kind: str
    precision: str
    weighted: bool
    warning: str = ""
    time_ms: float | None = None
