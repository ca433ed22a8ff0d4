"""Description of this machine, to which measured latencies are bound."""

from __future__ import annotations

import platform
import re
from importlib import metadata

from edgeship.targets.runner import facts, sysfs
from edgeship.toolkit.core.quant import Cpu
from edgeship.toolkit.core.results import Device
from edgeship.toolkit.core.threads import granted_cores

SDKS = ("openvino", "onnxruntime", "onnx", "torch", "numpy", "tensorrt", "tensorrt-rtx-cu12")


def this_device(tree: sysfs.Tree | None = None) -> Device:
    """Return the description of this machine, from the files of `tree` that need no root."""
    tree = tree or sysfs.Tree()
    cpuinfo, clock = tree.text("/proc/cpuinfo") or "", sysfs.cpu_clock(tree)
    board = (tree.text("/proc/device-tree/model") or "").strip("\0 \n")  # empty on a PC
    return Device(
        name=board or " ".join((facts.cpu_info(cpuinfo)["name"] or platform.machine()).split()),
        arch=platform.machine(),
        instruction_sets=instruction_sets(cpuinfo),
        cores=granted_cores(),
        memory_bytes=sysfs.memory(tree)["total_bytes"] or 0,
        power_mode=clock["governor"],
        clocks_mhz=clock["current_hz"] / 1e6 if clock["current_hz"] else _clock_mhz(cpuinfo),
        versions={sdk: version for sdk in SDKS if (version := _version(sdk))},
    )


def this_cpu() -> Cpu:
    """Return the CPU of this machine."""
    return Cpu(platform.machine(), instruction_sets(sysfs.Tree().text("/proc/cpuinfo") or ""))


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Return the INT8-relevant instruction sets in /proc/cpuinfo, by the names of the device runner."""
    old = ("sse4_2",) if re.search(r"^flags\s*:.*\bsse4_2\b", cpuinfo, re.MULTILINE) else ()
    return (*old, *facts.cpu_info(cpuinfo)["instruction_sets"])


def _clock_mhz(cpuinfo: str) -> float | None:
    line = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)
    return float(line.group(1)) if line else None


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
