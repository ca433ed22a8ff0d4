"""The verdict on each target, in words that a decision can rest on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from toolkit.core.results import LatencySummary, RunReport, Variant
from toolkit.core.statistics import FEWEST_RUNS, NOISY
from toolkit.report import words

OTHERS, STOLEN = 0.25, 0.05  # parts of all processors above which a measurement was disturbed
DISTURBED = 0.25  # `variation` above which a median of a busy machine says nothing
LOSS_PP = 1.0  # without a gate, a possible loss above this asks for a look
AGAIN = "measure again on a quiet machine, with `--redo bench`"  # the stage: the store has its result
MORE_RUNS = f"time at least {FEWEST_RUNS} (`--set bench.runs={FEWEST_RUNS}`, or a longer bench.duration_s)"

FASTEST = "The fastest of the {} that may be shipped."

Level = Literal["good", "look", "open", "bad"]
ORDER = ("good", "look", "open", "bad")  # which of several variants speaks for a target


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to think of one target.

    Attributes:
        target: Its name.
        level: good: ship; look: decide with care; bad: do not; open: it cannot be said from this run.
        sentence: The verdict.
        steps: What to do next, each a sentence.
    """

    target: str
    level: Level
    sentence: str
    steps: tuple[str, ...] = ()


def verdicts(report: RunReport) -> tuple[Verdict, ...]:
    """One verdict per target that an INT8 variant was asked of, the one to ship first.

    Each is on the target's best variant, with a line on the others. Of several that may be shipped, the
    fastest says so.
    """
    targets = dict.fromkeys(v.target for v in report.variants if v.precision == "int8")
    found = sorted((_verdict(report, name) for name in targets), key=lambda pair: _rank(*pair))
    good = [best for verdict, best in found if verdict.level == "good" and best]
    return tuple(
        replace(verdict, steps=(FASTEST.format(len(good)), *verdict.steps))
        if best and len(good) > 1 and best is good[0]
        else verdict
        for verdict, best in found
    )


def _rank(verdict: Verdict, best: Variant | None) -> tuple[int, float]:
    return ORDER.index(verdict.level), best.latency_ms.p50 if best and best.latency_ms else math.inf


def warnings(report: RunReport) -> tuple[str, ...]:
    """What a reader must know before trusting a figure."""
    found = []
    noisy = [
        f"{v.name} {100 * v.latency_ms.cv:.0f} %"
        for v in report.variants
        if v.latency_ms and v.latency_ms.cv is not None and v.latency_ms.cv > NOISY
    ]
    if noisy:
        found.append(
            f"Noisy latency: the coefficient of variation is above {100 * NOISY:.0f} % ({', '.join(noisy)}). "
            f"Other work ran, or the clock changed: trust the median, and {AGAIN}."
        )
    few = [f"{v.name} {v.latency_ms.runs}" for v in report.variants if v.latency_ms and _few(v.latency_ms)]
    if few:
        found.append(
            f"Few timed runs: neither their spread nor their p99 says much ({', '.join(few)}): {MORE_RUNS}."
        )
    if report.environment.get("throttled"):
        found.append("The processor was throttled during the run: every latency is too long.")
    found += busy(report.environment)
    found += [f"{v.name}: {warning}" for v in report.variants for warning in v.warnings]
    return tuple(found)


def busy(environment: Mapping[str, Any]) -> list[str]:
    """What slowed the measurement: other work, by what it took meanwhile or, if unknown, by the load."""
    found = []
    others, stolen = environment.get("other_share"), environment.get("stolen_share")
    load, cores = environment.get("load_average"), environment.get("cores")
    if others is not None and others > OTHERS:
        found.append(
            f"The machine was busy: other work took {100 * others:.0f} % of its processors meanwhile."
        )
    elif others is None and load and cores and load[0] > cores:
        found.append(f"The machine was busy: a load of {load[0]:.1f} on {cores} cores.")
    if stolen is not None and stolen > STOLEN:
        found.append(f"The host gave {100 * stolen:.0f} % of the processor time to other guests meanwhile.")
    return found


