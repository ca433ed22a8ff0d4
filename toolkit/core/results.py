"""Define result types: accuracy, latency, device, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeship.toolkit.core.guard_results import GuardSummary
from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource, Size

Precision = Literal["fp32", "bf16", "fp16", "fp8", "int8"]
HALVES: tuple[Precision, ...] = ("bf16", "fp16")  # 16-bit floats: nothing is quantized


@dataclass(frozen=True, slots=True)
class Device:
    """A machine that latencies were measured on.

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
class LayerAudit:
    """One layer of a compiled engine, as executed by the runtime.

    Attributes:
        name: Name of the ONNX node(s), or the runtime's name where unknown.
        kind: Convolution, Add, FullyConnected, Pooling, ...
        precision: Runtime precision of the arithmetic: int8, fp16, fp32, bf16.
        weighted: True if the layer has weights.
        warning: Problem and cause; empty without one.
        time_ms: Time of the layer in the profile; None when not profiled.
        fused: True if the layer is fused into another, whose time includes it.
    """

    name: str
    kind: str
    precision: str
    weighted: bool
    warning: str = ""
    time_ms: float | None = None
    # outside schema 1
    fused: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Violation of a rule of a target by a graph.

    Attributes:
        rule: Name of the rule, stable.
        severity: "error": refused or misread; "warning": accepted, and slower than necessary.
        node: The ONNX node.
        message: Value seen and value expected.
        fix: Change to make.
        source: Origin of the rule.
        repairable: True if the target's repair makes the change.
    """

    rule: str
    severity: Literal["error", "warning"]
    node: str
    message: str
    fix: str
    source: str
    repairable: bool = False


# The report (schema 1). Fields above a line `# outside schema 1` are public; those below it may change.


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Latency of one batch, in milliseconds.

    Attributes:
        batch: Images an inference; None: unknown.
        p50: Median; p90, p99 and mean likewise.
        runs: Timed inferences.
        threads: CPU threads the session could use; None where it does not apply.
        cv: Coefficient of variation of the middle 90 %: standard deviation over mean.
        p50_ci95: 95 % interval of the median, from batch medians (holds for a drifting clock); mean_ci95 and
            p99_ci95 likewise.
        included: Operations in the time, in words.
        measured_on: The device.
        samples: At most 1,000 of the samples, chosen at random, in order.
    """

    batch: int | None
    p50: float
    p90: float
    p99: float
    mean: float
    runs: int
    # outside schema 1
    threads: int | None = None
    cv: float | None = None
    p50_ci95: tuple[float, float] | None = None
    included: str | None = None
    measured_on: str | None = None
    samples: tuple[float, ...] = ()
    mean_ci95: tuple[float, float] | None = None
    p99_ci95: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ClassAccuracy:
    """Top-1 accuracy on the images of one class, as an index into the class names.

    Attributes:
        drop_ci95_pp: 95 % interval of top1_reference - top1, in percentage points; None in older reports.
    """

    label: int
    images: int
    top1_reference: float
    top1: float
    # outside schema 1
    drop_ci95_pp: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Images of class `label` that the reference called `was` and the variant calls `now`."""

    label: int | None
    was: int
    now: int
    images: int


@dataclass(frozen=True, slots=True)
class Flip:
    """One image whose first class changed; confidences are softmax probabilities."""

    image: int
    name: str | None
    label: int | None
    was: int
    was_confidence: float
    now: int
    now_confidence: float


@dataclass(frozen=True, slots=True)
class Paired:
    """A variant against the reference, image by image.

    Attributes:
        reference: Name of the reference variant.
        images: Images both were run on.
        lost: Images that only the reference gets right; None without labels, as all below down to `classes`.
        won: Images that only the variant gets right.
        mcnemar_p: Two-sided exact p-value of "both err equally often".
        ece_reference: Expected calibration error of the reference, 15 bins.
        ece: That of the variant.
        classes: Per-class accuracy, classes with images only.
        changed: Images whose first class changed.
        identical: True if first class and confidence are bit-identical on every image.
        confusions: The commonest changes, most images first.
        flips: The changed images the reference was surest of, surest first.
    """

    reference: str
    images: int
    lost: int | None
    won: int | None
    mcnemar_p: float | None
    ece_reference: float | None
    ece: float | None
    classes: tuple[ClassAccuracy, ...]
    changed: int
    identical: bool
    confusions: tuple[Confusion, ...]
    flips: tuple[Flip, ...]


Source = Literal["measured", "simulated", "published"]
Kind = Literal["measured", "simulated", "published", "not run"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of the report: one network on one target; a figure that does not exist is None.

    Attributes:
        measured_on: Where accuracy was measured: this machine, a named device, or a simulation.
        drop_pp: Top-1 of the reference minus this one's, in percentage points.
        drop_ci95_pp: 95 % interval of the drop, for paired outcomes.
        agreement: Fraction of images with the reference's first class.
        sqnr_db: Signal to quantization noise ratio of the logits.
        size_bytes: Size of the engine, or without `runs_here` of the graph that a device compiles.
        int8_layers: Weighted layers that execute in INT8, of `weighted_layers`.
        kind: Origin of the accuracy.
        title: Product name of the target; empty in reports of earlier versions.
        speedup: Median latency of `speedup_over` divided by this one's; of a guarded variant the means.
        speedup_ci95: Its interval: the quotients of the far ends of both 95 % intervals.
        note: Compilation and checks, in words.
        error: Reason why it was not run; `hint`: the remedy.
        file: Engine, or the graph that a device compiles, below the folder of the run.
        batch_throughput: Batch size -> images a second, where measured.
        memory_bytes: Peak memory of the session; resident_bytes: memory during inference; energy_mj:
            millijoules an image; end_to_end_ms: from decoded images, median; float_end_to_end_ms: the same
            of an engine that does not normalize pixels itself. Each None where not measured.
    """

    name: str
    target: str
    precision: str
    pruned: bool
    top1: float | None = None
    top5: float | None = None
    images: int | None = None
    measured_on: str | None = None
    drop_pp: float | None = None
    drop_ci95_pp: tuple[float, float] | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    latency_ms: LatencySummary | None = None
    throughput_ips: float | None = None
    size_bytes: int | None = None
    macs: int | None = None
    parameters: int | None = None
    int8_layers: int | None = None
    weighted_layers: int | None = None
    audit: tuple[LayerAudit, ...] = ()
    # outside schema 1
    kind: Kind = "not run"
    title: str = ""
    runs_here: bool = False
    speedup: float | None = None
    speedup_ci95: tuple[float, float] | None = None
    speedup_over: str | None = None
    note: str | None = None
    error: str | None = None
    hint: str | None = None
    warnings: tuple[str, ...] = ()
    batch_throughput: dict[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    resident_bytes: int | None = None
    energy_mj: float | None = None
    end_to_end_ms: float | None = None
    float_end_to_end_ms: float | None = None
    paired: Paired | None = None
    file: str | None = None
    guard: GuardSummary | None = None


JudgeBy = Literal["interval", "point"]
LatencyBy = Literal["p50", "mean", "p99"]
Outcome = Literal["pass", "fail", "needs_data", "not_measured", "not_judged"]


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit that a variant must keep.

    Attributes:
        name: The recipe's key: max_drop_pp, min_speedup, max_latency_ms; max_flips only where it is missed.
        limit: The limit, in the unit of the name.
        value: The variant's figure; None when there is none.
        passed: True kept; False missed, or not measured though it should be; None undecided: with a value,
            the interval reaches the limit; without one, the variant does not run on this machine.
        variant: Row that the limit applies to; None: there is none.
        reason: The outcome in words.
        judged_by: Figure compared with the limit: the value ("point") or its 95 % interval.
        interval: 95 % interval of the value; None where there is none.
    """

    name: str
    limit: float
    value: float | None
    passed: bool | None
    # outside schema 1
    variant: str | None = None
    reason: str = ""
    judged_by: JudgeBy = "point"
    interval: tuple[float, float] | None = None

    @property
    def outcome(self) -> Outcome:
        """Return the outcome in one word, from `passed` and `value`."""
        if self.passed is None:
            return "not_judged" if self.value is None else "needs_data"
        if self.passed:
            return "pass"
        return "not_measured" if self.value is None else "fail"


@dataclass(frozen=True, slots=True)
class InputCheck:
    """Check of the user's input: preprocessing, labels, FP32 baseline.

    Attributes:
        code: Stable identifier, e.g. "preprocess-assumed", "baseline-at-chance", "class-order".
        effect: note: verdicts are unaffected; no_pass: no verdict is PASS; no_verdict: no target gets a
            verdict.
        message: The finding, with the value seen and the value expected.
        hint: One command or setting.
    """

    code: str
    effect: Literal["note", "no_pass", "no_verdict"]
    message: str
    hint: str = ""


Level = Literal["pass", "no_limit", "needs_data", "no_gain", "not_measured", "no_verdict", "fail"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict on one target.

    Attributes:
        target: Its name.
        level: pass: every limit is kept, ship; no_limit: none was set on accuracy; needs_data: images or
            timings do not decide; no_gain: limits are kept, and something else is faster; not_measured:
            accuracy or speed is missing; no_verdict: the input is implausible; fail: a limit is
            missed.
        sentence: The verdict in words.
        steps: Next steps, each a sentence.
    """

    target: str
    level: Level
    sentence: str
    steps: tuple[str, ...] = ()


Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True, slots=True)
class DataFinding:
    """One finding of the checks of images.

    Attributes:
        severity: "error" invalidates the result, "warning" may degrade it, "info" needs no action.
        what: Problem or observation, with examples.
        hint: One command or setting; empty if no action is needed.
    """

    severity: Severity
    what: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ReportedModel:
    """The network of a run, as in `runs.network`, with its multiply-accumulates and input size in pixels."""

    name: str | None = None
    weights_sha256: str | None = None
    parameters: int | None = None
    macs: int | None = None
    input_px: Size | None = None
    preprocess: Preprocess | None = None
    preprocess_source: PreprocessSource | None = None


