"""Assembly of the report from stage folders; absent values stay None and are listed in `missing`.

In addition to the contract files (model.json, graphs.json, compiled.json, accuracy.json, latency.json, ...),
these optional files are read:

calibrate/findings.json findings on the number of images, form as select/findings.json
evaluate/findings.json  findings on skipped images, form as select/findings.json
evaluate/input_checks.json [`InputCheck`]: checks of preprocessing, labels and baseline
evaluate/images.json    {"source", "digest": SHA-256 of names and contents, "names": [N file names]}
bench/latency.json      a variant may add "throughput": {"<batch>": images a second}, "memory_bytes"
                        (peak), "resident_bytes", "energy_mj" (an image), "end_to_end_ms" [samples],
                        "float_end_to_end_ms" [samples] with float32 input, "measured_on", "threads",
                        "batch", "marks": warnings about its time; at the top level, "how" and "not_measured":
                        {key of a variant: text}
bench/device.json       `Device`, and "load_average": [1, 5, 15 minutes], "throttled": bool, "other_share" and
                        "stolen_share": fraction of all processors used by other processes and guests,
                        "int8_sums": "exact", or "pairs" (may overflow), "timed": UTC, ISO 8601
quantize/quantize.json  {target or target-pruned: {..., "warnings",
                         "activations": {name: {"dtype", "scale", "zero_point", "low", "high", "counts"}},
                         "weights": {name: {"channels", "smallest_scale", "median_scale", "largest_scale"}}}}
                        low, high: observed range; counts: histogram in equal bins over that range
quantize/sensitivity.json   {target or target-pruned: {"layers": [{"name", "kind", "sqnr_db", "drop_db",
                         "reverted", "why"}]}}
                        "images": number of calibration images; sqnr_db: of the layer's output with all layers
                        quantized; alone_sqnr_db: of the logits with this layer alone quantized; drop_db: SQNR
                        gain of the logits with this layer alone in float; reverted: left in float, why
prune/plan.json         `PrunePlan`, and "frontier": [{"macs" or "latency_ms",
                         "top1" or "expected_drop_pp", "chosen": bool}]
finetune/history.json   `History`
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.artifact import plain, read_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import IntArray
from edgeship.toolkit.core.results import (
    InputCheck,
    JudgeBy,
    Kind,
    LatencySummary,
    LayerAudit,
    RunReport,
    StageRun,
    Variant,
)
from edgeship.toolkit.core.typed_json import JsonFile
from edgeship.toolkit.report import gates, paired_analysis
from edgeship.toolkit.report.verdict import verdicts
from edgeship.toolkit.runs.network import ExportedGraphs, ModelInfo
from edgeship.toolkit.runs.variant_id import REFERENCE, VariantId

SCHEMA = 1
KEPT_SAMPLES = 1000
F = TypeVar("F", bound=JsonFile)


def gather(
    folders: Mapping[str, Path],
    *,
    recipe: Mapping[str, Any] | str,
    stages: Iterable[Mapping[str, Any]],
    max_drop_pp: float | None = None,
    min_speedup: float | None = None,
    max_latency_ms: float | None = None,
    judge_by: JudgeBy = "interval",
    command: str | None = None,
) -> RunReport:
    """Read the stage folders, apply the gates and return the report.

    Args:
        folders: Stage name -> folder; without the stages that were not run.
        recipe: Recipe with all options, or its name.
        stages: name, seconds and cached of every stage, in order.
        max_drop_pp: Largest allowed top-1 drop, in percentage points; None: no such gate.
        min_speedup: Smallest allowed ratio of FP32 latency to the variant's.
        max_latency_ms: Largest allowed median latency.
        judge_by: Compare the value ("point") or its 95 % interval ("interval") with a limit.
        command: Command that reproduces the run.
    """
    run = _Run(folders)
    variants, environment, checks = run.variants(), run.environment(), run.input_checks()
    report = RunReport(
        schema=SCHEMA,
        recipe=recipe if isinstance(recipe, str) else dict(recipe),
        model=run.model(),
        data=run.data(),
        environment=environment,
        variants=variants,
        gates=gates.judge(
            variants,
            max_drop_pp,
            min_speedup,
            max_latency_ms,
            by=judge_by,
            environment=environment,
            checks=checks,
        ),
        stages=tuple(
            StageRun(str(s["name"]), round(float(s["seconds"]), 3), bool(s["cached"])) for s in stages
        ),
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        findings=run.findings(),
        input_checks=checks,
        details=run.details(),
    )
    return replace(report, missing=tuple(dict.fromkeys(run.missing)), verdicts=verdicts(report))


class _Run:
    """Reader of the stage folders; `missing` lists absent files and values."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders
        self.missing: list[str] = []
        self.accuracy: dict[str, Any] = self.read("evaluate", "accuracy.json", {})
        self.latency: dict[str, Any] = self.read("bench", "latency.json", {})
        self.graphs = self.load("export", ExportedGraphs)
        self.compiled: dict[str, Any] = self.read("compile", "compiled.json", {})
        self.info = self.load("load", ModelInfo)
        self.quantized: dict[str, Any] = self.read("quantize", "quantize.json", {})
        self.device: dict[str, Any] = self.read("bench", "device.json", {})
        self.images: dict[str, Any] = self.read("evaluate", "images.json", {}, expected=False)

    def read(self, stage: str, name: str, default: Any, *, expected: bool = True) -> Any:
        """Read a JSON file of a stage; if absent, add a line to `missing` and return `default`."""
        folder = self.folders.get(stage)
        if folder is not None and (folder / name).is_file():
            try:
                return read_json(folder / name)
            except DataError as error:
                self.missing.append(f"{stage}: {error}")
                return default
        if expected:
            self.missing.append(f"{stage}: not run" if folder is None else f"{stage}: no {name}")
        return default

    def load(self, stage: str, kind: type[F]) -> F | None:
        """Read the file of a stage; if it is absent or damaged, add a line to `missing` and return None."""
        folder = self.folders.get(stage)
        if folder is None or not (folder / kind.FILE).is_file():
            self.missing.append(f"{stage}: not run" if folder is None else f"{stage}: no {kind.FILE}")
            return None
        try:
            return kind.read(folder)
        except DataError as error:
            self.missing.append(f"{stage}: {error}")
            return None

    def model(self) -> dict[str, Any]:
        info, graphs = self.info, self.graphs
        graph = graphs.graphs.get("float") if graphs else None
        described = info or graphs
        return {
            "name": info.name if info else None,
            "weights_sha256": info.weights_sha256 if info else None,
            "parameters": info.parameters if info else graph.parameters if graph else None,
            "macs": graph.macs if graph else None,
            "input_px": plain(graphs.preprocess.crop) if graphs else None,
            "preprocess": plain(described.preprocess) if described else None,
            "preprocess_source": info.preprocess_source if info else None,
        }

    def data(self) -> dict[str, Any]:
        data = self.accuracy.get("data") or {}
        manifest = self.read("select", "manifest.json", {})
        entries = manifest.get("entries")
        calibrated = self.read("calibrate", "float/statistics.json", {}, expected=False)
        classes = data.get("classes") or []
        return {
            "name": data.get("name"),
            "eval_images": data.get("images"),
            "calibration_images": len(entries) if entries is not None else None,
            "calibration_source": manifest.get("source"),
            "calibration_precision": calibrated.get("precision"),
            "classes": list(classes) if isinstance(classes, (list, tuple)) else [],
            "eval_source": self.images.get("source"),
            "eval_digest": self.images.get("digest"),
        }

    def findings(self) -> tuple[dict[str, str], ...]:
        return tuple(
            {key: str(finding.get(key) or "") for key in ("severity", "what", "hint")}
            for stage in ("select", "calibrate", "evaluate")
            for finding in self.read(stage, "findings.json", [], expected=stage == "select") or ()
        )

    def input_checks(self) -> tuple[InputCheck, ...]:
        return tuple(
            InputCheck(check["code"], check["effect"], check["message"], check.get("hint") or "")
            for check in self.read("evaluate", "input_checks.json", [], expected=False)
        )

    def environment(self) -> dict[str, Any]:
        device = dict(self.device)
        return {
            "cpu": device.pop("name", None),
            "instruction_sets": device.pop("instruction_sets", None),
            "cores": device.pop("cores", None),
            "versions": device.pop("versions", {}),
            **dict.fromkeys(
                ("arch", "memory_bytes", "power_mode", "clocks_mhz", "load_average", "throttled")
            ),
            **dict.fromkeys(("other_share", "stolen_share", "int8_sums")),
            **device,
        }

    def details(self) -> dict[str, Any]:
        plan = self.read("prune", "plan.json", {}, expected=False)
        details = {
            "export": self._export(),
            "pruning": plan if plan.get("method", "none") != "none" else None,
            "training": self.read("finetune", "history.json", None, expected=False),
            "quantize": self.quantized,
            "sensitivity": self.read("quantize", "sensitivity.json", None, expected=False),
            "bench": {key: self.latency[key] for key in ("how", "not_measured") if self.latency.get(key)},
        }
        return {key: _finite(value) or None for key, value in details.items()}

    def _export(self) -> dict[str, Any]:
        graphs = self.graphs
        if graphs is None:
            return {}
        return {"parity": graphs.parity, "size": plain(graphs.preprocess.crop), "batch": graphs.batch}

    def variants(self) -> tuple[Variant, ...]:
        accuracy, latency = self.accuracy.get("variants") or {}, self.latency.get("variants") or {}
        names = list(dict.fromkeys([*self.compiled, *accuracy, *latency]))
        paired = self._paired(names)
        summaries = {name: self._latency(latency.get(name)) for name in names}
        return tuple(
            self._variant(name, accuracy.get(name) or {}, latency.get(name) or {}, summaries, paired)
            for name in names
        )

    def _variant(
        self,
        name: str,
        accuracy: Mapping[str, Any],
        timing: Mapping[str, Any],
        summaries: Mapping[str, LatencySummary | None],
        paired: Mapping[str, Any],
    ) -> Variant:
        compiled = self.compiled.get(name) or {}
        variant = VariantId.parse(name)
        audit = tuple(_layer(layer) for layer in compiled.get("audit") or ())
        weighted = [layer for layer in audit if layer.weighted]
        graph = self.graphs.graphs.get(variant.float_graph) if self.graphs else None
        quantized: dict[str, Any] = {}
        if variant.precision == "int8":
            quantized = self.quantized.get(variant.quantized_graph) or {}
        kind = _kind(accuracy, summaries[name])
        over = next(
            (
                n
                for n in (f"{variant.target}-fp32", REFERENCE.name)
                if n != name and summaries.get(n) is not None
            ),
            None,
        )
        base, own = summaries.get(over) if over else None, summaries[name]
        if kind != "not run" and own is None and self.latency:
            why = "" if compiled.get("runs_here", True) else ": does not run on this machine"
            self.missing.append(f"latency of {name}{why}")
        if kind == "not run":
            self.missing.append(
                f"{name}: not run" + (f" ({compiled['error']})" if compiled.get("error") else "")
            )
        elif accuracy.get("top1") is None and self.accuracy:
            why = " (the images have no labels)" if accuracy.get("images") else ""
            self.missing.append(f"accuracy of {name}{why}")
        interval = accuracy.get("drop_ci95_pp")
        reference = variant == REFERENCE
        return Variant(
            name=name,
            target=variant.target,
            precision=variant.precision,
            pruned=variant.pruned,
            top1=_finite(accuracy.get("top1")),
            top5=_finite(accuracy.get("top5")),
            images=accuracy.get("images"),
            measured_on=accuracy.get("measured_on"),
            drop_pp=None if reference else _finite(accuracy.get("drop_pp")),
            drop_ci95_pp=(interval[0], interval[1]) if interval and not reference else None,
            agreement=None if reference else _finite(accuracy.get("agreement")),
            sqnr_db=None if reference else _finite(accuracy.get("sqnr_db")),
            latency_ms=own,
            throughput_ips=_finite(timing.get("throughput_ips")),
            size_bytes=compiled.get("size_bytes"),
            macs=graph.macs if graph else None,
            parameters=graph.parameters if graph else None,
            int8_layers=sum(layer.precision == "int8" for layer in weighted) if audit else None,
            weighted_layers=len(weighted) if audit else None,
            audit=audit,
            kind=kind,
            title=compiled.get("title") or "",
            runs_here=bool(compiled.get("runs_here", own is not None)),
            speedup=base.p50 / own.p50 if base and own and own.p50 > 0 else None,
            speedup_ci95=_quotient(base, own),
            speedup_over=over if base and own else None,
            note=compiled.get("note") or None,
            error=compiled.get("error") or None,
            hint=compiled.get("hint") or None,
            warnings=(
                *(quantized.get("warnings") or ()),
                *(compiled.get("warnings") or ()),
                *(timing.get("marks") or ()),
            ),
            batch_throughput={
                str(batch): ips for batch, ips in (timing.get("throughput") or {}).items() if ips
            },
            memory_bytes=timing.get("memory_bytes"),
            resident_bytes=timing.get("resident_bytes"),
            energy_mj=_finite(timing.get("energy_mj")),
            end_to_end_ms=_median(timing.get("end_to_end_ms")),
            float_end_to_end_ms=_median(timing.get("float_end_to_end_ms")),
            paired=paired.get(name),
        )

    def _latency(self, timing: Mapping[str, Any] | None) -> LatencySummary | None:
        samples = [float(sample) for sample in (timing or {}).get("samples_ms") or ()]
        if timing is None or not samples:
            return None
        mean = math.fsum(samples) / len(samples)
        # Random sample: a fixed stride would hide runs that alternate between fast and slow.
        few = min(len(samples), KEPT_SAMPLES)
        shown = np.sort(np.random.default_rng(0).choice(len(samples), few, replace=False)).tolist()
        return LatencySummary(
            batch=timing.get("batch", self.latency.get("batch")),
            p50=statistics.percentile(samples, 50),
            p90=statistics.percentile(samples, 90),
            p99=statistics.percentile(samples, 99),
            mean=mean,
            runs=len(samples),
            threads=timing.get("threads", self.latency.get("threads")),
            cv=statistics.variation(samples),
            p50_ci95=statistics.median_interval(samples),
            included=timing.get("included", self.latency.get("included")),
            measured_on=timing.get("measured_on", self.device.get("name")),
            samples=tuple(round(samples[i], 5) for i in shown),
        )

    def _paired(self, names: Iterable[str]) -> dict[str, Any]:
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
        files = self.images.get("names")
        files = files if files and len(files) == len(reference.first) else None
        paired = {}
        for name in names:
            other = self._predictions(name) if name != REFERENCE.name else None
            if other is not None and len(other.first) == len(reference.first):
                paired[name] = paired_analysis.compare(REFERENCE.name, reference, other, labels, files)
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


