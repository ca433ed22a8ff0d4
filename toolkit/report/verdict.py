"""Verdict per target: level, sentence and next steps."""

from __future__ import annotations

import math
from dataclasses import replace

from edgeship.toolkit.core.results import HALVES, Gate, LatencySummary, Level, RunReport, Variant, Verdict
from edgeship.toolkit.core.statistics import NOISY
from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.timing import AGAIN, MORE_RUNS, disturbances, few_runs

FASTEST = "Fastest of the {} targets that pass."
SET_LIMIT = "set one with `--set report.max_drop_pp=1`"

STAMPS: dict[Level, str] = {  # in order of preference among the variants of a target
    "pass": "PASS",
    "no_limit": "NEEDS MORE DATA (no limit set)",
    "needs_data": "NEEDS MORE DATA",
    "no_gain": "FAIL (no gain)",
    "not_measured": "NEEDS MORE DATA (not measured)",
    "no_verdict": "NEEDS MORE DATA (no verdict)",
    "fail": "FAIL",
}
ORDER = tuple(STAMPS)
SHIPPED: tuple[Level, ...] = ("pass", "no_limit", "needs_data", "not_measured", "no_verdict")  # with a file


def verdicts(report: RunReport) -> tuple[Verdict, ...]:
    """Return one verdict per target with a variant that is not FP32, best first.

    A verdict is about the target's best variant and has a line on each other one. The fastest of several that
    pass is marked. With an input check of effect "no_verdict", every target has that level.
    """
    targets = dict.fromkeys(v.target for v in report.variants if v.precision != "fp32")
    refusal = next((check for check in report.input_checks if check.effect == "no_verdict"), None)
    if refusal is not None:
        hint = (refusal.hint,) if refusal.hint else ()
        return tuple(
            Verdict(name, "no_verdict", f"{formatting.target(name)}: {refusal.message.rstrip('.')}.", hint)
            for name in targets
        )
    judged = sorted((_verdict(report, name) for name in targets), key=lambda pair: _rank(*pair))
    passed = [best for verdict, best in judged if verdict.level == "pass" and best and best.latency_ms]
    return tuple(
        replace(verdict, steps=(FASTEST.format(len(passed)), *verdict.steps))
        if best and len(passed) > 1 and best is passed[0]
        else verdict
        for verdict, best in judged
    )


def files_to_ship(report: RunReport) -> dict[str, str]:
    """Return target -> file of the variant of its verdict, below the folder of the run; not of a failure."""
    return {target: v.file for target, v in to_ship(report).items() if v.file is not None}


def to_ship(report: RunReport) -> dict[str, Variant]:
    """Return target -> variant of its verdict; not of a failure."""
    shown = [each.target for each in report.verdicts or verdicts(report) if each.level in SHIPPED]
    best = {target: _verdict(report, target)[1] for target in shown}
    return {target: v for target, v in best.items() if v is not None}


def _rank(verdict: Verdict, best: Variant | None) -> tuple[int, float]:
    return ORDER.index(verdict.level), best.latency_ms.p50 if best and best.latency_ms else math.inf


def warnings(report: RunReport) -> tuple[str, ...]:
    """List warnings about the validity of the measurements."""
    lines = []
    noisy = [
        f"{v.name} {formatting.percent(v.latency_ms.cv, 1)}"
        for v in report.variants
        if v.latency_ms and v.latency_ms.cv is not None and v.latency_ms.cv > NOISY
    ]
    if noisy:
        lines.append(
            f"Noisy latency: the coefficient of variation is above {100 * NOISY:.0f} % ({', '.join(noisy)}). "
            f"Other work ran or the clock frequency changed. Use the median, and {AGAIN}."
        )
    short = [
        f"{v.name} {v.latency_ms.runs}" for v in report.variants if v.latency_ms and few_runs(v.latency_ms)
    ]
    if short:
        lines.append(f"Few timed runs ({', '.join(short)}): spread and p99 are unreliable; {MORE_RUNS}.")
    if any(v.latency_ms for v in report.variants):
        lines += disturbances(report.environment)
    lines += [f"{v.name}: {warning}" for v in report.variants for warning in v.warnings]
    return tuple(lines)


