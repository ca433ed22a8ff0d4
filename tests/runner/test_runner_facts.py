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
    "Thor, JetPack 7.2": "RAM 36529/125749MB (lfb 12x4MB) SWAP 11/4096MB (cached 9MB) CPU [2%@972,1%@972] "
    "cpu@60.406C tj@63.281C VDD_GPU 37528mW/37528mW/37528mW VDD_CPU_SOC_MSS 18961mW/18961mW/18961mW "
    "VIN_SYS_5V0 18331mW/18331mW/18331mW VIN 87426mW/43713mW/87426mW\n",
    "a rail that feeds back": "VDD_GPU_SOC 2390mW/2390mW VDD_CPU_CV -40mW/-12mW VIN_SYS_5V0 3522mW/3522mW "
    "PMIC@100C cv0@-256C tj@-5.5C\n",
    "Xavier NX, JetPack 4": "VDD_IN 3300/3300 VDD_CPU_GPU_CV 500/500 VDD_SOC 900/900 PMIC@100C GPU@30C\n",
    "TX2": "VDD_SYS_GPU 152/152 VDD_SYS_SOC 534/534 VDD_4V0_WIFI 0/0 VDD_IN 2898/2898 VDD_SYS_CPU 152/152\n",
}
TOTALS = {
    "Nano, JetPack 4": (933, "POM_5V_IN"),
    "AGX Xavier, JetPack 4": (1155 + 385 + 770 + 154 + 1602, "sum of rails"),
    "AGX Orin, JetPack 5": (2390 + 796 + 3522, "sum of rails"),  # VDDQ_VDD2_1V8AO is in VIN_SYS_5V0
    "Orin Nano": (5400, "VDD_IN"),
    "AGX Orin, JetPack 7.2": (5139 + 3268 + 5500, "sum of rails"),
    "Thor, JetPack 7.2": (87426, "VIN"),
    "a rail that feeds back": (2390 - 40 + 3522, "sum of rails"),
    "Xavier NX, JetPack 4": (3300, "VDD_IN"),
    "TX2": (2898, "VDD_IN"),
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


@pytest.mark.parametrize(
    ("rails", "total"),
    [
        ({"VDD_GPU": 37523, "VDD_CPU_SOC_MSS": 18962, "VIN_SYS_5V0": 18331, "VIN": 87426}, (87426, "VIN")),
        ({"VDD_GPU_SOC": 3576, "VDD_CPU_CV": 14322, "VIN_SYS_5V0": 4968, "VDDQ_VDD2_1V8AO": 1091},
         (22866, "sum of rails")),
        ({"VDD_GPU_SOC": 3, "VDDQ_VDD2_1V8AO": 1}, (4, "sum of rails without VDD_CPU_CV, VIN_SYS_5V0")),
        ({"VDD_CPU_GPU_CV": 500, "VDD_SOC": 900}, (1400, "sum of rails without VDD_IN")),
        ({"VDD_GPU": 5, "VDD_CPU_SOC_MSS": 6}, (11, "sum of rails without VIN, may count twice")),
        ({"CARRIER_12V": 9000, "CARRIER_5V": 4000}, (13000, "sum of rails, may count twice")),
        ({"VDD_GPU_SOC": 3, "VIN_SYS_5V0": 5, "X": 2}, (10, "sum of rails, may count twice")),
        ({"VDD_IN": -20, "VDD_SOC": 1}, (-20, "VDD_IN")),
        ({}, None),
    ],
)  # fmt: skip
def test_board_power_counts_each_rail_once_or_says_so(rails, total):
    assert facts.board_power(rails) == total


def test_every_rail_tree_has_a_source_and_its_input_rail_is_looked_for():
    for tree in facts.RAIL_TREES:
        assert tree.source and tree.modules
        assert tree.input_rail is None or tree.input_rail in facts.INPUT_RAILS
        assert set(tree.parts.values()) <= set(tree.rails) and not set(tree.parts) & set(tree.rails)


@pytest.mark.parametrize(
    ("sensor", "celsius", "is_one"),
    [
        ("PMIC-Die", 100.0, False),
        ("PMIC", 50.0, False),
        ("cv0-thermal", -256.0, False),
        ("tj-thermal", -40.0, True),
        ("GPU-therm", 100.0, True),
        ("soc0-thermal", 2147.483, False),
    ],
)
def test_alarm_levels_and_absent_sensors_are_no_temperatures(sensor, celsius, is_one):
    assert facts.is_temperature(sensor, celsius) is is_one
    stats = facts.tegrastats(f"tj@46.5C {sensor}@{celsius:g}C\n")
    assert (sensor in stats["temperatures_c"]) is is_one


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
    assert facts.tegrastats(TEGRASTATS["a rail that feeds back"])["temperatures_c"] == {"tj": -5.5}


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
        ("36.4.2", "6.1"),
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
        ("NVIDIA Jetson Orin NX", None, None),
        ("Orin NX 16GB", None, 2),
        ("Orin NX 8GB", 16, 1),
        ("NVIDIA Jetson AGX Thor", 128, 0),
        ("NVIDIA Jetson Xavier NX", 8, 2),
        ("NVIDIA Jetson Nano Developer Kit", 4, 0),
        ("PC", 8, None),
        (None, None, None),
    ],
)
def test_dla_cores_of_modules(module, gib, cores):
    assert facts.dla_cores_of(module, gib and int(gib * 0.95 * 2**30)) == cores


@pytest.mark.parametrize(
    ("compatible", "module"),
    [
        (["nvidia,p3768-0000+p3767-0001", "nvidia,p3767-0001", "nvidia,tegra234"], "Orin NX 8GB"),
        (["seeed,recomputer-j401+p3767-0000", "nvidia,tegra234"], "Orin NX 16GB"),
        (["nvidia,p3971-0089+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"], "Thor"),
        (["nvidia,p3449-0000+p3668-0000", "nvidia,tegra194"], "Xavier NX"),
        (["nvidia,p9999-0000", "nvidia,tegra234"], None),
    ],
)
def test_the_module_by_its_part_number(compatible, module):
    assert facts.part_of(compatible) == module


@pytest.mark.parametrize(
    ("mode", "watts"),
    [("MAXN", float("inf")), ("MAXN_SUPER", float("inf")), ("MODE_15W_6CORE", 15), ("120W", 120), ("10W", 10),
     ("MODE_W", None), ("custom", None), ("15Wx", None)],
)  # fmt: skip
def test_watts_in_the_name_of_a_power_mode(mode, watts):
    assert facts.power_budget(mode) == watts


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
def test_a_damaged_byte_never_changes_a_number_into_a_fraction(data):
    name = data.draw(st.sampled_from(sorted(TEGRASTATS)))
    line = TEGRASTATS[name]
    place = data.draw(st.integers(0, len(line) - 2))
    damaged = line[:place] + data.draw(st.sampled_from("x-+.,/ ")) + line[place + 1 :]
    found = facts.tegrastats(damaged) or {"rails_mw": {}}
    assert all(isinstance(power, int) and -(10**7) < power < 10**7 for power in found["rails_mw"].values())
