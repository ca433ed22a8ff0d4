"""This machine, read from system files; their texts by hand."""

import platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.targets._device import INSTRUCTION_SETS, instruction_sets, this_device
from edgeship.targets.runner import facts
from edgeship.toolkit.core.quant import Cpu

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni amx_int8\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp atomics i8mm\n"


def test_instruction_sets():
    assert instruction_sets(X86) == ("sse4_2", "avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert instruction_sets(ARM) == ("neon", "dotprod", "i8mm")
    assert instruction_sets("") == ()


@pytest.mark.parametrize(("cpuinfo", "arch"), [(X86, "x86_64"), (ARM, "aarch64")])
def test_the_runner_on_a_device_has_the_same_names(cpuinfo, arch):
    """Seen: `asimddp` here, `dotprod` there, so that exact sums on a device were unknown."""
    there = facts.cpu_info(cpuinfo.replace("i8mm", ""))["instruction_sets"]
    assert there == [name for name in instruction_sets(cpuinfo) if name not in ("sse4_2", "i8mm")]
    assert Cpu(arch, tuple(there)).int8_sums == "exact"


def test_this_machine():
    device = this_device()
    assert device.arch == platform.machine()
    assert device.name
    assert device.cores >= 1
    assert device.memory_bytes > 1e8
    assert "openvino" in device.versions


@given(text=st.text(max_size=40))
def test_damaged_system_files_give_nothing_or_sense(text):
    assert set(instruction_sets(f"flags\t: {text}\n")) <= set(INSTRUCTION_SETS.values())