def _verdict(report: RunReport, target: str) -> tuple[Verdict, Variant | None]:
    """Return the verdict on a target, and the variant that it is about."""
    rows = [v for v in report.variants if v.target == target and v.precision != "fp32"]
    ran = [v for v in rows if v.kind != "not run"]
    if not ran:
        error = next((v.error for v in rows if v.error), "no engine was built").rstrip(".")
        hint = next((v.hint for v in rows if v.hint), None)
        sentence = f"{formatting.target(target)} was not run: {error}."
        return Verdict(target, "not_measured", sentence, (hint,) if hint else ()), None
    ranked = sorted(((*_level(v, report), v) for v in ran), key=lambda each: _merit(each[0], each[2]))
    level, sentence, best = ranked[0]
    if level == "pass":  # of the best variant only
        sentence = f"{sentence[:-1]}, deploy it."
    whole = (v for v in ran if best.pruned and not v.pruned and v.precision == best.precision)
    dense = next((v for v in whole if not _doubt(best, report)), None)
    pairs = report.environment.int8_sums == "pairs"
    others = tuple(f"Also: {other}" for _, other, _ in ranked[1:])
    return Verdict(
        target, level, sentence, (*_pruning_gain(best, dense), *_steps(best, level, pairs=pairs), *others)
    ), best


def _merit(level: Level, v: Variant) -> tuple[int, bool, bool, float, float, float]:
    """Return a sort key: level; guarded; if undecided or untimed INT8, then drop; latency; top-1."""
    open_question = level in ("no_limit", "needs_data", "not_measured")
    drop = v.drop_pp if level in ("no_limit", "needs_data") and v.drop_pp is not None else 0.0
    latency_ms = v.latency_ms.p50 if v.latency_ms else math.inf
    other = open_question and v.precision != "int8"
    return ORDER.index(level), v.guard is None, other, drop, latency_ms, -(v.top1 or 0.0)


def _level(v: Variant, report: RunReport) -> tuple[Level, str]:
    """Return the level of a variant and its sentence."""
    doubt = _doubt(v, report)
    facts = _facts(v, doubtful=bool(doubt))
    gates = [gate for gate in report.gates if gate.variant == v.name]
    missed = [gate for gate in gates if gate.outcome == "fail"]
    if missed:
        return "fail", f"{facts}: do not deploy it, it misses {_limits(missed)}."
    if v.drop_pp is None:
        unknown = [gate for gate in gates if gate.outcome == "not_measured"]
        against = f", so {_limits(unknown)} cannot be decided" if unknown else ""
        return "not_measured", f"{facts}: its accuracy is unknown{against}; evaluate it on labelled images."
    undecided = "; ".join(
        _undecided(gate)
        for gate in gates
        if gate.outcome == "needs_data" and (gate.name == "max_drop_pp" or not doubt)
    )
    if v.speedup is None and v.latency_ms is not None:
        return "not_measured", f"{facts}: its speed-up is unknown, because no FP32 variant was timed."
    if v.speedup is None:
        where = " in simulation" if v.kind == "simulated" else ""
        rest = f"; {undecided}" if undecided else ""
        step = "run the stage bench" if v.runs_here else "measure it on the device"
        return "not_measured", f"{facts}{where}; its speed was not measured: {step}{rest}."
    if doubt or undecided:
        return "needs_data", f"{facts}, but {'; '.join(part for part in (doubt, undecided) if part)}."
    rival = _rival(v, report)
    if rival or v.speedup <= 1.0:
        kind = v.precision.upper()
        return "no_gain", f"{facts}: {kind} brings no gain on this machine{f', {rival}' if rival else ''}."
    elsewhere = _rival(v, report, elsewhere=True)
    if elsewhere:
        return "no_gain", f"{facts}, but on this machine {elsewhere}, without a loss of accuracy."
    met = [gate for gate in gates if gate.outcome == "pass"]
    if all(gate.name != "max_drop_pp" for gate in met):
        also = f"it meets {_limits(met)}, but " if met else ""
        return "no_limit", f"{facts}: {also}no limit of the drop is set; {SET_LIMIT}."
    caution = next((check for check in report.input_checks if check.effect == "no_pass"), None)
    if caution is not None:
        return "needs_data", f"{facts}, but {caution.message.rstrip('.')}{_cure(caution.hint)}."
    return "pass", f"{facts}: it meets {_limits(met)}."


def _limits(gates: list[Gate]) -> str:
    """Return the limits as text: max_drop_pp = 1 and min_speedup = 2 (judged by the point)."""
    names = [f"{gate.name} = {gate.limit:g}" for gate in gates]
    by_point = " (judged by the point)" if any(gate.judged_by == "point" for gate in gates) else ""
    return " and ".join(names) + by_point


def _undecided(gate: Gate) -> str:
    """Return the undecided limit and the gate's reason, without the figures."""
    return f"{gate.name} = {gate.limit:g} is undecided: {gate.reason.partition(': ')[2]}"


def _cure(hint: str) -> str:
    return f": {hint.rstrip('.')}" if hint else ""


