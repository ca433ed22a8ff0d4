"""Scale against number of images: hand-worked cases, and drawn subsets."""

from itertools import combinations

import numpy as np
import pytest

from edgeship.calibration.sample_size import sample_size_finding, scale_curve
from edgeship.toolkit.core.errors import DataError


def test_by_hand():
    curve = scale_curve([[1.0], [4.0], [2.0]])
    # one of three: mean 7/3; two of three: (4 + 4 + 2)/3; all: 4
    assert curve.images == (1, 2, 3)
    assert curve.scale == pytest.approx((7 / 12, 10 / 12, 1.0))
    assert curve.enough is None


def test_expectation_over_all_subsets():
    maxima = np.random.default_rng(0).gamma(2.0, size=(9, 3))
    curve = scale_curve(maxima)
    for count, scale in zip(curve.images, curve.scale, strict=True):
        subsets = [maxima[list(chosen)].max(0) / maxima.max(0) for chosen in combinations(range(9), count)]
        assert scale == pytest.approx(np.mean(subsets))


def test_order_does_not_matter():
    maxima = np.random.default_rng(1).random((40, 5))
    assert scale_curve(maxima) == scale_curve(list(maxima[::-1]))


def test_enough_is_where_doubling_stops_to_matter():
    curve = scale_curve(1 - np.random.default_rng(0).random((1000, 8)) * 0.5)  # maxima in 0.5..1
    # the mean of n: 1 - 0.5 / (n + 1); doubling adds 2 % or less from n = 16 (1.47 %) on, 8 gives 2.7 %
    assert curve.enough == 16
    finding = sample_size_finding(curve, curve.images[-1])
    assert finding.severity == "info" and finding.what.startswith("16 calibration images")


def test_one_outlier_is_never_enough():
    maxima = np.ones((300, 1))
    maxima[17] = 100.0  # an outlier sets the scale
    curve = scale_curve(maxima)
    assert curve.enough is None
    finding = sample_size_finding(curve, curve.images[-1])
    assert finding.severity == "warning"
    assert "300 calibration images are few" in finding.what and "50%" in finding.what


def test_tensors_that_are_always_zero_have_no_say():
    assert scale_curve([[0.0, 1.0], [0.0, 2.0]]).scale == pytest.approx((0.75, 1.0))
    assert scale_curve([[0.0], [0.0]]).enough == 1


def test_one_image():
    curve = scale_curve([[3.0, 1.0]])
    assert (curve.images, curve.scale, curve.enough) == ((1,), (1.0,), None)
    assert sample_size_finding(curve, curve.images[-1]).severity == "warning"


@pytest.mark.parametrize("maxima", [[], [[np.nan]], [[np.inf]], [[-1.0]]])
def test_unusable_values(maxima):
    with pytest.raises(DataError, match="missing, negative or not finite"):
        scale_curve(maxima)


def test_ten_thousand_images_are_no_trouble():
    assert scale_curve(np.random.default_rng(0).random((10_000, 60))).images[-1] == 10_000


def test_images_that_were_not_run_are_named():
    finding = sample_size_finding(scale_curve(np.ones((96, 2))), 300, "float")
    assert finding.severity == "info"
    assert "float network" in finding.what and "96 of 300" in finding.what
