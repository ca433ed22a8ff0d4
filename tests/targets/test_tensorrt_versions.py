"""The rules of each TensorRT, at the versions where they change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.targets.tensorrt.versions import parse, rules
from edgeship.toolkit.core.errors import RecipeError


@pytest.mark.parametrize(
    ("name", "last_without", "first_with"),
    [
        ("half_scales", "8.6", "10.0"),
        ("int8_weights", "8.6", "10.0"),
        ("uint8_input", "8.4", "8.5"),
        ("optimization_level", "8.2", "8.6"),
        ("optimization_level", "8.4", "8.6"),
        ("optimization_level", "8.5", "8.6"),
    ],
)
def test_what_a_version_brings(name, last_without, first_with):
    assert not getattr(rules(last_without), name)
    assert getattr(rules(first_with), name) and getattr(rules("11.4"), name)


def test_zero_points_are_needed_before_10():
    assert rules("8.6.1").needs_zero_point and not rules("10").needs_zero_point


@pytest.mark.parametrize(
    ("version", "group", "max_opset", "strongly_typed", "dla"),
    [
        ("8.2", "8.2", 13, "no", "implicit"),
        ("8.3", "8.2", 13, "no", "implicit"),
        ("8.4", "8.4", 17, "no", "implicit"),
        ("8.5", "8.4", 17, "no", "implicit"),
        ("8.6", "8.4", 17, "no", "implicit"),
        ("10.0", "10", 20, "possible", "implicit"),
        ("10.3", "10", 20, "possible", "implicit"),
        ("10.7", "10", 20, "possible", "implicit"),
        ("10.8", "10", 20, "possible", "none"),
        ("10.9", "10", 22, "possible", "none"),
        ("10.11", "10", 22, "possible", "none"),
        ("10.12", "10", 22, "recommended", "none"),
        ("10.13", "10", 24, "recommended", "none"),
        ("10.16", "10", 24, "recommended", "none"),
        ("11.0", "11", 24, "always", "none"),
        ("11.3.9", "11", 24, "always", "none"),
        ("11.4", "11", 24, "always", "explicit"),
    ],
)
def test_the_rules_of_a_version_hold_until_the_next_that_is_listed(
    version, group, max_opset, strongly_typed, dla
):
    found = rules(version)
    assert (found.group, found.max_opset, found.strongly_typed, found.dla) == (
        group,
        max_opset,
        strongly_typed,
        dla,
    )


@pytest.mark.parametrize("version", ["8.1", "7.2", "9.0", "12.0", "ten", ""])
def test_versions_that_are_not_known(version):
    with pytest.raises(RecipeError):
        rules(version)


def test_versions_are_numbers_not_text():
    assert rules("10.13.3.9").name == "10.13"
    assert rules("10.3.0").name == "10.3"  # as text, "10.13" < "10.3"
    assert rules("8.5.2.2").name == "8.5"
    assert rules("11.4.1").group == "11"
    for text in ("8.1", "7.1.3", "12.0", "8"):
        with pytest.raises(RecipeError, match="no rules"):
            rules(text)
    for text in ("", "ten", "8.5-rc", "8..5", "v8.5"):
        with pytest.raises(RecipeError, match="not a TensorRT version"):
            rules(text)


@pytest.mark.parametrize(
    ("dpkg", "numbers"),
    [
        ("10.3.0.30-1+cuda12.5", (10, 3, 0, 30)),
        ("8.5.2-1+cuda11.4", (8, 5, 2)),
        ("8.6.2.3-1+cuda12.2", (8, 6, 2, 3)),
        ("8.2.1-1+cuda10.2", (8, 2, 1)),
        ("10.13.3.9-1+cuda13.0", (10, 13, 3, 9)),
        ("11.4.1.7-1+cuda13", (11, 4, 1, 7)),
    ],
)
def test_the_form_that_dpkg_prints(dpkg, numbers):
    assert parse(dpkg) == parse(f" {dpkg}\n") == numbers
    assert rules(dpkg) == rules(".".join(map(str, numbers)))


@pytest.mark.parametrize(
    "text", ["10.3-1", "10.3.0.30+cuda12.5", "-1+cuda12.5", "10.3-1+cuda", "10.3-1+cuda12.5x"]
)
def test_half_of_that_form_is_refused(text):
    with pytest.raises(RecipeError, match="not a TensorRT version"):
        parse(text)


@given(text=st.text("0123456789. -rcv", max_size=12))
def test_a_version_is_read_whole_or_refused(text):
    try:
        numbers = parse(text)
    except RecipeError as error:
        assert error.hint
    else:
        assert [int(part) for part in text.strip().split(".")] == list(numbers)
