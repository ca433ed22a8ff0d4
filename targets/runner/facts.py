"""Facts about a device from the text of its files and tools: pure functions.

A number at the end of a text that was cut off may be short of digits, so only lines that end (with a
newline; with NUL in the device tree) are read. What cannot be read for certain is None.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

CHIPS = {  # device tree compatible -> (chip family, SM)
    "nvidia,tegra210": ("Nano/TX1", "5.3"),
    "nvidia,tegra186": ("TX2", "6.2"),
    "nvidia,tegra194": ("Xavier", "7.2"),
    "nvidia,tegra234": ("Orin", "8.7"),
    "nvidia,tegra264": ("Thor", "11.0"),
}
FP8_SM = (8, 9)  # lowest compute capability with FP8 arithmetic
NO_INT8 = {"5.3": "Nano and TX1", "6.2": "TX2"}  # GPUs without INT8 arithmetic: FP16 is their best
JETPACKS = {  # L4T -> JetPack; source: release records and the L4T table of rbonghi/jetson_stats
    "32.4.4": "4.4.1", "32.5.0": "4.5", "32.6.1": "4.6", "32.7.1": "4.6.1", "32.7.2": "4.6.2",
    "32.7.3": "4.6.3", "32.7.4": "4.6.4", "32.7.5": "4.6.5", "32.7.6": "4.6.6",
    "35.1.0": "5.0.2", "35.2.1": "5.1", "35.3.1": "5.1.1", "35.4.1": "5.1.2", "35.5.0": "5.1.3",
    "35.6.0": "5.1.4", "35.6.1": "5.1.5", "35.6.2": "5.1.5", "35.6.3": "5.1.5", "35.6.4": "5.1.6",
    "36.2.0": "6.0", "36.3.0": "6.0", "36.4.0": "6.1", "36.4.2": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1",
    "36.4.7": "6.2.1", "36.5.0": "6.2.2",
    "38.2.0": "7.0", "38.2.1": "7.0", "38.2.2": "7.0", "38.4.0": "7.1", "39.2.0": "7.2", "39.2.1": "7.2.1",
}  # fmt: skip
PARTS = {  # part number in the device tree -> module; source: module table of rbonghi/jetson_stats
    "p2180-1000": "Jetson TX1", "p3310-1000": "Jetson TX2", "p3489-0000": "Jetson TX2", "p3489-0888": "Jetson TX2",
    "p3636-0001": "Jetson TX2", "p3448-0000": "Jetson Nano", "p3448-0002": "Jetson Nano", "p3448-0003": "Jetson Nano",
    "p2888-0001": "AGX Xavier", "p2888-0003": "AGX Xavier", "p2888-0004": "AGX Xavier", "p2888-0005": "AGX Xavier",
    "p2888-0006": "AGX Xavier", "p2888-0008": "AGX Xavier", "p3668-0000": "Xavier NX", "p3668-0001": "Xavier NX",
    "p3668-0003": "Xavier NX", "p3701-0000": "AGX Orin", "p3701-0004": "AGX Orin", "p3701-0005": "AGX Orin",
    "p3767-0000": "Orin NX 16GB", "p3767-0001": "Orin NX 8GB", "p3767-0003": "Orin Nano", "p3767-0004": "Orin Nano",
    "p3767-0005": "Orin Nano", "p3834-0008": "Thor",
}  # fmt: skip


class RailTree(NamedTuple):
    """Power rails of a module.

    Attributes:
        modules: Modules with these rails.
        input_rail: Rail that feeds the whole board; None where no sensor measures one.
        rails: The other rails that are no part of each other, if `separate`.
        parts: Rail -> the rail of `rails` that contains it.
        separate: False where no source shows whether `rails` contain each other.
        source: Origin of the row.
    """

    modules: tuple[str, ...]
    input_rail: str | None
    rails: tuple[str, ...]
    parts: dict[str, str]
    separate: bool
    source: str


_NVIDIA_POWER = "docs.nvidia.com/jetson, Jetson Linux Developer Guide, Platform Power and Performance"
RAIL_TREES = (
    RailTree(("Thor",), "VIN", ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), {}, False,
             "rbonghi/jetson_stats PR 900; forums.developer.nvidia.com/t/366461"),
    RailTree(("AGX Orin",), None, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
             {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}, True,
             _NVIDIA_POWER + ", software-based power consumption modeling; forums.developer.nvidia.com/t/223111"),
    RailTree(("Orin NX", "Orin Nano", "Xavier NX"), "VDD_IN", ("VDD_CPU_GPU_CV", "VDD_SOC"), {}, True, _NVIDIA_POWER),
    RailTree(("AGX Xavier",), None, ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), {}, True,
             "git.astron.nl/RD/pmt MR 114: the sum of the module's rails, without the carrier board"),
    RailTree(("Jetson Nano",), "POM_5V_IN", ("POM_5V_GPU", "POM_5V_CPU"), {}, True, "rbonghi/jetson_stats tests"),
)  # fmt: skip
INPUT_RAILS = ("VIN", "VDD_IN", "POM_5V_IN")  # VDD_IN is TX2's as well
GPU_RAILS = ("VDD_GPU", "VDD_GPU_SOC", "VDD_CPU_GPU_CV", "GPU", "POM_5V_GPU")
_SENSOR_RANGE_C = (-100.0, 200.0)  # exclusive; a sensor that is off reads -256
_X86_SETS = (
    ("avx2", "avx2"), ("avx512f", "avx512f"), ("avx512_vnni", "avx512_vnni"), ("avx_vnni", "avx_vnni"),
    ("avx512_bf16", "avx512_bf16"), ("amx_int8", "amx_int8"), ("amx_bf16", "amx_bf16"),
)  # fmt: skip
_ARM_SETS = (("asimd", "neon"), ("asimddp", "dotprod"), ("i8mm", "i8mm"), ("bf16", "bf16"), ("sve", "sve"))


def complete_lines(text: str) -> list[str]:
    """Return the lines that end; the rest after the last newline is dropped."""
    return text[: text.rfind("\n") + 1].splitlines()


def whole_number(text: str | None) -> int | None:
    """Return the number in the text of a sysfs file; None for anything else."""
    match = re.fullmatch(r"\s*(-?\d{1,18})\n", text or "", re.ASCII)
    return int(match.group(1)) if match else None


def word(text: str | None) -> str | None:
    """Return the word in the text of a sysfs file."""
    match = re.fullmatch(r"([!-~][ -~]*?)\s*\n", text or "")
    return match.group(1) if match else None


def l4t_of_release(text: str) -> str | None:
    """Return the L4T version from /etc/nv_tegra_release: "# R36 (release), REVISION: 4.3, ..." -> "36.4.3"."""
    match = re.match(r"# R(\d{1,3}) \(release\), REVISION: (\d+(?:\.\d+){0,2}),", text, re.ASCII)
    return f"{match.group(1)}.{match.group(2)}" if match else None


def installed_version(status: str, package: str) -> str | None:
    """Return the version of an installed package from dpkg's status file."""
    end = status.rfind("\n\n")  # a record cut off may lack the rest of its version
    for record in status[: max(end, 0) + 1].split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", record, re.MULTILINE | re.ASCII))
        if fields.get("Package") == package and fields.get("Status", "").endswith(" installed"):
            return fields.get("Version")
    return None


