"""Energy of an inference: the board's rails on a Jetson, the package's counter (RAPL) on Intel and AMD."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgeship.targets.runner import facts, sysfs
from edgeship.targets.runner.power import Meter
from edgeship.toolkit.core.errors import TargetError

HOW = "energy of the whole package or board during inferences in a row, idle power included"
ZONES = "/sys/class/powercap/intel-rapl:[0-9]"


def how(tree: sysfs.Tree | None = None) -> str:
    """Return the description of the measurement, with the rails whose power counts."""
    total = facts.board_power(sysfs.rails(tree or sysfs.Tree()))
    return HOW if total is None else f"{HOW}; power from {total[1]}"


def per_call_mj(run: Callable[[], object], duration_s: float, tree: sysfs.Tree | None = None) -> float:
    """Return the millijoules of one call, from calls in a row.

    Args:
        run: One inference.
        duration_s: Seconds to run; at least 1 is used, the sensors' averaging window.
        tree: The system's files.

    Raises:
        TargetError: There is no power sensor, or this user may not read it.
    """
    tree = tree or sysfs.Tree()
    _check(tree)
    with Meter(tree) as meter:
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < max(duration_s, 1.0):
            run()
            count += 1
        seconds = time.perf_counter() - began
    if meter.mean_mw is None:
        raise TargetError("the power sensors gave no reading", hint="measure again")
    return meter.mean_mw * seconds / count


def _check(tree: sysfs.Tree) -> None:
    if facts.board_power(sysfs.rails(tree)):
        return
    zones = tree.find(ZONES)
    if not zones:
        raise TargetError(
            f"no power sensor: {ZONES.rpartition('/')[0]} has no package counter",
            hint="virtual machines do not show it; measure on the machine itself",
        )
    if all(tree.number(f"{zone}/energy_uj") is None for zone in zones):
        raise TargetError(
            f"{zones[0]}/energy_uj may not be read", hint=f"as root: chmod a+r {zones[0]}/energy_uj"
        )
