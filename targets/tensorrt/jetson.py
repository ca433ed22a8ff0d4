"""JetPack releases and Jetson modules as data: what runs where, and what a module can compute."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from edgeship.targets.runner import facts
from edgeship.targets.tensorrt import versions
from edgeship.toolkit.core.errors import DeviceError, nearest
from edgeship.toolkit.core.results import Precision


@dataclass(frozen=True, slots=True)
class JetPack:
    """JetPack releases with one TensorRT.

    Attributes:
        releases: JetPack versions, oldest first.
        tensorrt: Version of TensorRT, as exact as the source gives it.
        cuda: Version of CUDA.
        python: Version of the system's Python, the one TensorRT's module is built for.
        modules: Names of the modules that have this pair.
        evidence: Source of the row.
        installable: TensorRT is no part of the JetPack, but can be installed on it.
    """

    releases: tuple[str, ...]
    tensorrt: str
    cuda: str
    python: str
    modules: tuple[str, ...]
    evidence: str
    installable: bool = False

    @property
    def l4t(self) -> tuple[str, ...]:
        """Versions of the board support package of these releases."""
        return tuple(l4t for l4t, release in facts.JETPACKS.items() if release in self.releases)


@dataclass(frozen=True, slots=True)
class Module:
    """A Jetson module.

    Attributes:
        name: As sold.
        family: Chip family.
        compatible: Entry of the device tree that names the chip.
        sm: Compute capability of the GPU.
        int8: Whether the GPU computes in INT8; without it FP16 is the fastest.
        dla_cores: Deep learning accelerators; of a name without its memory, those that each variant has.
        pattern: Regular expression of its other names, in lower case with single spaces.
    """

    name: str
    family: str
    compatible: str
    sm: str
    int8: bool
    dla_cores: int
    pattern: str

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions with arithmetic on its GPU, besides FP32."""
        eight_bits: tuple[Precision, ...] = ("int8",) if self.int8 else ()
        return ("fp16", *(("fp8",) if float(self.sm) >= FP8_SM else ()), *eight_bits)


_MAXWELL, _XAVIERS = ("Jetson Nano", "Jetson TX1", "Jetson TX2"), ("AGX Xavier", "Xavier NX")
_ORINS = ("AGX Orin", "Orin NX", "Orin NX 16GB", "Orin NX 8GB", "Orin Nano")
_L4T_TABLE = "release records; L4T table of rbonghi/jetson_stats"
JETPACKS = (  # the one table of module, JetPack and TensorRT; L4T versions are in runner/facts.py
    JetPack(
        ("4.6.1", "4.6.2", "4.6.3", "4.6.4", "4.6.5", "4.6.6"),
        *("8.2.1", "10.2", "3.6", (*_MAXWELL, *_XAVIERS), _L4T_TABLE),
    ),
    JetPack(
        ("5.0.2",),
        *("8.4.1", "11.4", "3.8", (*_XAVIERS, "AGX Orin"), "developer.nvidia.com/embedded/jetpack-sdk-502"),
    ),
    JetPack(
        ("5.1", "5.1.1", "5.1.2", "5.1.3", "5.1.4", "5.1.5", "5.1.6"),
        *(
            "8.5.2",
            "11.4",
            "3.8",
            (*_XAVIERS, *_ORINS),
            "README of TensorRT OSS 8.6; MLPerf v3.1 Orin records",
        ),
    ),
    JetPack(("6.0",), *("8.6.2", "12.2", "3.10", _ORINS, _L4T_TABLE)),
    JetPack(
        ("6.1", "6.2", "6.2.1", "6.2.2"),
        *("10.3.0", "12.6", "3.10", _ORINS, "docs.pytorch.org/TensorRT, page JetPack"),
    ),
    JetPack(
        ("6.1", "6.2", "6.2.1", "6.2.2"),
        *("10.7", "12.6", "3.10", _ORINS, "support matrix of TensorRT 10.7 (JetPack, CUDA 12.6)"),
        installable=True,
    ),
    JetPack(("7.0",), *("10.13", "13.0", "3.12", ("Thor",), "release records")),
    JetPack(("7.1",), *("10.13.3", "13.0", "3.12", ("Thor",), "release records")),
    JetPack(
        ("7.2", "7.2.1"),
        *("10.16.2", "13.2", "3.12", (*_ORINS, "Thor"), "release records; rbonghi/jetson_stats"),
    ),
    JetPack(
        ("7.2.2",),
        *(
            "11.4",
            "13",
            "3.12",
            ("AGX Orin", "Thor"),
            "TensorRT 11.4.1, migration page 10.x to 11.x for Jetson",
        ),
        installable=True,
    ),
)
FP8_SM, FP8_FROM = 8.9, "10.0"  # lowest compute capability with FP8; first strongly typed TensorRT
FP8_SOURCES = (
    "docs.nvidia.com/deeplearning/tensorrt-rtx, support matrix (8.6: no FP8, 8.9: FP8); release properties "
    "of TensorRT 10.10 for DRIVE OS (Thor: FP8); TensorRT-RTX 1.7.1, run without a GPU (refuses SM 8.6)"
)
PORTABLE = "8.5"  # default version: later ones read what this one reads
TOO_OLD = {  # JetPack -> its TensorRT; source: _L4T_TABLE, MLPerf v1.1 AGX Xavier record
    "4.4.1": "7.1.3",
    "4.5": "7.1.3",
    "4.6": "8.0.1",
}

