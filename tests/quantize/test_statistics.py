"""Samples of a stream: bounded, even, independent of the batches."""

import numpy as np
import pytest
import torch

from edgeship.quantization.statistics import EvenSample, Statistics, StatisticsAccumulator, TensorStatistics
from edgeship.toolkit.core.errors import QuantizationError, ToolkitError


def thinned(most, parts):
    kept = EvenSample(most)
    for part in parts:
        kept.add(np.asarray(part, np.float32).reshape(-1, 1))
    return kept.rows()[:, 0].tolist()


def test_the_limit_is_halved_when_there_are_too_many():
    # fractions of the golden ratio's multiples: 0, .62, .24, .85, .47, .09, .71, .33, .94, .56
    assert thinned(4, [[0, 1, 2, 3]]) == [0, 1, 2, 3]
    assert thinned(4, [[0, 1, 2, 3], [4]]) == [0, 2, 4]
    assert thinned(5, [range(10)]) == [0, 2, 4, 5, 7]
    assert thinned(4, [range(10)]) == [0, 2, 5]


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_rows_do_not_depend_on_the_batches(size):
    stream = np.arange(1000)
    kept = thinned(100, [stream[i : i + size] for i in range(0, 1000, size)])
    assert kept == thinned(100, [stream])
    assert 50 <= len(kept) <= 100
    assert max(np.diff(kept)) <= 3 * min(np.diff(kept))


@pytest.mark.parametrize("period", [2, 10, 16, 100])
def test_no_place_in_a_period_is_preferred(period):
    """A map gives 16 rows; classes may come in turn."""
    kept = thinned(2000, [range(160_000)])
    counts = np.bincount(np.array(kept, int) % period, minlength=period)
    assert counts.min() >= 0.7 * counts.mean()
    assert counts.max() <= 1.3 * counts.mean()


def test_memory_does_not_grow_with_the_stream():
    kept = EvenSample(64)
    for _ in range(2000):
        kept.add(np.zeros((10, 8), np.float32))
    assert sum(part.nbytes for _, part in kept._parts) <= 64 * 8 * 4
    assert all(part.base is None for _, part in kept._parts)  # no view keeps a batch alive


def test_extremes_are_those_of_all_batches():
    random = np.random.default_rng(0)
    low, high = (random.normal(size=(9, 3)).astype(np.float32) for _ in range(2))
    seen = StatisticsAccumulator("t")
    for i in (0, 4, 8):
        seen.add(low[i : i + 4], high[i : i + 4], high[i : i + 4])
    got = seen.result()
    np.testing.assert_array_equal(got.low, low.min(0))
    np.testing.assert_array_equal(got.high, high.max(0))
    assert got.largest == max(high.max(), -low.min())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_values_name_the_tensor(bad):
    rows = np.array([[1.0, bad]], np.float32)
    with pytest.raises(QuantizationError, match="'layer1'"):
        StatisticsAccumulator("layer1").add(rows, rows, rows)


def test_saved_statistics_come_back(tmp_path):
    random = np.random.default_rng(0)
    tensor = TensorStatistics(*(random.normal(size=(2, 3)).astype(np.float32) for _ in range(4)))
    Statistics(7, {"a/b": tensor, "c": tensor}, np.ones((2, 3, 4, 4), np.float32), "bf16").save(tmp_path)
    got = Statistics.load(tmp_path)
    assert got.precision == "bf16"
    assert got.lowest == {"a/b": tensor.low.min(), "c": tensor.low.min()}
    assert got.largest == dict.fromkeys(("a/b", "c"), tensor.largest)
    assert (got.images, list(got.tensors), got.probe.shape) == (7, ["a/b", "c"], (2, 3, 4, 4))
    np.testing.assert_array_equal(got.tensors["a/b"].sample, tensor.sample)


def test_a_folder_without_statistics_is_an_error(tmp_path):
    with pytest.raises(ToolkitError):
        Statistics.load(tmp_path)


def test_a_scaled_tensor_is_divided_channel_by_channel():
    ones = np.ones((2, 2), np.float32)
    got = TensorStatistics(ones[0], ones[0], ones, ones).scaled(np.array([2, 4], np.float32))
    np.testing.assert_array_equal(got.sample, [[0.5, 0.25]] * 2)
    np.testing.assert_array_equal(got.high, [0.5, 0.25])


def test_a_dithered_sample_rounds_to_what_it_was_and_fills_the_comb():
    exact = np.random.default_rng(0).normal(size=(4000, 3)).astype(np.float32)
    exact[::7] = 0.0
    rounded = torch.from_numpy(exact).bfloat16()
    sample = rounded.float().numpy()
    seen = TensorStatistics(sample.min(0), sample.max(0), sample, sample)
    got = seen.dithered()
    away = (torch.from_numpy(got.sample).bfloat16() != rounded).float().mean()
    assert away < 0.01  # ties, and what was cut at the extremes
    np.testing.assert_array_equal(got.sample == 0, sample == 0)
    assert (got.sample >= seen.low).all() and (got.sample <= seen.high).all()
    assert len(np.unique(got.sample)) > 0.99 * (sample != 0).sum()
    counts = [np.histogram(values, 512, (1.0, 3.0))[0] for values in (sample, got.sample)]
    assert (counts[0] == 0).mean() > 0.6 and (counts[1] == 0).mean() < 0.3
    np.testing.assert_array_equal(got.sample, seen.dithered().sample)
