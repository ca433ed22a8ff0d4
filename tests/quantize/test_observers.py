"""Observers: hand-worked numbers, and the laws all of them obey."""

import numpy as np
import pytest

from edgeship.quantization import observers
from edgeship.quantization.observers import entropy, mse, percentile
from edgeship.quantization.statistics import TensorStatistics
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.quant import QuantSpec

INT8, UINT8 = QuantSpec("int8", symmetric=True), QuantSpec("uint8", symmetric=True)
NORMAL = np.random.default_rng(0).normal(size=20_000).astype(np.float32)


def collect_moments(name, sample, spec=INT8):
    rows = sample[:, None]
    got = observers.get(name)(TensorStatistics(rows.min(0), rows.max(0), rows, abs(rows)), spec)
    return got.low[0], got.high[0]


@pytest.mark.parametrize("name", observers.names())  # new files join in
@pytest.mark.parametrize("spec", [INT8, UINT8], ids=["int8", "uint8"])
def test_every_observer_gives_a_range_inside_the_data(name, spec):
    sample = np.maximum(NORMAL, 0) if spec is UINT8 else NORMAL
    low, high = collect_moments(name, sample, spec)
    assert sample.min() <= low <= 0 < high <= sample.max()


@pytest.mark.parametrize("name", observers.names())
@pytest.mark.parametrize(
    "sample", [np.zeros(9), np.full(9, 3.0), np.full(9, -3.0)], ids=["zero", "constant", "negative"]
)
def test_degenerate_tensors_keep_their_range(name, sample):
    low, high = collect_moments(name, sample.astype(np.float32))
    assert (low, high) == (min(sample), max(sample))


@pytest.mark.parametrize("name", ["mse", "percentile"])  # to entropy a lone value is information too
def test_a_lone_outlier_is_cut(name):
    sample = np.concatenate([np.repeat(NORMAL, 20), [1e6]]).astype(np.float32)
    assert collect_moments("minmax", sample)[1] == 1e6
    assert collect_moments(name, sample)[1] < 0.6e6


def test_the_example_of_the_entropy_observer():
    """P = [1, 0, 2, 3] with 2 levels: merged [1, 5], spread over filled bins [1, 0, 2.5, 2.5]."""
    p, q = np.array([1, 2, 3]) / 6, np.array([1, 2.5, 2.5]) / 6
    assert entropy.divergence(np.array([1, 0, 2, 3]), 4, 2) == pytest.approx((p * np.log(p / q)).sum())


def test_what_is_cut_counts_as_the_last_bin():
    """[4, 4, 2] cut to two bins: P = [4, 6] / 10 against Q = [4, 4] / 8 with 2 levels."""
    p, q = np.array([0.4, 0.6]), np.array([0.5, 0.5])
    assert entropy.divergence(np.array([4, 4, 2]), 2, 2) == pytest.approx((p * np.log(p / q)).sum())


def test_mse_finds_the_least_error_that_a_search_finds():
    """Against brute force: quantize the sample for real at every cut."""
    sample = np.random.default_rng(1).standard_t(3, 5000).astype(np.float32)
    largest = float(np.abs(sample).max())

    def error(cut):
        scale = cut / 127
        return np.square(np.clip(np.rint(sample / scale), -127, 127) * scale - sample).sum()

    _, high = collect_moments("mse", sample)
    low, _ = collect_moments("mse", sample)
    best = min(error(largest * step) for step in mse.STEPS)
    assert error(max(high, -low)) <= 1.02 * best
    assert max(high, -low) < largest


def test_percentile_is_numpys():
    low, high = collect_moments("percentile", NORMAL)
    cut = np.percentile(np.abs(NORMAL), percentile.PERCENT)
    assert max(-low, high) == pytest.approx(cut)


def test_an_unknown_observer_is_named_with_the_nearest():
    with pytest.raises(RecipeError) as caught:
        observers.get("mes")
    assert "mse" in caught.value.hint