def l4t_of_package(version: str | None) -> str | None:
    """Return the L4T version from nvidia-l4t-core's: "36.4.3-20250107174145" -> "36.4.3"."""
    match = re.match(r"(\d{1,3}\.\d+(?:\.\d+)?)-", version or "", re.ASCII)
    return match.group(1) if match else None


def jetpack_of_l4t(l4t: str | None) -> str | None:
    """Return the JetPack of an L4T version; None for one that is not in the table."""
    padded = ".".join(((l4t or "").split(".") + ["0"])[:3])  # "36.3" is 36.3.0
    return JETPACKS.get(padded)


def jetpack_of_package(version: str | None) -> str | None:
    """Return the JetPack from the version of the package nvidia-jetpack: "6.2+b77" -> "6.2"."""
    match = re.match(r"(\d+(?:\.\d+){1,2})(?:[+-]|$)", version or "", re.ASCII)
    return match.group(1) if match else None


def device_tree_words(data: bytes) -> list[str]:
    """Return the NUL-terminated strings of a device tree file."""
    words = data[: data.rfind(b"\0") + 1].split(b"\0")
    return [text.decode("ascii", "replace") for text in words if text]


def chip_of(compatible: list[str]) -> tuple[str, str] | None:
    """Return chip family and SM of a Jetson from its compatible strings."""
    return next((CHIPS[name] for name in compatible if name in CHIPS), None)