_BY_MEMORY = r"(?!)"  # no name of its own: `module` reads the memory in a name of Orin NX
MODULES = (
    Module("Jetson Nano", "Nano/TX1", "nvidia,tegra210", "5.3", False, 0, r"(?<!orin )nano"),
    Module("Jetson TX1", "Nano/TX1", "nvidia,tegra210", "5.3", False, 0, "tx1"),
    Module("Jetson TX2", "TX2", "nvidia,tegra186", "6.2", False, 0, "tx2i?"),
    Module("AGX Xavier", "Xavier", "nvidia,tegra194", "7.2", True, 2, "agx ?xavier|xavier agx"),
    Module("Xavier NX", "Xavier", "nvidia,tegra194", "7.2", True, 2, "xavier ?nx"),
    Module("AGX Orin", "Orin", "nvidia,tegra234", "8.7", True, 2, "agx ?orin|orin agx"),
    Module("Orin NX 16GB", "Orin", "nvidia,tegra234", "8.7", True, 2, _BY_MEMORY),
    Module("Orin NX 8GB", "Orin", "nvidia,tegra234", "8.7", True, 1, _BY_MEMORY),
    Module("Orin NX", "Orin", "nvidia,tegra234", "8.7", True, 1, "orin ?nx"),
    Module("Orin Nano", "Orin", "nvidia,tegra234", "8.7", True, 0, "orin ?nano"),
    Module("Thor", "Thor", "nvidia,tegra264", "11.0", True, 0, "thor|t5000|t4000"),
)
_PRODUCTS = {  # computers named by a code; source: wiki.seeedstudio.com, reComputer and reServer pages
    "J1010": "Jetson Nano",
    "J1020": "Jetson Nano",
    "J2011": "Xavier NX",
    "J2012": "Xavier NX",
    "J2021": "Xavier NX",
    "J2022": "Xavier NX",
    "J3010": "Orin Nano",
    "J3011": "Orin Nano",
    "J4011": "Orin NX 8GB",
    "J4012": "Orin NX 16GB",
}
_RELEASE = re.compile(
    r"#?(?:nvidia[- ])?(?P<kind>jetpack|jp|l4t)?[-_ :=]*(?P<r>r(?:ev\.? ?)?)?v?(?P<number>\d+(?:\.\d+){0,3})"
    r"(?:[+-][\w.+~-]*)?(?:[ _-]*\(?(?:ga|dp|ea|rev\.? ?\d)\)?)?",
    re.ASCII,
)
_RELEASE_FILE = re.compile(r"#? *r(\d+) \(release\), *revision: *(\d+(?:\.\d+){0,2})(?:,.*)?", re.DOTALL)