def _rival(v: Variant, report: RunReport, *, elsewhere: bool = False) -> str | None:
    """Return text about a faster variant in another precision; None if there is none.

    Args:
        v: The variant.
        report: The report.
        elsewhere: Look at FP32 variants of the other targets of this machine, not at the same target.
    """
    timed = [
        (each.latency_ms.p50, each)
        for each in report.variants
        if each.pruned == v.pruned
        and each.precision != v.precision
        and each.latency_ms
        and (
            each.target != v.target and each.precision == "fp32" and each.runs_here and v.runs_here
            if elsewhere
            else each.target == v.target
        )
    ]
    fastest_ms, other = min(timed, key=lambda pair: pair[0], default=(math.inf, v))
    if v.latency_ms is None or fastest_ms >= v.latency_ms.p50:
        return None
    return (
        f"{formatting.title(other)} is faster ({formatting.milliseconds(fastest_ms)} "
        f"against {formatting.milliseconds(v.latency_ms.p50)})"
    )


def _doubt(v: Variant, report: RunReport) -> str:
    """Return why a speed-up is doubtful: few runs, other work, or overlapping intervals of the medians."""
    over = next((each.latency_ms for each in report.variants if each.name == v.speedup_over), None)
    timed: list[LatencySummary] = [latency for latency in (v.latency_ms, over) if latency]
    if any(few_runs(latency) for latency in timed):
        least = min(latency.runs for latency in timed)
        return f"only {least} run{' was' if least == 1 else 's were'} timed: {MORE_RUNS}"
    if disturbances(report.environment):
        return f"other work disturbed the timing: {AGAIN}"
    intervals = [latency.p50_ci95 for latency in timed if latency.p50_ci95]
    if len(intervals) > 1 and max(low for low, _ in intervals) <= min(high for _, high in intervals):
        return f"the difference in speed may be noise: {AGAIN}"
    return ""


def _facts(v: Variant, *, doubtful: bool) -> str:
    """Return speed-up and drop with their intervals; a doubtful speed-up is worded as a measurement."""
    parts = []
    if v.speedup is not None:
        verb, slower = "was timed" if doubtful else "is", " (slower)" * (v.speedup < 1)
        interval = f" {formatting.bracket(v.speedup_ci95)}" if v.speedup_ci95 else ""
        parts.append(f"{verb} {formatting.times(v.speedup)} as fast as FP32{interval}{slower}")
    if v.drop_pp is not None:
        parts.append(f"has a top-1 drop of {formatting.points(v.drop_pp, v.drop_ci95_pp)}")
    elif v.agreement is not None:
        parts.append(f"agrees with FP32 on {formatting.percent(v.agreement)} of the images")
    return f"{formatting.title(v)} {' and '.join(parts) or 'ran'}"


def _pruning_gain(pruned: Variant, dense: Variant | None) -> tuple[str, ...]:
    """Return the speed-up of pruning over quantization alone, as text."""
    if dense is None or dense.latency_ms is None or pruned.latency_ms is None:
        return ()
    ratio = dense.latency_ms.p50 / pruned.latency_ms.p50
    return (
        f"Median latency {formatting.milliseconds(pruned.latency_ms.p50)}, "
        f"{formatting.title(dense)} without pruning "
        f"{formatting.milliseconds(dense.latency_ms.p50)}: a speed-up of {formatting.times(ratio)}.",
    )


def _steps(v: Variant, level: Level, *, pairs: bool) -> tuple[str, ...]:
    steps = []
    if level != "pass" and v.drop_ci95_pp and v.drop_ci95_pp[0] > 0:
        steps.append("To reduce the drop: `--set quantize.effort=max`, or more calibration images.")
    for unknown, state in (
        (False, "run in float" if v.precision not in HALVES else f"do not run in {v.precision.upper()}"),
        (True, "are not listed, so their precision is unknown"),
    ):
        names = [
            layer.name
            for layer in v.audit
            if layer.weighted and layer.precision != v.precision and (layer.precision == "unknown") == unknown
        ]
        if names:
            shown = ", ".join(names[:3]) + ("…" if len(names) > 3 else "")
            steps.append(f"{len(names)} of {v.weighted_layers} layers with weights {state}: {shown}.")
    if v.latency_ms is None and v.kind == "simulated":
        steps.append("Build and measure it on the device: the accuracy is simulated.")
    elif v.speedup is not None and v.speedup <= 1:
        gain = ": without VNNI (INT8 products added in pairs), a processor gains little" if pairs else ""
        steps.append(f"See the time per layer{gain}.")
    return tuple(steps)