def part_of(compatible: list[str]) -> str | None:
    """Return the module's name by its part number in the compatible strings; carrier boards have others."""
    numbers = [number for text in compatible for number in re.findall(r"p\d{4}-\d{4}", text, re.ASCII)]
    return next((PARTS[number] for number in numbers if number in PARTS), None)


def dla_cores_of(module: str | None, memory_bytes: int | None) -> int | None:
    """Return the DLA cores of a module by its name; Orin NX has 2 with 16 GB and 1 with 8 GB."""
    name = (module or "").lower()
    if re.search(r"orin nano|thor|tx1|tx2|jetson nano", name):
        return 0
    if "orin nx" in name:
        if re.search(r"orin nx (16|8) ?gb", name):
            return 2 if "16" in name else 1
        return None if memory_bytes is None else 2 if memory_bytes > 10 * 2**30 else 1
    return 2 if "xavier" in name or "agx orin" in name else None


def power_budget(mode: str) -> float | None:
    """Return the watts in a power mode's name, infinity for MAXN; None where the name has none."""
    watts = re.search(r"(?<![0-9])(\d{1,3})W(?![A-Za-z0-9])", mode, re.ASCII)
    return float("inf") if "MAXN" in mode else float(watts.group(1)) if watts else None


def power_mode(text: str) -> tuple[str, int | None] | None:
    """Return name and id of the power mode from `nvpmodel -q`."""
    lines = complete_lines(text)
    for number, line in enumerate(lines):
        match = re.fullmatch(r"NV Power Mode:\s*(\S+)\s*", line)
        if match:
            after = lines[number + 1].strip() if number + 1 < len(lines) else ""
            return match.group(1), int(after) if re.fullmatch(r"\d{1,3}", after, re.ASCII) else None
    return None


def power_modes(text: str) -> dict[str, int]:
    """Return the name and id of each power mode from /etc/nvpmodel.conf."""
    modes = re.findall(r"<\s*POWER_MODEL\s+ID=(\d{1,3})\s+NAME=(\S+)\s*>", text, re.ASCII)
    return {name: int(number) for number, name in modes}


def jetson_clocks(text: str) -> dict[str, dict[str, int]]:
    """Return clocks from `jetson_clocks --show` (root): "GPU" -> {"min_hz", "max_hz", "current_hz"}."""
    clocks = {}
    pattern = r"(GPU|EMC|cpu\d+):? .*?MinFreq=(\d{1,12}) MaxFreq=(\d{1,12}) CurrentFreq=(\d{1,12})\b"
    for line in complete_lines(text):
        match = re.match(pattern, line, re.ASCII)
        if match:
            unit = 1000 if match.group(1).startswith("cpu") else 1  # cpufreq counts kHz
            low, high, now = (int(value) * unit for value in match.group(2, 3, 4))
            clocks[match.group(1)] = {"min_hz": low, "max_hz": high, "current_hz": now}
    return clocks


