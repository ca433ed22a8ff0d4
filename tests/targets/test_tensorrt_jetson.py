"""JetPack and module tables: rows that others rely on, and agreement with the tables the device carries."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert "FP16" in caught.value.hint
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
    carried = {release for release in facts.JETPACKS.values() if release not in jetson.TOO_OLD}
    listed = {release for line in jetson.JETPACKS for release in line.releases}
    assert listed - carried == {"7.2.2"}  # no source gives its L4T
    assert carried <= listed
    names = {item.name for item in jetson.MODULES}
    assert {name for line in jetson.JETPACKS for name in line.modules} == names
    assert set(facts.PARTS.values()) | set(jetson._PRODUCTS.values()) <= names
    assert all(line.evidence for line in jetson.JETPACKS)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("NVIDIA Jetson AGX Orin Developer Kit", "AGX Orin"),
        ("Jetson AGX Orin 64GB", "AGX Orin"),
        ("AGX Orin Industrial", "AGX Orin"),
        ("jetson-agx-orin-devkit", "AGX Orin"),
        ("Orin Nano Super", "Orin Nano"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "Orin Nano"),
        ("jetson-orin-nano-devkit-super", "Orin Nano"),
        ("Orin Nano 4GB", "Orin Nano"),
        ("reComputer J4012", "Orin NX 16GB"),
        ("Seeed Studio reComputer Super J4011", "Orin NX 8GB"),
        ("reServer Industrial J3011", "Orin Nano"),
        ("recomputer-j1020v2", "Jetson Nano"),
        ("reComputer J2022", "Xavier NX"),
        ("T5000", "Thor"),
        ("Jetson T4000", "Thor"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "Thor"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "Orin NX"),
        ("Orin NX (16 GB)", "Orin NX 16GB"),
        ("Jetson Orin NX 8GB Module", "Orin NX 8GB"),
        ("16GB Orin NX", "Orin NX 16GB"),
        ("OrinNX8", "Orin NX 8GB"),
        ("Orin NX 8GB/16GB", "Orin NX"),  # which of them is unknown: the DLA core that both have
        ("Orin Nano 8GB", "Orin Nano"),
        ("nvidia,p3768-0000+p3767-0001", "Orin NX 8GB"),
        ("P3701-0005", "AGX Orin"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "Xavier NX"),
        ("Jetson AGX Xavier 32GB", "AGX Xavier"),
        ("Jetson TX2 NX", "Jetson TX2"),
        ("TX2i", "Jetson TX2"),
        ("Jetson Nano 2GB Developer Kit", "Jetson Nano"),
    ],
)
def test_names_that_devices_shops_and_carrier_boards_give(name, module):
    assert jetson.module(name).name == jetson.module(name.upper()).name == module


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Orin", "Orin Nano"),
        ("Jetson Xavier", "Xavier NX"),
        ("Orin NX/Nano carrier", "Orin NX"),
        ("reComputer J9999", "known"),
        ("Raspberry Pi 5", "known"),
        ("Orin Nanos", "Orin Nano"),
        ("p9999-0000", "known"),
        ("", "known"),
    ],
)
def test_names_of_no_one_module_are_refused(name, hint):
    with pytest.raises(DeviceError, match="named") as caught:
        jetson.module(name)
    assert hint in caught.value.hint


@given(st.text(max_size=40))
def test_any_name_is_a_module_or_an_error(name):
    try:
        assert jetson.module(name) in jetson.MODULES
    except DeviceError as error:
        assert error.hint


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("6.0 DP", "6.0"),
        ("JetPack 6.0 GA", "6.0"),
        ("6.2+b77", "6.2"),
        ("5.1.2-b104", "5.1.2"),
        ("JetPack-6.2.1", "6.2.1"),
        ("jp7.1", "7.1"),
        ("nvidia-jetpack 6.1+b123", "6.1"),
        ("6.1 (rev1)", "6.1"),
        ("6.2.0", "6.2"),
        ("R36.4.3", "6.2"),
        ("36.4.2", "6.1"),
        ("36.2", "6.0"),
        ("L4T 36.4.4", "6.2.1"),
        ("l4t r35.6", "5.1.4"),
        ("r32.7.4", "4.6.4"),
        ("36.4.3-20250107174145", "6.2"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x\n", "6.2"),
        ("R39 (release), REVISION: 2.0", "7.2"),
        ("7.2.2", "7.2.2"),
    ],
)
def test_forms_of_a_jetpack_or_l4t_version(text, release):
    assert jetson.release_name(text) == release


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("4.6", "4.6.6"),
        ("R32.6.1", "4.6.6"),
        ("4.5", "4.6.6"),
        ("6", "6.2.2"),
        ("5.0 DP", "5.0.2"),
        ("36.4.1", "36.4.3"),
        ("R6.2", "6.2.2"),
        ("8.0", "7.2.1"),
        ("six", "7.2.1"),
        ("", "7.2.1"),
        ("6.2.1.9.9", "7.2.1"),
    ],
)
def test_releases_that_are_not_in_the_table_are_refused_with_those_that_are(text, hint):
    with pytest.raises(DeviceError) as caught:
        jetson.release_name(text)
    assert hint in caught.value.hint


@given(st.text(max_size=30) | st.text("JjPpRrLlTt0123456789. +-b()", max_size=20))
def test_any_text_is_a_release_or_an_error(text):
    listed = {release for line in jetson.JETPACKS for release in line.releases}
    try:
        assert jetson.release_name(text) in listed
    except DeviceError as error:
        assert error.hint


@pytest.mark.parametrize(
    ("name", "release", "tensorrt"),
    [
        ("Jetson Nano", "4.6.6", "8.2.1"),
        ("TX2", "4.6.6", "8.2.1"),
        ("AGX Xavier", "5.1.6", "8.5.2"),
        ("Xavier NX", "5.1.6", "8.5.2"),
        ("AGX Orin", "7.2.1", "10.16.2"),
        ("Orin NX", "7.2.1", "10.16.2"),
        ("Orin Nano", "7.2.1", "10.16.2"),
        ("Thor", "7.2.1", "10.16.2"),
    ],
)
def test_the_default_jetpack_of_a_module_is_its_newest(name, release, tensorrt):
    module = jetson.module(name)
    assert (jetson.newest_jetpack(module), jetson.choose(module)) == (release, tensorrt)


@pytest.mark.parametrize(
    ("name", "jetpack", "tensorrt", "exact"),
    [
        ("AGX Orin", None, "8.5", "8.5.2"),
        ("AGX Orin", None, "8.6", "8.6.2"),
        ("AGX Xavier", None, "8.2", "8.2.1"),
        ("Orin Nano", None, "10.3.0.30-1+cuda12.5", "10.3.0.30"),
        ("Orin Nano", "R36.4.3", "10.3", "10.3.0"),
        ("Orin Nano", "6.2", "10.7", "10.7"),  # no source gives its patch
        ("Thor", None, "10.13", "10.13"),  # JetPack 7.0's patch is not known
        ("Thor", "7.1", "10.13", "10.13.3"),
        ("Thor", "7.1", "10.13.3.9", "10.13.3.9"),
        ("AGX Orin", "7.2.2", None, "11.4"),
        ("AGX Orin", "5.0.2", None, "8.4.1"),
    ],
)
def test_pairs_that_exist(name, jetpack, tensorrt, exact):
    assert jetson.choose(jetson.module(name), jetpack=jetpack, tensorrt=tensorrt) == exact


@pytest.mark.parametrize(
    ("name", "jetpack", "tensorrt", "hint"),
    [
        ("Thor", "6.2", None, "7.0, 7.1, 7.2"),
        ("Jetson Nano", "5.1.2", None, "4.6.6"),
        ("Jetson Nano", None, "10.3", "8.2.1 (JetPack 4.6.1 to 4.6.6)"),
        ("TX2", None, "8.5", "8.2.1"),
        ("AGX Xavier", "6.0", None, "5.1.6"),
        ("AGX Xavier", None, "8.6", "8.5.2"),
        ("Orin NX", "5.0.2", None, "5.1"),
        ("Orin Nano", "7.1", None, "7.2"),
        ("Orin Nano", "6.2", "8.5", "10.3.0"),
        ("AGX Orin", None, "8.5.1", "8.5.2"),
        ("AGX Orin", None, "11.1", "11.4"),
        ("AGX Orin", "7.2", "11.4", "10.16.2"),
        ("Orin Nano", None, "11.4.1", "10.16.2"),
        ("Thor", None, "8.6", "10.13"),
    ],
)
def test_pairs_that_do_not_exist_are_refused_with_those_that_do(name, jetpack, tensorrt, hint):
    with pytest.raises(DeviceError, match="has no") as caught:
        jetson.choose(jetson.module(name), jetpack=jetpack, tensorrt=tensorrt)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("module", "version", "refusal"),
    [
        ("Thor", "10.13", ""),
        ("Thor", None, ""),
        (None, "10.16.2", ""),
        ("AGX Orin", "10.16.2", "AGX Orin (SM 8.7) computes no FP8"),
        ("Jetson Nano", None, "SM 5.3"),
        (None, "8.6.2", "TensorRT 8.6.2 has no FP8"),
    ],
)
def test_fp8_is_refused_where_gpu_or_tensorrt_have_none(module, version, refusal):
    if not refusal:
        jetson.require_fp8(module, version)
        return
    with pytest.raises(DeviceError) as caught:
        jetson.require_fp8(module, version)
    assert refusal in str(caught.value) and "Thor" in caught.value.hint


def test_precisions_of_a_module():
    both = ("fp16", "fp8", "int8")
    available = {name: jetson.available(both, name) for name in ("Thor", "AGX Orin", "Jetson TX2")}
    assert available == {"Thor": both, "AGX Orin": ("fp16", "int8"), "Jetson TX2": ("fp16",)}
    assert jetson.available(both, None) == both
