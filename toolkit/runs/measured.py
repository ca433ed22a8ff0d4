"""Define what the evaluate and bench stages measure: accuracy, latency, and the machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgeship.toolkit.core.results import Source
from edgeship.toolkit.core.typed_json import JsonFile


@dataclass(frozen=True, slots=True)
class AccuracyRow:
    """Accuracy of a variant, and its drop against the float reference; see `core.results.Variant`.

    Attributes:
        source: Origin of the figures.
        measured_on: Device or simulator, in words.
    """

    images: int
    source: Source
    measured_on: str
    top1: float | None
    top5: float | None
    drop_pp: float | None
    drop_ci95_pp: tuple[float, float] | None
    agreement: float
    sqnr_db: float | None


@dataclass(frozen=True, slots=True)
class EvaluationData:
    """Name, number of images and class names of the evaluation images."""

    name: str
    images: int
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Accuracies(JsonFile):
    """Accuracy of every variant by name; `left_out`: variants whose logits are no numbers, and the reason."""

    FILE: ClassVar[str] = "accuracy.json"
    data: EvaluationData
    variants: dict[str, AccuracyRow]
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EvaluationTime(JsonFile):
    """Time of the evaluation.

    Attributes:
        seconds: Duration, with opening the engines.
        outside_inference: Share of the workers' time outside inference: opening engines, decoding, waiting.
    """

    FILE: ClassVar[str] = "time.json"
    seconds: float
    outside_inference: float


@dataclass(frozen=True, slots=True)
class EvaluatedImages(JsonFile):
    """The evaluated images: source, SHA-256 of names and contents, and names in the order of the logits."""

    FILE: ClassVar[str] = "images.json"
    source: str
    digest: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LatencyRecord:
    """Measurements of a variant; None or empty where not measured.

    Attributes:
        samples_ms: Latency of one batch.
        warning: Remark on the noise of the samples.
        throughput_ips: Images a second at the batch of the samples; `throughput`: by batch.
        memory_bytes: Peak memory of the session; `resident_bytes`: memory during inference.
        energy_mj: Millijoules an image.
        end_to_end_ms: Samples from decoded images; `float_end_to_end_ms`: the same with float input.
        rerun_share: Share of the timed images that a guard ran twice; None without a guard.
    """

    samples_ms: tuple[float, ...]
    warning: str = ""
    throughput_ips: float | None = None
    throughput: dict[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    resident_bytes: int | None = None
    energy_mj: float | None = None
    end_to_end_ms: tuple[float, ...] = ()
    float_end_to_end_ms: tuple[float, ...] = ()
    rerun_share: float | None = None


@dataclass(frozen=True, slots=True)
class Latencies(JsonFile):
    """Measurements of every variant that runs here, interleaved.

    Attributes:
        included: Operations in the time of a sample, in words.
        threads: CPU threads of a session.
        batch: Images an inference.
        variants: Name -> measurements.
        how: Field of a record -> method, in words.
        not_measured: Field of a record -> reason.
    """

    FILE: ClassVar[str] = "latency.json"
    included: str
    threads: int
    batch: int
    variants: dict[str, LatencyRecord]
    how: dict[str, str] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
