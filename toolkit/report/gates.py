"""Limits that decide whether a run passes.

Every INT8 variant is judged (every variant but the FP32 ones; where there is no INT8, all but the
reference). A variant that does not run on this machine is not judged on what could not be measured; one
that should have run, or a gate that finds nothing to judge, is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolkit.core.results import Gate, Variant


def judge(
    variants: Sequence[Variant],
    max_drop_pp: float | None,
    min_speedup: float | None,
    max_latency_ms: float | None,
) -> tuple[Gate, ...]:
    """Judge every variant by every gate that is set.

    Args:
        variants: All rows of the report.
        max_drop_pp: Largest allowed top-1 drop in percentage points; None: no such gate.
        min_speedup: Smallest allowed speed-up over FP32.
        max_latency_ms: Largest allowed median latency.
    """
    judged = [v for v in variants if v.precision != "fp32"] or list(variants[1:])
    found: list[Gate] = []
    for name, limit, figure in (
        ("max_drop_pp", max_drop_pp, lambda v: v.drop_pp),
        ("min_speedup", min_speedup, lambda v: v.speedup),
        ("max_latency_ms", max_latency_ms, lambda v: v.latency_ms.p50 if v.latency_ms else None),
    ):
        if limit is not None:
            found += _gate(name, limit, figure, judged, variants)
    return tuple(found)


def _gate(
    name: str,
    limit: float,
    figure: Callable[[Variant], float | None],
    judged: Sequence[Variant],
    variants: Sequence[Variant],
) -> list[Gate]:
    working = {v.target for v in variants if v.runs_here and not v.error}
    gates = []
    for variant in judged:
        value = figure(variant)
        if value is not None:
            passed: bool | None = value >= limit if name.startswith("min_") else value <= limit
            reason = _sentence(name, limit, value)
        elif variant.error and variant.target not in working:
            passed, reason = None, f"not judged: {variant.error}"
        elif variant.error:
            passed, reason = False, f"not run: {variant.error}"
        elif not variant.runs_here and name != "max_drop_pp":
            passed, reason = None, "not judged: it does not run on this machine"
        else:
            passed, reason = False, "not measured"
        gates.append(Gate(name, limit, value, passed, variant.name, reason))
    if all(gate.passed is None for gate in gates):
        gates.append(Gate(name, limit, None, False, None, "nothing could be judged"))
    return gates


def _sentence(name: str, limit: float, value: float) -> str:
    if name == "max_drop_pp":
        verb = "gains" if value < 0 else "loses"
        return f"{verb} {abs(value):.2f} pp of top-1, allowed {limit:g} pp"
    if name == "min_speedup":
        return f"{value:.2f}× as fast as FP32, required {limit:g}×"
    return f"{value:.3g} ms median latency, allowed {limit:g} ms"
