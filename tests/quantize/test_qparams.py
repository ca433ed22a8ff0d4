"""Scale, zero point and integers: hand-worked numbers first, then the laws they must obey."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeship.quantization.qparams import MIN_SCALE, choose_qparams, quantize_array, weight_qparams
from edgeship.toolkit.core.errors import QuantizationError
from edgeship.toolkit.core.quant import QParams, QuantSpec, Range

INT8 = QuantSpec("int8", symmetric=True)
UINT8 = QuantSpec("uint8", symmetric=True)
AFFINE = QuantSpec("uint8", symmetric=False)
SEVEN = QuantSpec("int8", symmetric=True, bits=7)


@pytest.mark.parametrize(
    ("spec", "low", "high", "scale", "zero_point"),
    [
        pytest.param(INT8, -2.54, 1.0, 0.02, 0, id="symmetric: the larger side decides"),
        pytest.param(INT8, 0.5, 2.54, 0.02, 0, id="symmetric: the range is widened to hold 0"),
        pytest.param(UINT8, 0.0, 5.1, 0.02, 0, id="unsigned: after ReLU"),
        pytest.param(AFFINE, -1.0, 4.1, 0.02, 50, id="asymmetric: 50 steps below zero"),
        pytest.param(replace(INT8, symmetric=False), -1.0, 4.1, 0.02, -78, id="asymmetric and signed"),
        pytest.param(SEVEN, -1.26, 1.26, 0.02, 0, id="7 bits: 63 steps a side"),
        pytest.param(INT8, 0.0, 0.0, MIN_SCALE, 0, id="all zero"),
    ],
)
def test_known_values(spec, low, high, scale, zero_point):
    got = choose_qparams(Range((low,), (high,)), spec)
    assert got.scale == pytest.approx((scale,))
    assert got.zero_point == (zero_point,)


@pytest.mark.parametrize(
    ("spec", "lowest", "highest"),
    [(INT8, -127, 127), (UINT8, 0, 255), (SEVEN, -63, 63), (replace(INT8, symmetric=False), -128, 127)],
)
def test_integers_of_a_type(spec, lowest, highest):
    assert (spec.quant_min, spec.quant_max) == (lowest, highest)


@pytest.mark.parametrize("bounds", [(np.nan, 1.0), (0.0, np.inf), (2.0, 1.0)])
def test_unusable_ranges_are_refused_and_the_hint_names_a_command(bounds):
    with pytest.raises(QuantizationError, match="unusable range") as caught:
        choose_qparams(Range((bounds[0],), (bounds[1],)), INT8)
    assert "edgeship inspect" in caught.value.hint


def test_rounding_is_half_to_even_and_clips():
    q = QParams((0.5,), (0,), INT8)
    values = np.array([0.25, 0.75, -0.25, -0.75, 1.0, 1e6, -1e6], np.float32)
    assert quantize_array(values, q).tolist() == [0, 2, 0, -2, 2, 127, -127]


def test_every_channel_of_weights_has_its_own_scale():
    weight = np.array([[[[1.27]], [[-0.5]]], [[[0.0]], [[0.0]]], [[[-12.7]], [[3.0]]]], np.float32)
    got = weight_qparams(weight, replace(INT8, axis=0))
    assert got.scale == pytest.approx((0.01, MIN_SCALE, 0.1))
    assert quantize_array(weight, got).reshape(3, 2).tolist() == [[127, -50], [0, 0], [-127, 30]]


@given(
    low=st.floats(-1e6, 0, width=32),
    high=st.floats(0, 1e6, width=32),
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=50),
    spec=st.sampled_from([INT8, UINT8, AFFINE, SEVEN]),
)
@settings(deadline=None, derandomize=True)
def test_zero_is_exact_and_everything_inside_is_within_half_a_step(low, high, parts, spec):
    low = 0.0 if spec is UINT8 else low
    q = choose_qparams(Range((low,), (high,)), spec)
    assert quantize_array(np.zeros(1, np.float32), q) == q.zero_point
    values = (low + np.array(parts) * (high - low)).astype(np.float32)
    back = ((quantize_array(values, q) - q.zero_point[0]) * q.scale[0]).astype(np.float32)
    # a zero point between two integers shifts the range by up to half a step at its ends
    steps = 1.0 if spec is AFFINE else 0.5
    assert (np.abs(back - values) <= steps * q.scale[0] * (1 + 1e-4) + 1e-6 * np.abs(values)).all()
    assert (np.abs(quantize_array(back, q) - quantize_array(values, q)) == 0).all()
