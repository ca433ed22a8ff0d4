"""Parsers of device facts: every sample line of the records, then cut short, then garbage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.targets.runner import facts

TEGRASTATS = {
    "Nano, JetPack 4": "RAM 1/2MB POM_5V_IN 933/933 POM_5V_GPU 0/0 POM_5V_CPU 200/200\n",
    "AGX Xavier, JetPack 4": "GPU 1155/1155 CPU 385/385 SOC 770/770 CV 0/0 VDDRQ 154/154 SYS5V 1602/1602\n",
    "AGX Orin, JetPack 5": "VDD_GPU_SOC 2390mW/2390mW VDD_CPU_CV 796mW/796mW VIN_SYS_5V0 3522mW/3522mW "
    "NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW\n",
    "Orin Nano": "EMC_FREQ 0% GR3D_FREQ 10%@1300 cv0@-256C tj@46.5C "
    "VDD_IN 5400mW/5400mW VDD_CPU_GPU_CV 1000mW/1000mW VDD_SOC 1600mW/1600mW\n",
    "AGX Orin, JetPack 7.2": "EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] gpu@47.625C/47.625C "
    "VDD_GPU_SOC 5139mW/5139mW/5139mW VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW\n",
    "Thor": "GR3D_FREQ @[1000,1000,1000]\n",
}
TOTALS = {
    "Nano, JetPack 4": (933, "POM_5V_IN"),
    "AGX Xavier, JetPack 4": (1155 + 385 + 770 + 154 + 1602, "sum of rails"),
    "AGX Orin, JetPack 5": (2390 + 796 + 3522 + 301, "sum of rails"),
    "Orin Nano": (5400, "VDD_IN"),
    "AGX Orin, JetPack 7.2": (5139 + 3268 + 5500, "sum of rails"),
}
RELEASE = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed\n"
NVPMODEL = "NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n"
CLOCKS = (
    "SOC family:tegra234  Machine:Orin\ncpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1510400 "
    "CurrentFreq=1510400\n"
    "GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=1300500000\n"
    "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0\nNV Power Mode: MAXN\n"
)
STATUS = (
    "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 6.2+b77\n\n"
    "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 36.4.3-20250107174145\n\n"
    "Package: nvidia-old\nStatus: deinstall ok config-files\nVersion: 1.0\n\n"
)
CPU = (
    "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5\nflags\t\t: fpu avx2 avx_vnni sse\n\nprocessor\t: 1\n"
)
MEMORY = (
    "MemTotal:        7802696 kB\nMemFree:          200000 kB\n"
    "MemAvailable:    6000000 kB\nSwapTotal:       3901340 kB\n"
)


@pytest.mark.parametrize("name", TOTALS)
def test_board_power_of_every_format(name):
    assert facts.board_power(facts.tegrastats(TEGRASTATS[name])["rails_mw"]) == TOTALS[name]


def test_rails_that_are_not_connected_are_no_rails():
    rails = facts.tegrastats(TEGRASTATS["AGX Orin, JetPack 5"])["rails_mw"]
    assert set(rails) == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}


def test_clocks_loads_and_temperatures_of_tegrastats():
    nano = facts.tegrastats(TEGRASTATS["Orin Nano"])
    assert (nano["gpu_load_percent"], nano["gpu_mhz"], nano["emc_load_percent"]) == (10, [1300], 0)
    assert nano["temperatures_c"] == {"tj": 46.5}  # -256 is a sensor that is off
    agx = facts.tegrastats(TEGRASTATS["AGX Orin, JetPack 7.2"])
    assert (agx["gpu_load_percent"], agx["gpu_mhz"], agx["emc_mhz"]) == (12, [1300, 1300], 3199)
    assert agx["temperatures_c"] == {"gpu": 47.625}
    thor = facts.tegrastats(TEGRASTATS["Thor"])
    assert (thor["gpu_load_percent"], thor["gpu_mhz"]) == (None, [1000, 1000, 1000])
    assert facts.tegrastats("GR3D_FREQ 10%\n")["gpu_mhz"] == []


def test_versions():
    assert facts.l4t_of_release(RELEASE) == "36.4.3"
    assert facts.l4t_of_package(facts.installed_version(STATUS, "nvidia-l4t-core")) == "36.4.3"
    assert facts.jetpack_of_package(facts.installed_version(STATUS, "nvidia-jetpack")) == "6.2"
    assert facts.installed_version(STATUS, "nvidia-old") is None  # removed, only its settings are left
    assert facts.installed_version(STATUS, "nvidia-l4t") is None


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("32.4.4", "4.4.1"),
        ("32.6.1", "4.6"),
        ("32.7.1", "4.6.1"),
        ("32.7.6", "4.6.6"),
        ("35.1.0", "5.0.2"),
        ("35.2.1", "5.1"),
        ("35.3.1", "5.1.1"),
        ("35.4.1", "5.1.2"),
        ("35.5.0", "5.1.3"),
        ("35.6.0", "5.1.4"),
        ("35.6.3", "5.1.5"),
        ("35.6.4", "5.1.6"),
        ("36.3.0", "6.0"),
        ("36.3", "6.0"),
        ("36.4.0", "6.1"),
        ("36.4.3", "6.2"),
        ("36.4.4", "6.2.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.0", "6.2.2"),
        ("38.2.1", "7.0"),
        ("38.4.0", "7.1"),
        ("39.2.0", "7.2"),
        ("39.2.1", "7.2.1"),
        ("32.5.1", None),
        ("99.1.0", None),
        (None, None),
    ],
)
def test_jetpack_of_every_listed_l4t_and_of_no_other(l4t, jetpack):
    assert facts.jetpack_of_l4t(l4t) == jetpack


@pytest.mark.parametrize(
    ("chip", "sm", "int8"),
    [
        ("210", "5.3", False),
        ("186", "6.2", False),
        ("194", "7.2", True),
        ("234", "8.7", True),
        ("264", "11.0", True),
    ],
)
def test_sm_of_every_chip(chip, sm, int8):
    words = facts.device_tree_words(f"nvidia,p3768\0nvidia,tegra{chip}\0".encode())
    assert facts.chip_of(words)[1] == sm
    assert (sm not in facts.NO_INT8) is int8


@pytest.mark.parametrize(
    ("module", "gib", "cores"),
    [
        ("NVIDIA Jetson Orin Nano Developer Kit", 8, 0),
        ("NVIDIA Jetson AGX Orin", 64, 2),
        ("NVIDIA Jetson Orin NX", 16, 2),
        ("NVIDIA Jetson Orin NX", 8, 1),
        ("NVIDIA Jetson AGX Thor", 128, 0),
        ("NVIDIA Jetson Xavier NX", 8, 2),
        ("NVIDIA Jetson Nano Developer Kit", 4, 0),
        ("PC", 8, None),
        (None, None, None),
    ],
)
def test_dla_cores_of_modules(module, gib, cores):
    assert facts.dla_cores_of(module, gib and int(gib * 0.95 * 2**30)) == cores


def test_power_mode_and_the_modes_there_are():
    assert facts.power_mode(NVPMODEL) == ("MAXN", 0)
    assert facts.power_mode("NV Power Mode: MAXN_SUPER\n2\n") == ("MAXN_SUPER", 2)
    assert facts.power_modes("< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=15W >\n") == {
        "MAXN": 0,
        "15W": 1,
    }


def test_clocks_in_hertz_whatever_the_unit_of_the_line():
    clocks = facts.jetson_clocks(CLOCKS)
    assert clocks["GPU"] == {"min_hz": 306000000, "max_hz": 1300500000, "current_hz": 1300500000}
    assert clocks["EMC"]["current_hz"] == 2133000000
    assert clocks["cpu0"]["max_hz"] == 1510400000


def test_cuda_and_tensorrt_versions():
    assert facts.cuda_version('{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}') == "12.6.68"
    assert facts.cuda_version("CUDA Version 10.2.300\n") == "10.2.300"
    assert facts.cuda_version("nvcc: NVIDIA\nCuda compilation tools, release 11.4, V11.4.315\n") == "11.4"


def test_processors():
    assert facts.cpu_info(CPU) == {"name": "Intel(R) Core(TM) i5", "instruction_sets": ["avx2", "avx_vnni"]}
    arm = facts.cpu_info("Features\t: fp asimd asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n")
    assert arm == {"name": "ARM implementer 0x41 part 0xd42", "instruction_sets": ["neon", "dotprod"]}


def test_memory():
    assert facts.memory_info(MEMORY)["total_bytes"] == 7802696 * 1024


PARSERS = {
    "release": (facts.l4t_of_release, RELEASE),
    "status": (lambda text: facts.installed_version(text, "nvidia-l4t-core"), STATUS),
    "nvpmodel": (facts.power_mode, NVPMODEL),
    "modes": (facts.power_modes, "< POWER_MODEL ID=10 NAME=MAXN >\n< POWER_MODEL ID=11 NAME=15W >\n"),
    "clocks": (facts.jetson_clocks, CLOCKS),
    "version.json": (facts.cuda_version, '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}'),
    "version.txt": (facts.cuda_version, "CUDA Version 10.2.300\n"),
    "cpuinfo": (facts.cpu_info, CPU),
    "meminfo": (facts.memory_info, MEMORY),
    "whole number": (facts.whole_number, "1300500000\n"),
    "word": (facts.word, "VDD_CPU_GPU_CV\n"),
    "compatible": (
        lambda text: facts.chip_of(facts.device_tree_words(text.encode())),
        "nvidia,p3768\0nvidia,tegra234\0",
    ),
    **{f"tegrastats {name}": (facts.tegrastats, line) for name, line in TEGRASTATS.items()},
}


def _leaves(value):
    """Every single fact of a result, by its place."""
    if isinstance(value, dict):
        return {(key, *place): leaf for key, item in value.items() for place, leaf in _leaves(item).items()}
    if isinstance(value, (list, tuple)):
        return {
            (number, *place): leaf
            for number, item in enumerate(value)
            for place, leaf in _leaves(item).items()
        }
    return {} if value is None else {(): value}


@pytest.mark.parametrize("name", PARSERS)
def test_a_text_cut_anywhere_gives_less_but_never_another_fact(name):
    parse, text = PARSERS[name]
    whole = _leaves(parse(text))
    assert whole
    for length in range(len(text)):
        for place, leaf in _leaves(parse(text[:length])).items():
            assert whole[place] == leaf, text[:length]


@pytest.mark.parametrize("name", PARSERS)
@given(text=st.one_of(st.text(), st.text(alphabet="0123456789 .,:/@%[]mWC=\n\0NVDGPU_")))
def test_garbage_gives_nothing_or_a_wellformed_fact_but_no_exception(name, text):
    PARSERS[name][0](text)


@given(data=st.data())
def test_a_damaged_byte_never_changes_a_number_into_a_fact_with_sign_or_fraction(data):
    name = data.draw(st.sampled_from(sorted(TEGRASTATS)))
    line = TEGRASTATS[name]
    place = data.draw(st.integers(0, len(line) - 2))
    damaged = line[:place] + data.draw(st.sampled_from("x-+.,/ ")) + line[place + 1 :]
    found = facts.tegrastats(damaged) or {"rails_mw": {}}
    assert all(isinstance(power, int) and 0 <= power < 10**7 for power in found["rails_mw"].values())
