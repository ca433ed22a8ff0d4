"""The rules of each TensorRT, at the versions where they change."""

import pytest

from targets.tensorrt.versions import rules


@pytest.mark.parametrize(
    ("name", "last_without", "first_with"),
    [
        ("half_scales", "8.6", "10.0"),
        ("int8_weights", "8.6", "10.0"),
        ("uint8_input", "8.4", "8.5"),
        ("optimization_level", "8.5", "8.6"),
    ],
)
def test_what_a_version_brings(name, last_without, first_with):
    assert not getattr(rules(last_without), name)
    assert getattr(rules(first_with), name) and getattr(rules("11.4"), name)


def test_zero_points_are_needed_before_10():
    assert rules("8.6.1").needs_zero_point and not rules("10").needs_zero_point