def module(name: str) -> Module:
    """Return the module with a name as devices, shops and carrier boards give it, or with a part number.

    Raises:
        DeviceError: No module, or several, have that name; the hint gives the nearest ones.
    """
    plain = _plain(name).removeprefix("nvidia").removeprefix("jetson")
    part = facts.part_of([name.lower()])
    code = re.search(r"(?<![a-z0-9])(j\d{4})(?![0-9])", name.lower(), re.ASCII)
    exact = {_plain(item.name).removeprefix("jetson"): item for item in MODULES}
    if plain in exact:
        return exact[plain]
    by_name = {item.name: item for item in MODULES}
    if part is not None:
        return by_name[part]
    if code is not None and code[1].upper() in _PRODUCTS:
        return by_name[_PRODUCTS[code[1].upper()]]
    spaced = " ".join(re.findall(r"[a-z0-9]+", name.lower()))
    matches = [item for item in MODULES if re.search(rf"(?<![a-z])(?:{item.pattern})(?![a-z])", spaced)]
    if len(matches) == 1:
        sizes = [
            size for size in ("16", "8") if re.search(rf"(?<![0-9]){size} ?(?:gb?)?(?![a-z0-9])", spaced)
        ]
        return by_name.get(f"{matches[0].name} {sizes[0]}GB", matches[0]) if len(sizes) == 1 else matches[0]
    possible = matches or [item for item in MODULES if set(spaced.split()) & set(item.name.lower().split())]
    hint = f"one of {', '.join(item.name for item in possible)}" if possible else nearest(name, by_name)
    problem = "several Jetson modules are" if len(matches) > 1 else "no Jetson module is"
    raise DeviceError(f"{problem} named '{name}'", hint=hint)


def release_name(text: str) -> str:
    """Return the JetPack release of a JetPack or L4T version in any of its forms.

    Args:
        text: "6.2.1", "JetPack 6.0 DP", "6.2+b77", "R36.4.3", "36.4.3-20250107174145", or the first line of
            /etc/nv_tegra_release.

    Raises:
        DeviceError: It is not in the table.
    """
    plain = text.strip().lower()
    file = _RELEASE_FILE.fullmatch(plain)
    match = _RELEASE.fullmatch(plain)
    number = f"{file[1]}.{file[2]}" if file else match["number"] if match else ""
    is_l4t = number and int(number.split(".")[0]) >= 20  # L4T of a TX1 begins at 23, JetPack is at 7
    if match and ((match["kind"] == "l4t" or match["r"]) and not is_l4t):
        number = ""
    trimmed = re.sub(r"(\.\d+)\.0$", r"\1", number)
    release = facts.jetpack_of_l4t(number) if is_l4t else trimmed
    known = tuple(dict.fromkeys(name for line in JETPACKS for name in line.releases))
    if release in TOO_OLD:
        raise DeviceError(
            f"JetPack {release} has TensorRT {TOO_OLD[release]}, older than 8.2",
            hint="flash JetPack 4.6.6, or a later one that the module has",
        )
    if release not in known:
        names = tuple(facts.JETPACKS) if is_l4t else known
        series = [name for name in names if number and name.split(".")[0] == number.split(".")[0]]
        hint = f"one of {', '.join(series or known)}, or the L4T version in /etc/nv_tegra_release"
        raise DeviceError(f"no JetPack or L4T release '{text.strip()}' is known", hint=hint)
    return release


def jetpack(release: str) -> JetPack:
    """Return the row of a JetPack release ("6.2.1") or an L4T version ("36.4.4"), with its own TensorRT.

    Raises:
        DeviceError: It is not in the table.
    """
    name = release_name(release)
    return min((line for line in JETPACKS if name in line.releases), key=lambda line: line.installable)


def newest_jetpack(module: Module) -> str:
    """Return the newest JetPack release of a module: the default."""
    return [line.releases[-1] for line in JETPACKS if module.name in line.modules and not line.installable][
        -1
    ]


