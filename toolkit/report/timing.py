"""Conditions under which a latency is trusted: enough runs, and a machine that does nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeship.toolkit.core.results import LatencySummary
from edgeship.toolkit.core.statistics import FEWEST_RUNS

OTHERS, STOLEN = 0.25, 0.05  # parts of all processors above which a measurement was disturbed
AGAIN = "measure again on a quiet machine, with `--rerun bench`"  # the stage: the store has its result
MORE_RUNS = f"time at least {FEWEST_RUNS} (`--set bench.runs={FEWEST_RUNS}`, or a longer bench.duration_s)"


def disturbances(environment: Mapping[str, Any]) -> list[str]:
    """List what slowed the measurement: throttling, other work or, if unknown, the load, and other guests."""
    found = []
    others, stolen = environment.get("other_share"), environment.get("stolen_share")
    load, cores = environment.get("load_average"), environment.get("cores")
    if environment.get("throttled"):
        found.append("The processor was throttled during the run: every latency is too long.")
    if others is not None and others > OTHERS:
        found.append(
            f"The machine was busy: other work took {100 * others:.0f} % of its processors meanwhile."
        )
    elif others is None and load and cores and load[0] > cores:
        found.append(f"The machine was busy: a load of {load[0]:.1f} on {cores} cores.")
    if stolen is not None and stolen > STOLEN:
        found.append(f"The host gave {100 * stolen:.0f} % of the processor time to other guests meanwhile.")
    return found


def few(latency: LatencySummary) -> bool:
    """Return whether so few runs were timed that their median has no interval."""
    return latency.p50_ci95 is None
