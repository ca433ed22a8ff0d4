"""Assembly of the report from stage folders; absent values stay None and are listed in `missing`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

import numpy as np

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.artifact import plain, read_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import IntArray
from edgeship.toolkit.core.results import (
    DataFinding,
    Environment,
    InputCheck,
    JudgeBy,
    LatencyBy,
    LatencySummary,
    Paired,
    ReportedData,
    ReportedModel,
    RunReport,
    StageRun,
    Variant,
)
from edgeship.toolkit.core.typed_json import read_as
from edgeship.toolkit.report import gates, guard_summary, paired_analysis
from edgeship.toolkit.report.verdict import verdicts
from edgeship.toolkit.runs.compiled import CompiledVariant, CompiledVariants, published_folder
from edgeship.toolkit.runs.guarded import GuardedRuns, Guards, fast, guarded_record
from edgeship.toolkit.runs.index import StageResult
from edgeship.toolkit.runs.measured import (
    Accuracies,
    AccuracyRow,
    EvaluatedImages,
    EvaluationTime,
    Latencies,
    LatencyRecord,
)
from edgeship.toolkit.runs.network import ExportedGraph, ExportedGraphs, ModelInfo
from edgeship.toolkit.runs.quantized import PruningSummary, QuantizationSummary, Sensitivity
from edgeship.toolkit.runs.variant_id import REFERENCE, GraphName, VariantId

SCHEMA = 1
KEPT_SAMPLES = 1000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Selection:
    """The part of select/manifest.json that is reported."""

    source: str
    entries: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Statistics:
    """The part of calibrate/float/statistics.json that is reported."""

    precision: str | None = None
    images: int | None = None


def gather(
    folders: Mapping[str, Path],
    *,
    recipe: dict[str, object] | str,
    stages: Iterable[StageResult | StageRun],
    max_drop_pp: float | None = None,
    min_speedup: float | None = None,
    max_latency_ms: float | None = None,
    latency_by: LatencyBy = "p50",
    judge_by: JudgeBy = "interval",
    command: str | None = None,
) -> RunReport:
    """Read the stage folders, apply the gates and return the report.

    Args:
        folders: Stage name -> folder; without the stages that were not run.
        recipe: Recipe with all options, or its name.
        stages: The stages, in order.
        max_drop_pp: Largest allowed top-1 drop, in percentage points; None: no such gate.
        min_speedup: Smallest allowed ratio of FP32 latency to the variant's.
        max_latency_ms: Largest allowed latency.
        latency_by: Figure that it limits.
        judge_by: Compare the value ("point") or its 95 % interval ("interval") with a limit.
        command: Command that reproduces the run.
    """
    run = _Run(folders)
    variants, checks = run.variants(), run.input_checks()
    report = RunReport(
        schema=SCHEMA,
        recipe=recipe,
        model=run.model(),
        data=run.data(),
        environment=run.environment,
        variants=variants,
        gates=gates.judge(
            variants,
            max_drop_pp,
            min_speedup,
            max_latency_ms,
            latency_by=latency_by,
            by=judge_by,
            environment=run.environment,
            checks=checks,
        ),
        stages=tuple(StageRun(each.name, round(each.seconds, 3), each.cached) for each in stages),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        findings=run.findings(),
        input_checks=checks,
        details=run.details(),
    )
    return replace(report, missing=tuple(dict.fromkeys(run.missing)), verdicts=verdicts(report))


class _Run:
    """Reader of the stage folders; `missing` lists absent and damaged files and absent values."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders
        self.missing: list[str] = []
        self.accuracy = self.read("evaluate", Accuracies.FILE, Accuracies)
        self.latency = self.read("bench", Latencies.FILE, Latencies)
        self.graphs = self.read("export", ExportedGraphs.FILE, ExportedGraphs)
        self.compiled = self.read("compile", CompiledVariants.FILE, CompiledVariants)
        self.network = self.read("load", ModelInfo.FILE, ModelInfo)
        self.quantized = self.read("quantize", QuantizationSummary.FILE, dict[str, QuantizationSummary]) or {}
        self.environment = self.read("bench", "device.json", Environment) or Environment()
        guards = self.read("guard", Guards.FILE, Guards, expected=False)
        self.guards = guards.by_id() if guards else {}
        self.guarded = self.read("evaluate", GuardedRuns.FILE, GuardedRuns, expected=False)
        self.images = self.read("evaluate", EvaluatedImages.FILE, EvaluatedImages, expected=False)

    def read(self, stage: str, name: str, kind: type[T], *, expected: bool = True) -> T | None:
        """Read a JSON file of a stage; if absent or damaged, add a line to `missing` and return None."""
        folder = self.folders.get(stage)
        if folder is not None and (folder / name).is_file():
            try:
                return read_as(folder / name, kind)
            except DataError as error:
                self.missing.append(f"{stage}: {error}")
        elif expected:
            self.missing.append(f"{stage}: not run" if folder is None else f"{stage}: no {name}")
        return None

    def model(self) -> ReportedModel:
        network, graphs = self.network, self.graphs
        graph = self._graph("float")
        described = network or graphs
        return ReportedModel(
            name=network.name if network else None,
            weights_sha256=network.weights_sha256 if network else None,
            parameters=network.parameters if network else graph.parameters if graph else None,
            macs=graph.macs if graph else None,
            input_px=graphs.preprocess.crop if graphs else None,
            preprocess=described.preprocess if described else None,
            preprocess_source=network.preprocess_source if network else None,
        )

    def data(self) -> ReportedData:
        data = self.accuracy.data if self.accuracy else None
        selection = self.read("select", "manifest.json", _Selection)
        calibrated = self.read("calibrate", "float/statistics.json", _Statistics, expected=False)
        evaluated = self.read("evaluate", EvaluationTime.FILE, EvaluationTime, expected=False)
        return ReportedData(
            name=data.name if data else None,
            eval_images=data.images if data else None,
            calibration_images=calibrated.images if calibrated else None,
            calibration_images_selected=len(selection.entries) if selection else None,
            calibration_source=selection.source if selection else None,
            calibration_precision=calibrated.precision if calibrated else None,
            classes=data.classes if data else (),
            eval_source=self.images.source if self.images else None,
            eval_digest=self.images.digest if self.images else None,
            eval_outside_inference=evaluated.outside_inference if evaluated else None,
        )

    def findings(self) -> tuple[DataFinding, ...]:
        lists = (
            self.read(stage, "findings.json", list[DataFinding], expected=stage == "select")
            for stage in ("select", "calibrate", "evaluate")
        )
        return tuple(finding for findings in lists for finding in findings or ())

    def input_checks(self) -> tuple[InputCheck, ...]:
        return tuple(self.read("evaluate", "input_checks.json", list[InputCheck], expected=False) or ())

    def details(self) -> dict[str, object]:
        plan = self.read("prune", "plan.json", PruningSummary, expected=False)
        sensitivity = self.read("quantize", Sensitivity.FILE, dict[str, Sensitivity], expected=False)
        graphs, latency = self.graphs, self.latency
        bench = {"how": latency.how, "not_measured": latency.not_measured} if latency else {}
        details = {
            "export": graphs
            and {"parity": graphs.parity, "size": plain(graphs.preprocess.crop), "batch": graphs.batch},
            "pruning": self._json("prune", "plan.json") if plan and plan.method != "none" else None,
            "training": self.read("finetune", "history.json", dict[str, object], expected=False),
            "quantize": self._json("quantize", QuantizationSummary.FILE) if self.quantized else None,
            "sensitivity": self._json("quantize", Sensitivity.FILE) if sensitivity else None,
            "bench": {key: value for key, value in bench.items() if value},
        }
        return {key: _finite(value) or None for key, value in details.items()}

    def _json(self, stage: str, name: str) -> object:
        """Return all fields of a file that was read before."""
        content: object = read_json(self.folders[stage] / name)
        return content

    def variants(self) -> tuple[Variant, ...]:
        names = dict.fromkeys(
            name for part in (self.compiled, self.accuracy, self.latency) if part for name in part.variants
        )
        paired = self._paired(names)
        ids = [VariantId.parse(name) for name in names]
        latencies = {each: latency for each in ids if (latency := self._latency(each.name)) is not None}
        return tuple(self._variant(each, latencies, paired.get(each.name)) for each in ids)

    def _graph(self, name: GraphName) -> ExportedGraph | None:
        return self.graphs.graphs.get(name) if self.graphs else None

    def _variant(
        self, identity: VariantId, latencies: Mapping[VariantId, LatencySummary], paired: Paired | None
    ) -> Variant:
        name = identity.name
        accuracy = self.accuracy.variants.get(name) if self.accuracy else None
        compiled = self._compiled(identity)
        timing = self.latency.variants.get(name) if self.latency else None
        graph, own = self._graph(identity.float_graph), latencies.get(identity)
        left_out = self.accuracy.left_out.get(name) if self.accuracy else None
        row = Variant(
            name=name,
            target=identity.target,
            precision=identity.precision,
            pruned=identity.pruned,
            latency_ms=own,
            macs=graph.macs if graph else None,
            parameters=graph.parameters if graph else None,
            kind=accuracy.source if accuracy else "measured" if own else "not run",
            runs_here=own is not None,
            warnings=(*self._warnings(identity, compiled), *((left_out,) if left_out else ())),
            paired=paired,
        )
        if accuracy:
            row = _with_accuracy(row, accuracy)
        if compiled:
            row = _with_engine(row, compiled)
            if compiled.file is not None:
                row = replace(row, file=str(published_folder(identity) / compiled.file))
        if timing:
            row = _with_measurements(row, timing)
        bases = (VariantId(identity.target, "fp32"), REFERENCE)
        over = next((base for base in bases if base != identity and base in latencies), None)
        if over and own:
            row = _with_speedup(row, own, over.name, latencies[over])
        if identity in self.guards:
            row = guard_summary.with_guard(
                row,
                self.guards[identity],
                self.guarded.variants.get(name) if self.guarded else None,
                timing,
                latencies.get(fast(identity)),
            )
        self._note_absent(row)
        return row

    def _compiled(self, identity: VariantId) -> CompiledVariant | None:
        """Return the record of a variant; of a guarded one that of both engines."""
        if self.compiled is None:
            return None
        if identity in self.guards:
            return guarded_record(identity, self.guards[identity], self.compiled.built())
        return self.compiled.variants.get(identity.name)

    def _warnings(self, identity: VariantId, compiled: CompiledVariant | None) -> tuple[str, ...]:
        is_quantized = identity.precision in ("int8", "fp8")
        quantized = self.quantized.get(identity.quantized_graph) if is_quantized else None
        return (*(quantized.warnings if quantized else ()), *(compiled.warnings if compiled else ()))

    def _note_absent(self, row: Variant) -> None:
        if row.kind != "not run" and row.latency_ms is None and self.latency:
            why = "" if row.runs_here or not self.compiled else ": does not run on this machine"
            self.missing.append(f"latency of {row.name}{why}")
        if row.kind == "not run":
            reason = row.error or (self.accuracy and self.accuracy.left_out.get(row.name))
            self.missing.append(f"{row.name}: not run" + (f" ({reason})" if reason else ""))
        elif row.top1 is None and self.accuracy:
            reason = self.accuracy.left_out.get(row.name, "the images have no labels" if row.images else "")
            why = f" ({reason})" if reason else ""
            self.missing.append(f"accuracy of {row.name}{why}")

    def _latency(self, name: str) -> LatencySummary | None:
        latency = self.latency
        samples = latency.variants[name].samples_ms if latency and name in latency.variants else ()
        if latency is None or not samples:
            return None
        # Random sample: a fixed stride would hide runs that alternate between fast and slow.
        few = min(len(samples), KEPT_SAMPLES)
        shown = np.sort(np.random.default_rng(0).choice(len(samples), few, replace=False)).tolist()
        return LatencySummary(
            batch=latency.batch,
            p50=statistics.percentile(samples, 50),
            p90=statistics.percentile(samples, 90),
            p99=statistics.percentile(samples, 99),
            mean=math.fsum(samples) / len(samples),
            runs=len(samples),
            threads=latency.threads,
            cv=statistics.variation(samples),
            p50_ci95=statistics.batch_interval(samples),
            mean_ci95=statistics.batch_interval(samples, np.mean),
            p99_ci95=statistics.batch_interval(
                samples, lambda part: statistics.percentile(part, 99), statistics.FEWEST_TAIL_RUNS
            ),
            included=latency.included,
            measured_on=self.environment.cpu,
            samples=tuple(round(samples[i], 5) for i in shown),
        )

    def _paired(self, names: Iterable[str]) -> dict[str, Paired]:
        folder = self.folders.get("evaluate")
        reference = self._predictions(REFERENCE.name)
        if folder is None or reference is None:
            return {}
        labels: IntArray | None = None
        if (folder / "labels.npy").is_file():
            labels = np.load(folder / "labels.npy", allow_pickle=False).astype(np.int64)
        if labels is None or len(labels) != len(reference.first):
            self.missing.append("evaluate: no labels.npy of the length of the logits")
            labels = None
        files = self.images.names if self.images else ()
        named = files if len(files) == len(reference.first) else None
        paired = {}
        for name in names:
            other = self._predictions(name) if name != REFERENCE.name else None
            if other is not None and len(other.first) == len(reference.first):
                paired[name] = paired_analysis.compare(REFERENCE.name, reference, other, labels, named)
        return paired

    def _predictions(self, name: str) -> paired_analysis.Predictions | None:
        folder = self.folders.get("evaluate")
        path = folder / "logits" / f"{name}.npy" if folder else None
        if path is None or not path.is_file():
            return None
        try:
            return paired_analysis.predictions(path)
        except (OSError, ValueError) as error:
            self.missing.append(f"evaluate: logits of {name} cannot be read ({error})")
            return None


