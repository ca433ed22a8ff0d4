"""Facts of the machine, read without root: versions, modes, clocks, rails, temperatures, memory."""

from __future__ import annotations

import glob
import os
import platform
import re
import subprocess
import sys
from typing import Any

from . import facts

_TOOL_LIMIT_S = 5.0
_GPU_NAMES = ("gpu", "gv11b", "gp10b", "ga10b", "gb10b")


class Tree:
    """The file tree the facts are read from; `root` is "/" on the device itself."""

    def __init__(self, root: str = "/") -> None:
        self.root = root

    def path(self, name: str) -> str:
        """Return the path of a device's file below the root."""
        return os.path.join(self.root, name.lstrip("/"))

    def data(self, name: str) -> bytes | None:
        """Return the bytes of a file; None when it is absent or may not be read."""
        try:
            with open(self.path(name), "rb") as stream:
                return stream.read()
        except OSError:
            return None

    def text(self, name: str) -> str | None:
        """Return the text of a file; None when it is absent or may not be read."""
        data = self.data(name)
        return None if data is None else data.decode("utf-8", "replace")

    def number(self, name: str) -> int | None:
        """Return the number in a file."""
        return facts.whole_number(self.text(name))

    def word(self, name: str) -> str | None:
        """Return the word in a file."""
        return facts.word(self.text(name))

    def find(self, pattern: str) -> list[str]:
        """Return the sorted names below the root that match a pattern."""
        base = glob.escape(self.root.rstrip("/"))
        return sorted(name[len(self.root.rstrip("/")) :] for name in glob.glob(base + pattern))

    def tool(self, name: str, *arguments: str, limit_s: float = _TOOL_LIMIT_S) -> str:
        """Return the output of a tool until it ends or the time is over; empty without the tool."""
        path = self.path(name)
        if not os.access(path, os.X_OK):
            return ""
        try:
            done = subprocess.run(
                [path, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, timeout=limit_s, check=False,
            )  # fmt: skip
            output = done.stdout
        except subprocess.TimeoutExpired as ended:  # tegrastats prints for ever
            output = ended.stdout or b""
        except OSError:
            return ""
        return output.decode("utf-8", "replace")


def jetson(tree: Tree) -> dict[str, Any] | None:
    """Return module, SM, L4T and JetPack; None on a machine that is no Jetson."""
    status = tree.text("/var/lib/dpkg/status") or ""
    release = tree.text("/etc/nv_tegra_release") or ""
    core = facts.installed_version(status, "nvidia-l4t-core")
    l4t = facts.l4t_of_release(release) or facts.l4t_of_package(core)
    compatible = facts.device_tree_words(tree.data("/proc/device-tree/compatible") or b"")
    chip = facts.chip_of(compatible)
    if l4t is None and chip is None:
        return None
    package = facts.jetpack_of_package(facts.installed_version(status, "nvidia-jetpack"))
    model = facts.device_tree_words(tree.data("/proc/device-tree/model") or b"")
    module = model[0] if model else None
    return {
        "module": module,
        "chip": chip[0] if chip else None,
        "sm": chip[1] if chip else None,
        "l4t": l4t,
        "jetpack": package or facts.jetpack_of_l4t(l4t),
        "jetpack_from": "package" if package else "table of L4T versions",
        "dla_cores": facts.dla_cores_of(facts.part_of(compatible) or module, memory(tree)["total_bytes"]),
        "gpu_int8": None if chip is None else chip[1] not in facts.NO_INT8,
    }


def cpu(tree: Tree) -> dict[str, Any]:
    """Return name, instruction sets and cores of the processor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {**facts.cpu_info(tree.text("/proc/cpuinfo") or ""), "cores": cores}


def cpu_identity(tree: Tree) -> dict[str, Any]:
    """Return name and instruction sets of the processor: what a CPU engine is bound to."""
    processor = cpu(tree)
    return {"cpu": processor["name"], "instruction_sets": processor["instruction_sets"]}


def machine() -> str:
    """Return the architecture."""
    return platform.machine()


def cpu_clock(tree: Tree) -> dict[str, Any]:
    """Return clock range, current clock and governor of the first core."""
    base = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_"
    khz = {"min_hz": "min_freq", "max_hz": "max_freq", "current_hz": "cur_freq"}
    values = {key: tree.number(base + name) for key, name in khz.items()}
    clocks = {key: None if value is None else value * 1000 for key, value in values.items()}
    return {**clocks, "governor": tree.word(base + "governor")}


def power(tree: Tree) -> dict[str, Any]:
    """Return name and id of the power mode, and all modes with their ids: ids differ between modules."""
    mode = facts.power_mode(tree.tool("/usr/sbin/nvpmodel", "-q"))
    ids = facts.power_modes(tree.text("/etc/nvpmodel.conf") or "")
    return {"mode": mode[0] if mode else None, "mode_id": mode[1] if mode else None,
            "modes": sorted(ids), "mode_ids": ids}  # fmt: skip


def gpu_clock(tree: Tree) -> dict[str, Any] | None:
    """Return clock range, current clock and load of the GPU; `locked` when the range is one clock."""
    for device in tree.find("/sys/class/devfreq/*"):
        name = facts.device_tree_words(tree.data(device + "/device/of_node/name") or b"")
        if (name and name[0] in _GPU_NAMES) or os.path.basename(device).startswith("gpu-gpc"):  # the latter: Thor
            low, high, now = (tree.number(f"{device}/{key}_freq") for key in ("min", "max", "cur"))
            load = tree.number(device + "/device/load")
            return {
                "device": os.path.basename(device),
                "min_hz": low,
                "max_hz": high,
                "current_hz": now,
                "governor": tree.word(device + "/governor"),
                "locked": None if low is None or high is None else low == high,
                "load_percent": None if load is None else load / 10,
            }
    return None


def rails(tree: Tree) -> dict[str, int]:
    """Return the power of each rail in mW, from every sensor."""
    return {**_ina3221(tree), **_ina238(tree)}


def _ina3221(tree: Tree) -> dict[str, int]:
    rails_mw: dict[str, int] = {}
    for folder in tree.find("/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"):
        for label_file in tree.find(f"{glob.escape(folder)}/in*_label"):
            channel = re.sub(r"\D", "", os.path.basename(label_file))
            volts = tree.number(f"{folder}/in{channel}_input")
            amperes = tree.number(f"{folder}/curr{channel}_input")
            _add_rail(rails_mw, tree.word(label_file), volts, amperes)
    for folder in tree.find("/sys/bus/i2c/drivers/ina3221x/*/iio:device*"):  # JetPack 4
        for label_file in tree.find(f"{glob.escape(folder)}/rail_name_*"):
            channel = label_file.rsplit("_", 1)[1]
            label, milliwatts = tree.word(label_file), tree.number(f"{folder}/in_power{channel}_input")
            if milliwatts is not None:
                _add_rail(rails_mw, label, milliwatts, 1000)
            else:
                volts = tree.number(f"{folder}/in_voltage{channel}_input")
                _add_rail(rails_mw, label, volts, tree.number(f"{folder}/in_current{channel}_input"))
    return rails_mw


def _ina238(tree: Tree) -> dict[str, int]:
    """Return Thor's input rail in mW: its power file holds microwatts; else volts times amperes."""
    rails_mw: dict[str, int] = {}
    for folder in tree.find("/sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*"):
        label, microwatts = tree.word(folder + "/label"), tree.number(folder + "/power1_input")
        if microwatts is not None:
            _add_rail(rails_mw, label, microwatts, 1)
        else:
            volts, amperes = tree.number(folder + "/in1_input"), tree.number(folder + "/curr1_input")
            _add_rail(rails_mw, label, volts, amperes)
    return rails_mw


def _add_rail(rails_mw: dict[str, int], label: str | None, millivolts: int | None, milliamperes: int | None) -> None:
    if label and label != "NC" and "sum of shunt" not in label.lower():  # neither is a rail
        if millivolts is not None and milliamperes is not None:
            rails_mw[label] = round(millivolts * milliamperes / 1000)


def _all_rails(tree: Tree) -> tuple[dict[str, int], str | None]:
    """Return rails in mW and their sensors: tegrastats where sysfs has none, or lacks some of its rails."""
    rails_mw = rails(tree)
    source = " and ".join(name for name, read in (("ina3221", _ina3221), ("ina238", _ina238)) if read(tree))
    total = facts.board_power(rails_mw)
    if total is not None and " without " not in total[1]:
        return rails_mw, source
    stats = facts.tegrastats(tree.tool("/usr/bin/tegrastats", "--interval", "200", limit_s=1))
    printed = stats["rails_mw"] if stats else {}
    if printed and (not rails_mw or set(printed) > set(rails_mw)):
        return printed, "tegrastats"
    return rails_mw, source or None


def heat(tree: Tree) -> dict[str, float]:
    """Return temperatures in degrees Celsius by zone type, without absent sensors and alarm levels."""
    zones = {}
    for zone in tree.find("/sys/devices/virtual/thermal/thermal_zone*"):
        name, milli = tree.word(zone + "/type"), tree.number(zone + "/temp")
        if name and milli is not None and facts.is_temperature(name, milli / 1000):
            zones[name] = milli / 1000
    return zones


def throttle_counters(tree: Tree) -> dict[str, int]:
    """Return all counters of throttling: over-current events, alarms, states of cooling devices."""
    counters = {}
    for folder in tree.find("/sys/class/hwmon/hwmon*"):
        if tree.word(folder + "/name") == "soctherm_oc":
            names = [f"{folder}/oc{number}_event_cnt" for number in (1, 2, 3)]
        else:
            names = tree.find(f"{glob.escape(folder)}/curr*_crit_alarm")
        for name in names:
            count = tree.number(name)
            if count is not None:
                counters[f"{os.path.basename(folder)}/{os.path.basename(name)}"] = count
    for folder in tree.find("/sys/class/thermal/cooling_device*"):
        kind, state = tree.word(folder + "/type"), tree.number(folder + "/cur_state")
        # A turning fan slows nothing, and some of the others hold settings (TCC Offset), not states.
        if state is not None and re.search(r"cpu|gpu|throttl|processor", kind or "", re.IGNORECASE):
            counters[f"{os.path.basename(folder)}/{kind}"] = state
    return counters


def memory(tree: Tree) -> dict[str, int | None]:
    """Return bytes of memory and swap."""
    return facts.memory_info(tree.text("/proc/meminfo") or "")


def cuda_version(tree: Tree) -> str | None:
    """Return CUDA's version from its version file, else from nvcc."""
    for name in ("/usr/local/cuda/version.json", "/usr/local/cuda/version.txt"):
        version = facts.cuda_version(tree.text(name) or "")
        if version:
            return version
    return facts.cuda_version(tree.tool("/usr/local/cuda/bin/nvcc", "--version"))


def tensorrt_library(tree: Tree) -> str | None:
    """Return TensorRT's version from the name of its library, without loading it."""
    for name in tree.find("/usr/lib/*-linux-gnu/libnvinfer.so.*"):
        match = re.search(r"libnvinfer\.so\.(\d+\.\d+\.\d+)$", name, re.ASCII)
        if match:
            return match.group(1)
    return None


def snapshot(tree: Tree) -> dict[str, Any]:
    """Return the facts that may change during a measurement."""
    return {
        "gpu_clock": gpu_clock(tree),
        "cpu_clock": cpu_clock(tree),
        "power_mode": power(tree)["mode"],
        "temperatures_c": heat(tree),
        "throttle_counters": throttle_counters(tree),
    }


def gather(tree: Tree, disk: str) -> dict[str, Any]:
    """Return the facts that need no SDK."""
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)"?\n', tree.text("/etc/os-release") or "", re.MULTILINE)
    rails_mw, source = _all_rails(tree)
    total = facts.board_power(rails_mw)
    show = facts.jetson_clocks(tree.tool("/usr/bin/jetson_clocks", "--show")) if os.geteuid() == 0 else {}
    try:
        space = os.statvfs(disk)
        free = space.f_bavail * space.f_frsize
    except OSError:
        free = None
    return {
        "arch": machine(),
        "os": release.group(1) if release else None,
        "kernel": platform.release(),
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "cpu": cpu(tree),
        "jetson": jetson(tree),
        "power": power(tree),
        "clocks": {"gpu": gpu_clock(tree), "cpu": cpu_clock(tree), "memory_hz": show.get("EMC", {}).get("current_hz")},
        "rails": {
            "source": source,
            "rails_mw": rails_mw,
            "total_mw": total[0] if total else None,
            "total_from": total[1] if total else None,
            "gpu_rail": next((name for name in facts.GPU_RAILS if name in rails_mw), None),
        },
        "thermal": {"temperatures_c": heat(tree), "throttle_counters": throttle_counters(tree)},
        "memory": memory(tree),
        "disk": {"path": disk, "free_bytes": free},
        "sdk": {
            "cuda": cuda_version(tree),
            "tensorrt_library": tensorrt_library(tree),
            "trtexec": next(iter(tree.find("/usr/src/tensorrt/bin/trtexec")), None),
        },
    }