def _verdict(report: RunReport, target: str) -> tuple[Verdict, Variant | None]:
    """The verdict on a target, and the variant that speaks for it."""
    rows = [v for v in report.variants if v.target == target and v.precision == "int8"]
    ran = [v for v in rows if v.kind != "not run"]
    if not ran:
        error = next((v.error for v in rows if v.error), "no engine was made").rstrip(".")
        hint = next((v.hint for v in rows if v.hint), None)
        sentence = f"{words.target(target)} was not run: {error}."
        return Verdict(target, "open", sentence, (hint,) if hint else ()), None
    judged = sorted(
        ((*_judge(v, report), v) for v in ran),
        key=lambda found: (
            ORDER.index(found[0]),
            found[2].latency_ms.p50 if found[2].latency_ms else math.inf,
            -(found[2].top1 or 0.0),
        ),
    )
    level, sentence, best = judged[0]
    dense = next((v for v in ran if best.pruned and not v.pruned), None)
    pairs = report.environment.get("int8_sums") == "pairs"
    others = tuple(f"Also: {other}" for _, other, _ in judged[1:])
    return Verdict(
        target, level, sentence, (*_beside(best, dense), *_steps(best, pairs=pairs), *others)
    ), best


def _judge(v: Variant, report: RunReport) -> tuple[Level, str]:
    """What to think of one variant, and why."""
    facts = _facts(v)
    missed = [gate for gate in report.missed if gate.variant == v.name]
    if missed:
        failed = [gate.name for gate in missed if gate.value is not None]
        unknown = [gate.name for gate in missed if gate.value is None]
        why = [f"it misses {', '.join(failed)}"] if failed else []
        why += [f"nothing was measured that {', '.join(unknown)} could be judged by"] if unknown else []
        return "bad", f"{facts}: do not ship it, {' and '.join(why)}."
    if v.drop_pp is None:
        return "open", f"{facts}: its accuracy is unknown, evaluate it on labelled images."
    if v.speedup is None:
        where = " in simulation" if v.kind == "simulated" else ""
        return "open", f"{facts}{where}; its speed was not measured: decide after measuring on the device."
    over = next((each.latency_ms for each in report.variants if each.name == v.speedup_over), None)
    timed = [latency for latency in (v.latency_ms, over) if latency]
    if any(_few(latency) for latency in timed):
        least = min(latency.runs for latency in timed)
        return (
            "look",
            f"{facts}, but only {least} run{' was' if least == 1 else 's were'} timed: {MORE_RUNS}.",
        )
    rival = _rival(v, report)
    if rival is not None or v.speedup <= 1.0:
        return "look", f"{facts}: it is not worth it on this machine{f', {rival}' if rival else ''}."
    doubt = _doubt(v.latency_ms, over, report)
    if doubt:
        return "look", f"{facts}, but {doubt}: {AGAIN}."
    possible = v.drop_ci95_pp[1] if v.drop_ci95_pp else v.drop_pp
    limit = next((g.limit for g in report.gates if (g.variant, g.name) == (v.name, "max_drop_pp")), None)
    if possible <= (LOSS_PP if limit is None else limit):
        elsewhere = _rival(v, report, elsewhere=True)
        if elsewhere:
            return "look", f"{facts}, but on this machine {elsewhere}, without a loss."
        return "good", f"{facts}: ship it."
    if limit is None:
        return "look", f"{facts}: decide whether that loss is acceptable."
    return "look", f"{facts}: {_unproven(v, limit)}; decide whether that is enough."


def _unproven(v: Variant, limit_pp: float) -> str:
    """What a gate is worth that the drop itself keeps, and the upper end of its interval does not."""
    number = "so few images" if v.images is None else words.images(v.images)
    said = f"it passes max_drop_pp = {limit_pp:g}, but {number} cannot prove that at 95 %"
    if v.images is None or v.drop_pp is None or v.drop_ci95_pp is None or v.drop_pp >= limit_pp:
        return said
    # The interval narrows with the root of the number of images.
    needed = v.images * ((v.drop_ci95_pp[1] - v.drop_pp) / (limit_pp - v.drop_pp)) ** 2
    step = 10 ** math.floor(math.log10(needed) - 1)
    return f"{said} (at this drop, about {words.whole(step * math.ceil(needed / step))} would)"