def _with_accuracy(row: Variant, accuracy: AccuracyRow) -> Variant:
    """Add the accuracy; the reference has no drop against itself."""
    row = replace(
        row,
        top1=accuracy.top1,
        top5=accuracy.top5,
        images=accuracy.images,
        measured_on=accuracy.measured_on,
    )
    if row.name == REFERENCE.name:
        return row
    return replace(
        row,
        drop_pp=accuracy.drop_pp,
        drop_ci95_pp=accuracy.drop_ci95_pp,
        agreement=accuracy.agreement,
        sqnr_db=accuracy.sqnr_db,
    )


def _with_engine(row: Variant, compiled: CompiledVariant) -> Variant:
    """Add size and audit of the engine, or the error of its compilation."""
    weighted = [layer for layer in compiled.audit if layer.weighted]
    return replace(
        row,
        size_bytes=compiled.size_bytes,
        int8_layers=sum(layer.precision == "int8" for layer in weighted) if compiled.audit else None,
        weighted_layers=len(weighted) if compiled.audit else None,
        audit=compiled.audit,
        title=compiled.title,
        runs_here=compiled.runs_here,
        note=compiled.note or None,
        error=compiled.error,
        hint=compiled.hint,
    )


def _with_measurements(row: Variant, timing: LatencyRecord) -> Variant:
    """Add throughput, memory, energy and end-to-end time."""
    return replace(
        row,
        throughput_ips=timing.throughput_ips,
        batch_throughput={batch: ips for batch, ips in timing.throughput.items() if ips},
        memory_bytes=timing.memory_bytes,
        resident_bytes=timing.resident_bytes,
        energy_mj=timing.energy_mj,
        end_to_end_ms=_median(timing.end_to_end_ms),
        float_end_to_end_ms=_median(timing.float_end_to_end_ms),
    )


def _with_speedup(row: Variant, own: LatencySummary, over: str, base: LatencySummary) -> Variant:
    """Add the speed-up over a base, by medians or, of a guarded variant, by means.

    Its interval has the extreme ratios of the two intervals.
    """
    interval, guarded = None, VariantId.parse(row.name).guarded
    figures = (base.mean, own.mean) if guarded else (base.p50, own.p50)
    intervals = (base.mean_ci95, own.mean_ci95) if guarded else (base.p50_ci95, own.p50_ci95)
    of_base, of_own = intervals
    if of_base and of_own and of_own[0] > 0:
        interval = (of_base[0] / of_own[1], of_base[1] / of_own[0])
    speedup = figures[0] / figures[1] if figures[1] > 0 else None
    return replace(row, speedup=speedup, speedup_ci95=interval, speedup_over=over)


def _median(samples: tuple[float, ...]) -> float | None:
    return float(np.median(samples)) if samples else None


def _finite(value: object) -> object:
    """Replace infinities and NaN in JSON by None, because JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
