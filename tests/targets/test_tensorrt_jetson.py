"""JetPack and module tables: rows that others rely on, and agreement with the tables the device carries."""

import pytest

from edgeship.targets.runner import facts
from edgeship.targets.tensorrt import jetson, versions
from edgeship.toolkit.core.errors import DeviceError


@pytest.mark.parametrize(
    ("release", "tensorrt", "cuda", "python"),
    [
        ("4.6.4", "8.2.1", "10.2", "3.6"),
        ("5.1.2", "8.5.2", "11.4", "3.8"),
        ("6.0", "8.6.2", "12.2", "3.10"),
        ("6.2.1", "10.3.0", "12.6", "3.10"),
        ("36.4.7", "10.3.0", "12.6", "3.10"),
        ("7.1", "10.13.3", "13.0", "3.12"),
        ("39.2.0", "10.16.2", "13.2", "3.12"),
    ],
)
def test_what_a_jetpack_brings(release, tensorrt, cuda, python):
    line = jetson.jetpack(release)
    assert (line.tensorrt, line.cuda, line.python) == (tensorrt, cuda, python)


def test_every_jetpack_brings_a_tensorrt_we_have_rules_for():
    for line in jetson.JETPACKS:
        assert versions.rules(line.tensorrt).version <= versions.parse(line.tensorrt)[:2]


@pytest.mark.parametrize(
    ("name", "sm", "int8", "cores"),
    [
        ("Jetson Nano", "5.3", False, 0),
        ("nano", "5.3", False, 0),
        ("TX2", "6.2", False, 0),
        ("agx-xavier", "7.2", True, 2),
        ("Jetson AGX Orin", "8.7", True, 2),
        ("NVIDIA Orin Nano", "8.7", True, 0),
        ("Orin NX 8GB", "8.7", True, 1),
        ("Thor", "11.0", True, 0),
    ],
)
def test_modules(name, sm, int8, cores):
    found = jetson.module(name)
    assert (found.sm, found.int8, found.dla_cores) == (sm, int8, cores)


def test_int8_is_refused_where_the_gpu_has_none():
    with pytest.raises(DeviceError, match="computes no INT8") as caught:
        jetson.require_int8(jetson.module("Jetson Nano"))
    assert "fp16" in caught.value.hint
    jetson.require_int8(jetson.module("Orin Nano"))


def test_unknown_names_get_the_nearest():
    with pytest.raises(DeviceError) as caught:
        jetson.module("AGX Orinn")
    assert "AGX Orin" in caught.value.hint
    with pytest.raises(DeviceError):
        jetson.jetpack("9.9")


def test_the_tables_that_devices_carry_agree():
    assert {item.compatible: (item.family, item.sm) for item in jetson.MODULES} == facts.CHIPS
    assert {item.sm for item in jetson.MODULES if not item.int8} == set(facts.NO_INT8)
    carried = {
        l4t: release
        for l4t, release in facts._JETPACKS.items()
        if not l4t.startswith(("32.4", "32.5", "32.6"))
    }
    for l4t, release in carried.items():
        assert release in jetson.jetpack(l4t).releases
    assert set(carried) == {l4t for line in jetson.JETPACKS for l4t in line.l4t}