def _kind(accuracy: Mapping[str, Any], latency: LatencySummary | None) -> Kind:
    where = str(accuracy.get("measured_on") or "").lower()
    if accuracy.get("images") and "simulat" in where:
        return "simulated"
    if accuracy.get("images") and "published" in where:
        return "published"
    return "measured" if accuracy.get("images") or latency else "not run"


def _layer(layer: Mapping[str, Any]) -> LayerAudit:
    return LayerAudit(
        name=str(layer["name"]),
        kind=str(layer.get("kind", "")),
        precision=str(layer.get("precision", "")),
        weighted=bool(layer.get("weighted", False)),
        warning=str(layer.get("warning") or ""),
        time_ms=_finite(layer.get("time_ms")),
        fused=bool(layer.get("fused", False)),
    )


def _quotient(base: LatencySummary | None, own: LatencySummary | None) -> tuple[float, float] | None:
    """Return a conservative interval of the speed-up: the extreme ratios of the two median intervals."""
    if base is None or own is None or base.p50_ci95 is None or own.p50_ci95 is None:
        return None
    (base_low, base_high), (own_low, own_high) = base.p50_ci95, own.p50_ci95
    return (base_low / own_high, base_high / own_low) if own_low > 0 else None


def _median(samples: Any) -> float | None:
    return float(np.median(samples)) if samples else None


def _finite(value: Any) -> Any:
    """Replace infinities and NaN by None, because JSON has neither."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
