"""Checks of the timing conditions: number of runs, and background load."""

from __future__ import annotations

from edgeship.toolkit.core.results import Environment, LatencySummary
from edgeship.toolkit.core.statistics import FEWEST_RUNS

OTHERS, STOLEN = 0.25, 0.05  # limits of other work and of steal time, in fractions of all processors
AGAIN = "measure again on an idle machine, with `--rerun bench`"  # else the cached result is used
MORE_RUNS = f"time at least {FEWEST_RUNS} (`--set bench.runs={FEWEST_RUNS}`, or a longer bench.duration_s)"


def disturbances(environment: Environment) -> list[str]:
    """List disturbances of the timing: throttling, other work (or the load average) and steal time."""
    lines = []
    others, stolen = environment.other_share, environment.stolen_share
    load, cores = environment.load_average, environment.cores
    if environment.throttled:
        lines.append("The processor was throttled during the timing: the latencies are too high.")
    if others is not None and others > OTHERS:
        lines.append(
            f"The machine was busy: other work used {100 * others:.0f} % of its processors during the timing."
        )
    elif others is None and load and cores and load[0] > cores:
        lines.append(f"The machine was busy: load average {load[0]:.1f} on {cores} cores.")
    if stolen is not None and stolen > STOLEN:
        lines.append(f"The hypervisor gave {100 * stolen:.0f} % of the processor time to other guests.")
    return lines


def few_runs(latency: LatencySummary) -> bool:
    """Return True if the runs are too few for an interval of the median."""
    return latency.p50_ci95 is None
