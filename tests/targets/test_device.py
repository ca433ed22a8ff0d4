"""This machine, read from system files; their texts by hand."""

import platform

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.targets._device import instruction_sets, this_device
from edgeship.targets.runner import facts
from edgeship.toolkit.core.quant import Cpu

X86 = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni amx_int8\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp atomics i8mm\n"


def test_instruction_sets():
    assert instruction_sets(X86) == ("sse4_2", "avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert instruction_sets(ARM) == ("neon", "dotprod", "i8mm")
    assert instruction_sets("") == ()


@pytest.mark.parametrize(("cpuinfo", "arch"), [(X86, "x86_64"), (ARM.replace("i8mm", ""), "aarch64")])
def test_sums_of_int8_products(cpuinfo, arch):
    """Seen: `asimddp` here, `dotprod` there, so that exact sums on a device were unknown."""
    assert Cpu(arch, instruction_sets(cpuinfo)).int8_sums == "exact"
    assert Cpu("x86_64", ("avx2",)).int8_sums == "pairs"
    assert Cpu("aarch64").int8_sums is None


def test_this_machine():
    device = this_device()
    assert device.arch == platform.machine()
    assert device.name
    assert device.cores >= 1
    assert device.memory_bytes > 1e8
    assert "openvino" in device.versions


@given(text=st.text(max_size=40))
def test_damaged_system_files_give_nothing_or_sense(text):
    assert set(instruction_sets(f"flags\t: {text}\n")) <= {"sse4_2", *(name for _, name in facts._X86_SETS)}