def tegrastats(text: str) -> dict[str, Any] | None:
    """Parse the last complete line of tegrastats of any JetPack.

    Returns:
        "rails_mw" {rail: current power}, "temperatures_c" {sensor: value}, "gpu_load_percent",
        "gpu_mhz" [per GPC], "emc_load_percent", "emc_mhz"; None without any of them.
    """
    lines = complete_lines(text)
    if not lines:
        return None
    line = lines[-1]
    rails = {
        name: int(now)
        for name, now in re.findall(
            r"(?<!\S)([A-Z][A-Z0-9_]*) (-?\d{1,7})(?:mW)?/-?\d{1,7}(?:mW)?(?:/-?\d{1,7}(?:mW)?)?(?!\S)", line, re.ASCII
        )
        if name not in ("NC", "RAM", "SWAP", "IRAM")
    }
    heat = {
        name: float(value)
        for name, value in re.findall(r"(?<!\S)([\w-]+)@(-?\d{1,4}(?:\.\d{1,3})?)C(?:/[\d.-]+C)?(?!\S)", line, re.ASCII)
        if is_temperature(name, float(value))
    }
    gpu = re.search(
        r"(?<!\S)GR3D_FREQ (?:(\d{1,3})%)?(?:@(?:(\d{1,5})|\[(\d{1,5}(?:,\d{1,5})*)\]))?(?!\S)", line, re.ASCII
    )
    emc = re.search(r"(?<!\S)EMC_FREQ (?:(\d{1,3})%)?(?:@(\d{1,5}))?(?!\S)", line, re.ASCII)
    if not (rails or heat or gpu or emc):
        return None
    clocks = ((gpu.group(2) or gpu.group(3)) if gpu else None) or ""
    return {
        "rails_mw": rails,
        "temperatures_c": heat,
        "gpu_load_percent": int(gpu.group(1)) if gpu and gpu.group(1) else None,
        "gpu_mhz": [int(value) for value in clocks.split(",") if value],
        "emc_load_percent": int(emc.group(1)) if emc and emc.group(1) else None,
        "emc_mhz": int(emc.group(2)) if emc and emc.group(2) else None,
    }


def board_power(rails_mw: dict[str, int]) -> tuple[int, str] | None:
    """Return the power of the board in mW and its origin: the input rail, else the sum of separate rails.

    The origin names an input rail or missing rails, and whether the sum may count a rail twice.

    Source:
        `RAIL_TREES`.
    """
    for name in INPUT_RAILS:
        if name in rails_mw:
            return rails_mw[name], name
    if not rails_mw:
        return None
    tree = next((tree for tree in RAIL_TREES if set(rails_mw) <= {*tree.rails, *tree.parts}), None)
    if tree is None:
        return sum(rails_mw.values()), "sum of rails, may count twice"
    total_mw = sum(power for name, power in rails_mw.items() if tree.parts.get(name) not in rails_mw)
    missing = [tree.input_rail] if tree.input_rail else [name for name in tree.rails if name not in rails_mw]
    without = f" without {', '.join(missing)}" if missing else ""
    return total_mw, f"sum of rails{without}{'' if tree.separate else ', may count twice'}"


def is_temperature(sensor: str, celsius: float) -> bool:
    """Return True if a reading is a temperature: not of an absent sensor, and not an alarm level.

    Source:
        Linux drivers/thermal/max77620_thermal.c: the zone PMIC-Die reads 100 C until an alarm.
    """
    return not sensor.lower().startswith("pmic") and _SENSOR_RANGE_C[0] < celsius < _SENSOR_RANGE_C[1]


def cuda_version(text: str) -> str | None:
    """Return CUDA's version from version.json, version.txt, or `nvcc --version`."""
    try:
        record = json.loads(text)
        version = record["cuda"]["version"]
        return version if re.fullmatch(r"\d+\.\d+(\.\d+)?", version, re.ASCII) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    for line in complete_lines(text):
        match = re.match(r"CUDA Version (\d+\.\d+(?:\.\d+)?)\s*$", line, re.ASCII) or re.match(
            r"Cuda compilation tools, release (\d+\.\d+),", line, re.ASCII
        )
        if match:
            return match.group(1)
    return None


def cpu_info(text: str) -> dict[str, Any]:
    """Return name and INT8-relevant instruction sets of the processor from /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in complete_lines(text):
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    features = set(fields.get("Features", "").split())
    sets = [name for flag, name in _X86_SETS if flag in flags]
    sets += [name for flag, name in _ARM_SETS if flag in features]
    name = fields.get("model name") or fields.get("Hardware")
    if not name and "CPU part" in fields:
        name = f"ARM implementer {fields.get('CPU implementer')} part {fields['CPU part']}"
    return {"name": name, "instruction_sets": sets}


def memory_info(text: str) -> dict[str, int | None]:
    """Return bytes of memory and swap from /proc/meminfo."""
    sizes = {}
    for line in complete_lines(text):
        match = re.fullmatch(r"(\w+):\s+(\d{1,15}) kB", line, re.ASCII)
        if match:
            sizes[match.group(1)] = int(match.group(2)) * 1024
    names = {"total_bytes": "MemTotal", "available_bytes": "MemAvailable", "swap_bytes": "SwapTotal"}
    return {key: sizes.get(name) for key, name in names.items()}
