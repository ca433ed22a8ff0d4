"""JetPack releases and Jetson modules as data: what runs where, and what a module can compute."""

from __future__ import annotations

from dataclasses import dataclass

from edgeship.toolkit.core.errors import DeviceError, nearest


@dataclass(frozen=True, slots=True)
class JetPack:
    """One line of JetPack releases that share their libraries.

    Attributes:
        releases: JetPack versions.
        l4t: Versions of the board support package, in the same order where each release has one.
        tensorrt: TensorRT that comes with it.
        cuda: CUDA that comes with it.
        python: System Python, the one TensorRT's module is made for.
        families: Module families it supports.
        evidence: Where the row comes from.
    """

    releases: tuple[str, ...]
    l4t: tuple[str, ...]
    tensorrt: str
    cuda: str
    python: str
    families: tuple[str, ...]
    evidence: str


@dataclass(frozen=True, slots=True)
class Module:
    """A Jetson module.

    Attributes:
        name: As sold.
        family: Chip family.
        compatible: Entry of the device tree that tells the chip.
        sm: Compute capability of the GPU.
        int8: Whether the GPU computes in INT8; without it FP16 is the fastest.
        dla_cores: Deep learning accelerators.
    """

    name: str
    family: str
    compatible: str
    sm: str
    int8: bool
    dla_cores: int


JETPACKS = (
    JetPack(
        ("4.6.1", "4.6.2", "4.6.3", "4.6.4", "4.6.5", "4.6.6"),
        ("32.7.1", "32.7.2", "32.7.3", "32.7.4", "32.7.5", "32.7.6"),
        *("8.2.1", "10.2", "3.6", ("Nano/TX1", "TX2", "Xavier"), "release records; jetson_stats' L4T table"),
    ),
    JetPack(
        ("5.0.2",),
        ("35.1.0",),
        *("8.4.1", "11.4", "3.8", ("Xavier", "Orin"), "developer.nvidia.com/embedded/jetpack-sdk-502"),
    ),
    JetPack(
        ("5.1", "5.1.1", "5.1.2", "5.1.3", "5.1.4", "5.1.5", "5.1.6"),
        ("35.2.1", "35.3.1", "35.4.1", "35.5.0", "35.6.0", "35.6.1", "35.6.2", "35.6.3", "35.6.4"),
        *("8.5.2", "11.4", "3.8", ("Xavier", "Orin"), "README of TensorRT OSS 8.6; MLPerf v3.1 Orin records"),
    ),
    JetPack(
        ("6.0",),
        ("36.2.0", "36.3.0"),
        *("8.6.2", "12.2", "3.10", ("Orin",), "release records; jetson_stats' L4T table"),
    ),
    JetPack(
        ("6.1", "6.2", "6.2.1", "6.2.2"),
        ("36.4.0", "36.4.3", "36.4.4", "36.4.7", "36.5.0"),
        *("10.3.0", "12.6", "3.10", ("Orin",), "docs.pytorch.org/TensorRT, page JetPack"),
    ),
    JetPack(
        ("7.0", "7.1"),
        ("38.2.0", "38.2.1", "38.2.2", "38.4.0"),
        *("10.13.3", "13.0", "3.12", ("Thor",), "release records"),
    ),
    JetPack(
        ("7.2", "7.2.1"),
        ("39.2.0", "39.2.1"),
        *("10.16.2", "13.2", "3.12", ("Orin", "Thor"), "release records; jetson_stats"),
    ),
)

MODULES = (
    Module("Jetson Nano", "Nano/TX1", "nvidia,tegra210", "5.3", int8=False, dla_cores=0),
    Module("Jetson TX1", "Nano/TX1", "nvidia,tegra210", "5.3", int8=False, dla_cores=0),
    Module("Jetson TX2", "TX2", "nvidia,tegra186", "6.2", int8=False, dla_cores=0),
    Module("AGX Xavier", "Xavier", "nvidia,tegra194", "7.2", int8=True, dla_cores=2),
    Module("Xavier NX", "Xavier", "nvidia,tegra194", "7.2", int8=True, dla_cores=2),
    Module("AGX Orin", "Orin", "nvidia,tegra234", "8.7", int8=True, dla_cores=2),
    Module("Orin NX 16GB", "Orin", "nvidia,tegra234", "8.7", int8=True, dla_cores=2),
    Module("Orin NX 8GB", "Orin", "nvidia,tegra234", "8.7", int8=True, dla_cores=1),
    Module("Orin Nano", "Orin", "nvidia,tegra234", "8.7", int8=True, dla_cores=0),
    Module("Thor", "Thor", "nvidia,tegra264", "11.0", int8=True, dla_cores=0),
)


def module(name: str) -> Module:
    """The module of that name; upper and lower case, spaces and dashes do not matter.

    Raises:
        DeviceError: There is none; the hint gives the nearest one.
    """
    known = {_plain(item.name): item for item in MODULES}
    wanted = _plain(name).removeprefix("jetson").removeprefix("nvidia")
    for spelt in (wanted, f"jetson{wanted}"):
        if spelt in known:
            return known[spelt]
    hint = nearest(name, (item.name for item in MODULES))
    raise DeviceError(f"no Jetson module named '{name}'", hint=hint)


def jetpack(release: str) -> JetPack:
    """The line a JetPack release ("6.2.1") or an L4T version ("36.4.4") belongs to.

    Raises:
        DeviceError: It is not in the table.
    """
    for line in JETPACKS:
        if release in line.releases or release in line.l4t:
            return line
    known = [name for line in JETPACKS for name in line.releases]
    raise DeviceError(f"no JetPack release '{release}' is known", hint=nearest(release, known))


def require_int8(module: Module) -> None:
    """Refuse INT8 where the GPU has no arithmetic for it.

    Raises:
        DeviceError: The module computes no INT8; the hint names what it does.
    """
    if not module.int8:
        raise DeviceError(
            f"{module.name} (SM {module.sm}) computes no INT8: the engine would run in FP32, more slowly",
            hint="use the fp16 variant there; it is the fastest this GPU has",
        )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