@dataclass(frozen=True, slots=True)
class ReportedData:
    """The images of a run.

    Attributes:
        calibration_images: Images that the statistics were computed on.
        calibration_images_selected: Selected calibration images; the pass may have converged before the last.
        calibration_precision: Type of the floats in which the statistics were computed.
        classes: Class names, by index.
        eval_digest: SHA-256 of names and contents of the evaluated images.
        eval_outside_inference: Share of the time of the evaluation outside inference.
    """

    name: str | None = None
    eval_images: int | None = None
    calibration_images: int | None = None
    calibration_images_selected: int | None = None
    calibration_source: str | None = None
    calibration_precision: str | None = None
    classes: tuple[str, ...] = ()
    eval_source: str | None = None
    eval_digest: str | None = None
    eval_outside_inference: float | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine of the bench stage, as in `Device`, and its load during the timing.

    Attributes:
        load_average: Of 1, 5 and 15 minutes.
        other_share: Fraction of all processors used by other processes; `stolen_share`: by other guests.
        int8_sums: "pairs" of INT8 products are added in 16 bits and may overflow.
        timed: Time of the measurement, UTC, ISO 8601.
    """

    cpu: str | None = None
    instruction_sets: tuple[str, ...] | None = None
    cores: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    arch: str | None = None
    memory_bytes: int | None = None
    power_mode: str | None = None
    clocks_mhz: float | None = None
    load_average: tuple[float, ...] | None = None
    throttled: bool | None = None
    other_share: float | None = None
    stolen_share: float | None = None
    int8_sums: Literal["exact", "pairs"] | None = None
    timed: str | None = None


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of the run."""

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class RunReport:
    """Content of report.json.

    Attributes:
        recipe: The recipe as it was run, or its name.
        command: Command line that reproduces the run.
        created: UTC, ISO 8601.
        missing: Missing parts of the report, in words.
        findings: Findings of the data check.
        input_checks: Checks of preprocessing, labels and baseline that limit the verdicts.
        verdicts: One per target with an INT8 variant; empty in older reports.
        details: JSON of single stages for experts: export, quantization, pruning, training, bench.
    """

    schema: int
    recipe: dict[str, object] | str
    model: ReportedModel
    data: ReportedData
    environment: Environment
    variants: tuple[Variant, ...]
    gates: tuple[Gate, ...]
    stages: tuple[StageRun, ...]
    # outside schema 1
    command: str | None = None
    created: str | None = None
    missing: tuple[str, ...] = ()
    findings: tuple[DataFinding, ...] = ()
    input_checks: tuple[InputCheck, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    details: dict[str, object] = field(default_factory=dict)

    @property
    def missed(self) -> tuple[Gate, ...]:
        """Return the gates that were missed or not measured: any means exit code 3.

        Those of a 16-bit float do not count where the target has a quantized variant: it need not be taken.
        """
        quantized = {v.target for v in self.variants if v.precision not in ("fp32", *HALVES)}
        spare = {v.name for v in self.variants if v.precision in HALVES and v.target in quantized}
        return tuple(gate for gate in self.gates if gate.passed is False and gate.variant not in spare)
