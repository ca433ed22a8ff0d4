"""This machine: what a latency measured here is bound to."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

from edgeship.toolkit.core.quant import Cpu
from edgeship.toolkit.core.results import Device
from edgeship.toolkit.core.threads import granted_cores

# Linux's flag -> our name, for the instruction sets that decide the speed of INT8
INSTRUCTION_SETS = {
    "sse4_2": "sse4_2",
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "sve": "sve",
}
SDKS = ("openvino", "onnxruntime", "onnx", "torch", "numpy", "tensorrt", "tensorrt-rtx-cu12")


def this_device() -> Device:
    """The machine the process runs on, as far as the system tells without root."""
    cpuinfo = _text("/proc/cpuinfo")
    return Device(
        name=_board() or _cpu_name(cpuinfo),
        arch=platform.machine(),
        instruction_sets=instruction_sets(cpuinfo),
        cores=granted_cores(),
        memory_bytes=_memory_bytes(),
        power_mode=_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip() or None,
        clocks_mhz=_clock_mhz(cpuinfo),
        versions={sdk: version for sdk in SDKS if (version := _version(sdk))},
    )


def this_cpu() -> Cpu:
    """Return the CPU of this machine."""
    return Cpu(platform.machine(), instruction_sets(_text("/proc/cpuinfo")))


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    """Those that matter for INT8, from the text of /proc/cpuinfo (x86 "flags", ARM "Features")."""
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    flags = set(line.group(1).split()) if line else set()
    return tuple(name for flag, name in INSTRUCTION_SETS.items() if flag in flags)


def _cpu_name(cpuinfo: str) -> str:
    line = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return " ".join(line.group(1).split()) if line else platform.processor() or platform.machine()


def _board() -> str:
    """Name of a board with a device tree (Jetson, Raspberry Pi); empty on a PC."""
    return _text("/proc/device-tree/model").strip("\0 \n")


def _clock_mhz(cpuinfo: str) -> float | None:
    current = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").strip()
    if current.isdecimal():
        return int(current) / 1000  # kHz
    line = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", cpuinfo, re.MULTILINE)
    return float(line.group(1)) if line else None


def _memory_bytes() -> int:
    line = re.search(r"^MemTotal:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    return int(line.group(1)) * 1024 if line else 0


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _text(path: str) -> str:
    """Content of a system file; empty where it does not exist or may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
