"""Gates: limits of drop, speed-up and latency that decide whether a run passes.

Gates apply to every variant that is not FP32 (if all are FP32, to all but the reference). By the interval, a
variant passes if its whole 95 % interval is within the limit, and fails if the whole interval is beyond it;
otherwise, or if other work disturbed the timing, the gate is undecided. By the point, the value alone
decides. A time of a variant that does not run on this machine is not judged. A missing value of a variant
that runs here fails, and so does a gate that applies to no variant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgeship.toolkit.core.results import Environment, Gate, InputCheck, JudgeBy, LatencyBy, Variant
from edgeship.toolkit.core.statistics import images_to_decide
from edgeship.toolkit.report import formatting
from edgeship.toolkit.report.timing import disturbances

Interval = tuple[float, float] | None
UNKNOWN = Environment()
LATENCIES: dict[LatencyBy, str] = {"p50": "median", "mean": "mean", "p99": "99th percentile of the"}


@dataclass(frozen=True, slots=True)
class _Limit:
    """A limit: name, value, and accessors of a variant's value and interval.

    Attributes:
        timed: True for a limit of a time, which other work on the machine disturbs.
        words: Figure of a latency.
    """

    name: str
    limit: float
    value: Callable[[Variant], float | None]
    interval: Callable[[Variant], Interval]
    timed: bool = True
    words: str = ""


def judge(
    variants: Sequence[Variant],
    max_drop_pp: float | None,
    min_speedup: float | None,
    max_latency_ms: float | None,
    *,
    latency_by: LatencyBy = "p50",
    by: JudgeBy = "interval",
    environment: Environment = UNKNOWN,
    checks: Sequence[InputCheck] = (),
) -> tuple[Gate, ...]:
    """Apply every gate that is set to every variant.

    Args:
        variants: All rows of the report.
        max_drop_pp: Largest allowed top-1 drop in percentage points; None: no such gate.
        min_speedup: Smallest allowed speed-up over FP32.
        max_latency_ms: Largest allowed latency.
        latency_by: Figure that it limits: the median, the mean or the 99th percentile.
        by: Compare the value ("point") or its 95 % interval ("interval") with the limit.
        environment: Environment of the report, with the background load of the timing.
        checks: Checks of the input: with effect "no_pass" or "no_verdict" no gate passes; with the latter no
            accuracy is judged.
    """
    limits: list[_Limit] = []
    if max_drop_pp is not None:
        limits.append(
            _Limit("max_drop_pp", max_drop_pp, lambda v: v.drop_pp, lambda v: v.drop_ci95_pp, timed=False)
        )
    if min_speedup is not None:
        limits.append(_Limit("min_speedup", min_speedup, lambda v: v.speedup, lambda v: v.speedup_ci95))
    if max_latency_ms is not None:
        limits.append(_latency_limit(max_latency_ms, latency_by))
    judged = [v for v in variants if v.precision != "fp32"] or list(variants[1:])
    working = frozenset(v.target for v in variants if v.runs_here and not v.error)
    evaluator = _Evaluator(by, environment, checks, working)
    judged_gates = [gate for limit in limits for gate in evaluator.gates(limit, judged)]
    return (*judged_gates, *(gate for v in judged if (gate := _broken_guard(v, by)) is not None))


@dataclass(frozen=True, slots=True)
class _Evaluator:
    """Arguments of `judge`, and the targets that run on this machine."""

    by: JudgeBy
    environment: Environment
    checks: Sequence[InputCheck]
    working: frozenset[str]

    def gates(self, rule: _Limit, judged: Sequence[Variant]) -> list[Gate]:
        gates = [self._judged(rule, variant) for variant in judged]
        if all(gate.outcome == "not_judged" for gate in gates):
            reason = "nothing could be judged"
            gates.append(Gate(rule.name, rule.limit, None, passed=False, reason=reason, judged_by=self.by))
        return gates

    def _judged(self, rule: _Limit, variant: Variant) -> Gate:
        value, interval = rule.value(variant), rule.interval(variant)
        bare = Gate(rule.name, rule.limit, None, None, variant.name, judged_by=self.by)
        refusal = next((check for check in self.checks if check.effect == "no_verdict"), None)
        if refusal is not None and not rule.timed:  # a time does not depend on the baseline
            return replace(bare, reason=refusal.message)
        if value is not None:
            passed, doubt = self._outcome(rule, variant, value, interval)
            reason = _sentence(rule, value, interval) + (f": {doubt}" if doubt else "")
            return replace(bare, value=value, interval=interval, passed=passed, reason=reason)
        if variant.error:
            passed = False if variant.target in self.working else None
            return replace(bare, passed=passed, reason=f"not run: {variant.error}")
        if not variant.runs_here and rule.timed:
            return replace(bare, reason="does not run on this machine")
        labels = "the images have no labels" if variant.images else "not evaluated"
        return replace(bare, passed=False, reason="not timed" if rule.timed else labels)

    def _outcome(
        self, rule: _Limit, variant: Variant, value: float, interval: Interval
    ) -> tuple[bool | None, str]:
        """Return True or False if the limit is met or missed, else None; and the reason for None."""
        passes: bool | None = _meets(rule, value)
        doubt = ""
        if self.by == "interval":
            disturbed = disturbances(self.environment) if rule.timed else []
            if disturbed:
                passes, doubt = None, "timed on a busy machine"
            elif interval is None:
                passes, doubt = None, "too few runs for an interval" if rule.timed else "no interval"
            elif _meets(rule, interval[0]) != _meets(rule, interval[1]):
                doubt = (
                    "the 95 % interval contains the limit"
                    if rule.timed
                    else undecided_reason(variant, rule.limit)
                )
                passes = None
        caution = next((check for check in self.checks if check.effect != "note"), None)
        if passes and caution is not None:
            return None, caution.message
        return passes, doubt


def undecided_reason(variant: Variant, limit_pp: float) -> str:
    """Return text that the images do not decide a limit of the drop, and how many would."""
    count = "the images" if variant.images is None else formatting.images(variant.images)
    paired, enough = variant.paired, None
    if paired is not None and paired.lost is not None and paired.won is not None and variant.images:
        enough = images_to_decide(paired.lost, paired.won, variant.images, limit_pp)
    needed = f" (at this drop, about {formatting.whole(enough)} are enough)" if enough else ""
    return f"{count} are too few to decide it at 95 % confidence{needed}"


def _meets(rule: _Limit, figure: float) -> bool:
    return figure >= rule.limit if rule.name.startswith("min_") else figure <= rule.limit


def _latency_limit(limit_ms: float, by: LatencyBy) -> _Limit:
    return _Limit(
        "max_latency_ms",
        limit_ms,
        lambda v: getattr(v.latency_ms, by) if v.latency_ms else None,
        lambda v: getattr(v.latency_ms, f"{by}_ci95") if v.latency_ms else None,
        words=LATENCIES[by],
    )


def _broken_guard(variant: Variant, by: JudgeBy) -> Gate | None:
    """Return a missed gate if the evaluation images contradict the bound of a guard."""
    guard = variant.guard
    if guard is None or guard.flips is None or not guard.evaluated or not guard.broken:
        return None
    reason = (
        f"{guard.flips} of {formatting.images(guard.evaluated)} have another class than FP32: the images of "
    )
    return Gate(
        "max_flips",
        guard.max_flips,
        guard.flips / guard.evaluated,
        passed=False,
        variant=variant.name,
        reason=f"{reason}the threshold ({guard.source}) are of another kind",
        judged_by=by,
        interval=guard.flips_ci95,
    )


def _sentence(rule: _Limit, value: float, interval: Interval) -> str:
    if rule.name == "max_drop_pp":
        return f"top-1 drop {formatting.points(value, interval)}, allowed {rule.limit:g} pp"
    if rule.name == "min_speedup":
        ends = f" {formatting.bracket(interval)}" if interval else ""
        return f"{formatting.times(value)} as fast as FP32{ends}, required {rule.limit:g}×"
    ends = f" [{formatting.three(interval[0])}, {formatting.three(interval[1])}]" if interval else ""
    return f"{rule.words} latency {formatting.milliseconds(value)}{ends}, allowed {rule.limit:g} ms"
