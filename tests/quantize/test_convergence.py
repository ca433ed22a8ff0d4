"""Early stop of calibration: the standard error of mean peaks, and the images that are run."""

import numpy as np
import pytest
from float_graphs import images, residual

from edgeship.quantization import convergence
from edgeship.quantization.calibrate import GROUP, collect
from edgeship.quantization.convergence import LEAST_IMAGES, LEAST_PIXELS, Convergence

PIXELS = 224 * 224


def added(peaks, *cuts):
    result = Convergence()
    for part in np.split(peaks, cuts):
        result.add(part)
    return result


def test_the_error_is_that_of_the_mean_whatever_the_parts():
    peaks = np.random.default_rng(0).gamma(4.0, size=(90, 5)).astype(np.float32)
    expected = (peaks.std(0, ddof=1) / np.sqrt(90) / peaks.mean(0)).mean()
    for cuts in ((), (1,), (7, 8, 60)):
        assert added(peaks, *cuts).error == pytest.approx(expected, rel=1e-6)


def test_by_hand():
    # of 1 and 3 the mean is 2, its standard error 1; the second tensor is constant, the third always zero
    assert added(np.array([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]])).error == pytest.approx(0.25)
    assert added(np.array([[1.0]])).error == float("inf")
    assert added(np.zeros((3, 2))).error == 0.0


def test_a_few_images_or_pixels_are_never_enough():
    same = np.ones((LEAST_IMAGES - 1, 2))
    assert not added(same).reached(10**6)
    assert added(np.ones((LEAST_IMAGES, 2))).reached(10**6)
    assert not added(np.ones((LEAST_PIXELS // PIXELS, 2))).reached(PIXELS)
    assert added(np.ones((LEAST_PIXELS // PIXELS + 1, 2))).reached(PIXELS)


def test_spread_peaks_take_more_images():
    peaks = np.random.default_rng(1).gamma(0.5, size=(300, 3))
    assert not added(peaks).reached(PIXELS)


def test_the_pass_ends_when_it_has_converged(tmp_path, monkeypatch):
    """The statistics are those of the images that were run, however many threads read ahead."""
    path, pixels = residual(1).save(tmp_path / "m.onnx"), images(400, 16)
    monkeypatch.setattr(convergence, "LEAST_PIXELS", 0)
    stream, peaks = [pixels[i : i + 8] for i in range(0, 400, 8)], []
    early = collect(path, stream, peaks.append, exact=True, early_stop=True)
    seen = np.concatenate(peaks)
    assert LEAST_IMAGES <= early.images == len(seen) < 400 and early.images % GROUP == 0
    whole = collect(path, [pixels[: early.images]], exact=True)
    assert early.images == whole.images
    np.testing.assert_array_equal(early.probe, whole.probe)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(early.tensors[name].high, tensor.high)
    assert collect(path, stream, exact=True).images == 400