def choose(module: Module | None = None, *, jetpack: str | None = None, tensorrt: str | None = None) -> str:
    """Return the version of TensorRT on a device, as exact as it is known.

    Args:
        module: The Jetson module; None: any device with TensorRT.
        jetpack: JetPack or L4T version on it; None takes the newest that the module has.
        tensorrt: TensorRT on it, also as dpkg prints it; None takes the JetPack's. Without all three it is
            `PORTABLE`.

    Raises:
        DeviceError: They do not exist together; the hint has those that do.
        RecipeError: `tensorrt` is not a version.
    """
    name = "a Jetson" if module is None else module.name
    rows = [line for line in JETPACKS if module is None or module.name in line.modules]
    if module is None and jetpack is None:
        versions.rules(tensorrt or PORTABLE)  # refuses unknown ones
        return ".".join(map(str, versions.parse(tensorrt or PORTABLE)))
    if jetpack is not None or tensorrt is None:
        release = newest_jetpack(module) if module and jetpack is None else release_name(str(jetpack))
        matches = [line for line in rows if release in line.releases]
        if not matches:
            releases = ", ".join(dict.fromkeys(name for line in rows for name in line.releases))
            raise DeviceError(f"{name} has no JetPack {release}", hint=f"its releases are {releases}")
        if tensorrt is None:
            return min(matches, key=lambda line: line.installable).tensorrt
        rows, place = matches, f"{name} with JetPack {release}"
    else:
        place = name
    version = versions.parse(tensorrt)
    exact = {line.tensorrt for line in rows if _agree(version, versions.parse(line.tensorrt))}
    if not exact:
        pairs = ", ".join(f"{line.tensorrt} (JetPack {_span(line.releases)})" for line in rows)
        raise DeviceError(f"{place} has no TensorRT {'.'.join(map(str, version))}", hint=f"there are {pairs}")
    longest = max(exact, key=lambda text: len(versions.parse(text)))
    known = len(exact) == 1 and len(versions.parse(longest)) > len(version)
    return longest if known else ".".join(map(str, version))


def _agree(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(a == b for a, b in zip(one, other, strict=False))


def _span(releases: tuple[str, ...]) -> str:
    return releases[0] if len(releases) == 1 else f"{releases[0]} to {releases[-1]}"


def available(precisions: Sequence[Precision], module_name: str | None) -> tuple[Precision, ...]:
    """Return those precisions of which a module has the arithmetic; all without a module."""
    return tuple(each for each in precisions if not module_name or each in module(module_name).precisions)


def require_fp8(module_name: str | None, version: str | None) -> None:
    """Refuse FP8 where the GPU or its TensorRT has none.

    Args:
        module_name: The Jetson module; None: unknown, a GPU of compute capability 8.9 or newer is assumed.
        version: Its TensorRT; None: unknown.

    Raises:
        DeviceError: It has no FP8; the hint names what it has.

    Source:
        `FP8_SOURCES`.
    """
    able = ", ".join(item.name for item in MODULES if "fp8" in item.precisions)
    if module_name is not None and "fp8" not in module(module_name).precisions:
        board = module(module_name)
        raise DeviceError(
            f"{board.name} (SM {board.sm}) computes no FP8: compute capability {FP8_SM} is the lowest",
            hint=f"leave fp8 out of compile.precisions; of the Jetsons {able} has it",
        )
    if version is not None and versions.parse(version) < versions.parse(FP8_FROM):
        raise DeviceError(
            f"TensorRT {version} has no FP8 networks: they came with {FP8_FROM}",
            hint=f"leave fp8 out of compile.precisions, or state the device's TensorRT ({able}: 10.13, 11.4)",
        )


def require_int8(module: Module) -> None:
    """Refuse INT8 where the GPU has no arithmetic for it.

    Raises:
        DeviceError: The module computes no INT8; the hint names what it does.
    """
    if not module.int8:
        raise DeviceError(
            f"{module.name} (SM {module.sm}) computes no INT8: the engine would run in FP32, more slowly",
            hint="its fastest is FP16: give the float graph, or the run: `edgeship export-jetson RUN`",
        )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
