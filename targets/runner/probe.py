"""Probe of a device: facts, usable backends, and problems with their cures."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable, Dict

from . import backends, facts, failures, sysfs
from .isolated_probe import run_isolated
from .failures import Failure
from .output import Output

_LIMIT_S = 100.0  # a first import from a slow card takes many seconds, a driver that hangs for ever
_BROKEN = ("crashed", "hangs", "illegal-instruction")  # installed, but ends the process that imports it
_BUILD_MEMORY = 2**30


def probe(
    tree: sysfs.Tree, disk: str, sdk: str | None, output: Output, names: tuple[str, ...] = backends.NAMES
) -> dict[str, Any]:
    """Return facts, backends, the best of them, and problems: the fields of the command's result.

    Args:
        tree: The device's files.
        disk: Folder whose free space counts.
        sdk: Module to import in place of `tensorrt`.
        output: Receives progress events.
        names: Backends to probe.
    """
    output.progress("probe")
    work: Dict[str, Callable[[], Any]] = {name: _probe_of(name, sdk, tree) for name in names}
    if names == backends.NAMES:
        work["numpy"] = _numpy
    answers = run_isolated(work, _LIMIT_S)
    gathered = sysfs.gather(tree, disk)
    numbers = [answer.pop("numpy") for answer in answers.values() if not isinstance(answer, Failure)]
    gathered["python"]["numpy"] = next((number for number in numbers if number), None)
    ranks = {name: answers[name].pop("rank") for name in names if not isinstance(answers[name], Failure)}
    offers = {name: _offer(answers[name]) for name in names}
    fake = any(offer["fake"] for offer in offers.values())
    failed = {name: answer for name, answer in answers.items() if isinstance(answer, Failure)}
    broken = {name: failure for name, failure in failed.items() if failure.code in _BROKEN}
    return {"facts": gathered, "backends": offers, "best": max(filter(ranks.get, ranks), key=ranks.__getitem__, default=None),
            "problems": _problems(gathered, offers, broken), **({"fake": True} if fake else {})}  # fmt: skip


def _probe_of(name: str, sdk: str | None, tree: sysfs.Tree) -> Callable[[], Any]:
    def report() -> dict[str, Any]:
        loaded = backends.load(name, sdk)
        return {"version": loaded.version, "precisions": loaded.precisions(tree),
                "identity": loaded.identity(tree), "typed_only": loaded.typed_only, "fake": loaded.fake,
                "rank": loaded.rank(tree),
                **_imported_numpy()}  # fmt: skip

    return report


def _numpy() -> dict[str, Any]:
    import numpy

    del numpy
    return _imported_numpy()


def _imported_numpy() -> dict[str, Any]:
    """Return the version of the NumPy that an SDK imported; None without one."""
    return {"numpy": getattr(sys.modules.get("numpy"), "__version__", None)}


def _offer(answer: Any) -> dict[str, Any]:
    if isinstance(answer, Failure):
        return {"available": False, "version": None, "precisions": [], "identity": None, "typed_only": False,
                "fake": False,
                "code": answer.code, "cause": answer.cause, "cure": answer.cure}  # fmt: skip
    return {"available": True, **answer, "cause": None, "cure": None}


def _problems(gathered: dict[str, Any], offers: dict[str, Any], broken: dict[str, Failure]) -> list[dict[str, Any]]:
    """Return the problems of this device, each with cause and cure."""
    problems = [{"code": failure.code, "cause": failure.cause, "cure": failure.cure} for failure in broken.values()]
    board = gathered["jetson"]
    if board is not None:
        tensorrt = offers.get("tensorrt")
        if tensorrt is not None and not tensorrt["available"] and "tensorrt" not in broken:
            problems.append({key: tensorrt[key] for key in ("code", "cause", "cure")})
        if board["gpu_int8"] is False:
            problems.append({"code": "no-int8", "cause": f"the GPU (SM {board['sm']}) has no INT8 arithmetic",
                             "cure": "deploy FP16 instead"})  # fmt: skip
        problems += _power_mode(gathered["power"])
        clock = gathered["clocks"]["gpu"]
        if clock and clock["locked"] is False:
            problems.append({"code": "clocks-free", "cause": "GPU clocks are not locked, so latencies will spread",
                             "cure": "sudo jetson_clocks --store FILE, then sudo jetson_clocks"})  # fmt: skip
        counters = gathered["thermal"]["throttle_counters"]
        events = {name: count for name, count in counters.items() if "oc" in os.path.basename(name) and count > 0}
        if events:
            problems.append({"code": "over-current", "cause": f"over-current events since boot: {events}",
                             "cure": "use a stronger supply or a lower power mode"})  # fmt: skip
    if not any(offer["available"] for offer in offers.values()):
        problems.append({"code": "no-backend", "cause": f"none of {', '.join(offers)} can be imported",
                         "cure": "; ".join(f"{name}: {offer['cure']}" for name, offer in offers.items())})  # fmt: skip
    available = gathered["memory"]["available_bytes"]
    if available is not None and available < _BUILD_MEMORY:
        problems.append({**failures.problem("out-of-memory"), "code": "memory-low",
                         "cause": f"{available >> 20} MiB of memory are free; a build may need 1 GiB"})  # fmt: skip
    return problems


def _power_mode(power: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the problem of a power mode below the largest, by the watts in the modes' names."""
    watts_of = {name: facts.power_budget(name) for name in power["mode_ids"]}
    budgets = {name: watts for name, watts in watts_of.items() if watts is not None}
    now = facts.power_budget(power["mode"] or "")
    if now is None or not budgets or now >= max(budgets.values()):
        return []
    largest = [name for name, watts in budgets.items() if watts == max(budgets.values())]
    commands = " or ".join(f"sudo nvpmodel -m {power['mode_ids'][name]} ({name})" for name in largest)
    return [{"code": "power-mode", "cause": f"power mode {power['mode']} caps the clocks",
             "cure": f"{commands}; or measure in this mode"}]  # fmt: skip