def _rival(v: Variant, report: RunReport, *, elsewhere: bool = False) -> str | None:
    """The network in another precision that is faster than this INT8 one, in words.

    Either on the same target, or, in float32, on another one of this machine.
    """
    timed = [
        (each.latency_ms.p50, each)
        for each in report.variants
        if each.pruned == v.pruned
        and each.precision != "int8"
        and each.latency_ms
        and (
            each.target != v.target and each.precision == "fp32" and each.runs_here and v.runs_here
            if elsewhere
            else each.target == v.target
        )
    ]
    quickest_ms, other = min(timed, key=lambda pair: pair[0], default=(math.inf, v))
    if v.latency_ms is None or quickest_ms >= v.latency_ms.p50:
        return None
    return (
        f"{words.title(other)} is faster ({words.milliseconds(quickest_ms)} "
        f"against {words.milliseconds(v.latency_ms.p50)})"
    )


def _few(latency: LatencySummary) -> bool:
    """Whether so few runs were timed that their median has no interval."""
    return latency.p50_ci95 is None


def _doubt(own: LatencySummary | None, over: LatencySummary | None, report: RunReport) -> str:
    """Why a speed-up may not be real: other work, or 95 % intervals of the medians that meet; else empty."""
    others = report.environment.get("other_share")
    scatter = max((latency.cv or 0.0 for latency in (own, over) if latency), default=0.0)
    if others is not None and others > OTHERS and scatter > DISTURBED:
        return "other work disturbed the timing"
    first, second = own and own.p50_ci95, over and over.p50_ci95
    return "the speed-up may be noise" if first and second and second[0] <= first[1] else ""


def _facts(v: Variant) -> str:
    if v.speedup is None:
        speed = ""
    elif v.speedup >= 1:
        speed = f"is {v.speedup:.1f}× faster"
    else:
        speed = f"is slower ({v.speedup:.2f}× the speed)"
    if v.drop_pp is None:
        loss = (
            ""
            if v.agreement is None
            else f"agrees with FP32 on {words.percent(v.agreement, 1)} of the images"
        )
    else:
        verb = "gains" if v.drop_pp < 0 else "loses"
        interval = f" {words.bracket(v.drop_ci95_pp, 1)}" if v.drop_ci95_pp else ""
        if v.drop_pp < 0 and v.drop_ci95_pp:
            interval = f" {words.bracket((-v.drop_ci95_pp[1], -v.drop_ci95_pp[0]), 1)}"
        loss = f"{verb} {abs(v.drop_pp):.1f} pp{interval}"
    middle = " and ".join(part for part in (speed, loss) if part) or "ran"
    return f"{words.title(v)} {middle}"


def _beside(pruned: Variant, dense: Variant | None) -> tuple[str, ...]:
    """What pruning adds to quantization alone."""
    if dense is None or dense.latency_ms is None or pruned.latency_ms is None:
        return ()
    ratio = dense.latency_ms.p50 / pruned.latency_ms.p50
    return (
        f"It takes {words.milliseconds(pruned.latency_ms.p50)}, {words.title(dense)} without pruning "
        f"{words.milliseconds(dense.latency_ms.p50)}: pruning alone is worth {words.times(ratio)}.",
    )


def _steps(v: Variant, *, pairs: bool) -> tuple[str, ...]:
    steps = []
    if v.drop_ci95_pp and v.drop_ci95_pp[0] > 0 and v.drop_pp is not None and v.drop_pp > 0.3:
        steps.append("Spend more effort on accuracy: --set quantize.effort=max, or more calibration images.")
    for unknown, said in ((False, "run in float"), (True, "are not listed, so their precision is unknown")):
        names = [
            layer.name
            for layer in v.audit
            if layer.weighted and layer.precision != "int8" and (layer.precision == "unknown") == unknown
        ]
        if names:
            shown = ", ".join(names[:3]) + ("…" if len(names) > 3 else "")
            steps.append(f"{len(names)} of {v.weighted_layers} layers with weights {said}: {shown}.")
    if v.latency_ms is None and v.kind == "simulated":
        steps.append("Build and measure it on the device: the accuracy is a simulation of its arithmetic.")
    elif v.speedup is not None and v.speedup <= 1:
        gain = ": a processor that adds INT8 products in pairs (no VNNI) gains little" if pairs else ""
        steps.append(f"Look at the time per layer below{gain}.")
    return tuple(steps)
