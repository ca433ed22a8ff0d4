"""Paired outcomes: published examples, agreement with SciPy and statsmodels, and the laws they obey."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta, binomtest, multinomial, t
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from edgeship.targets.runner import timing
from edgeship.toolkit.core import statistics


def outcomes(both, lost, won, neither):
    was = np.repeat([True, True, False, False], [both, lost, won, neither])
    now = np.repeat([True, False, True, False], [both, lost, won, neither])
    return was, now


counts = st.integers(0, 60)


@pytest.mark.parametrize(("lost", "won", "n"), [(7, 1, 21), (10, 3, 13), (60, 30, 5000), (9, 0, 40)])
def test_the_interval_is_the_quantile_of_the_melded_distributions(lost, won, n):
    """Fay and Lumbard 2021 by Monte Carlo: share changed times balance, each by Clopper and Pearson."""
    rng = np.random.default_rng(0)
    balance = 2 * rng.beta(lost, won + 1, 400_000) - 1
    few = rng.beta(lost + won, n - lost - won + 1, 400_000)
    many = rng.beta(lost + won + 1, n - lost - won, 400_000) if lost + won < n else 1.0
    drop, (low, _) = statistics.paired_drop(*outcomes(n - lost - won, lost, won, 0))
    expected = min(np.quantile(share * balance, 0.025) for share in (few, many))
    assert drop == pytest.approx(100 * (lost - won) / n)
    assert low == pytest.approx(100 * expected, abs=0.25)
    assert abs(low - 100 * expected) < 0.01 * (drop - low)


@pytest.mark.parametrize(
    ("lost", "won", "n"), [(9, 0, 40), (10, 1, 21), (60, 30, 5000), (7, 1, 21), (2, 3, 40), (20, 25, 300)]
)
def test_the_lower_bound_has_exactly_its_probability(lost, won, n):
    _, (low, _) = statistics.paired_drop(*outcomes(n - lost - won, lost, won, 0))
    changed, balance = lost + won, beta(lost, won + 1)
    share = beta(changed, n - changed + 1) if low > 0 else beta(changed + 1, n - changed)

    def below(at):
        part = share.cdf(low / 100 / (2 * at - 1))
        return balance.pdf(at) * (part if low > 0 else 1 - part)

    probability = quad(below, 0.5, 1)[0] + balance.cdf(0.5) if low > 0 else quad(below, 0, 0.5)[0]
    assert probability == pytest.approx(0.025, abs=4e-4)


@pytest.mark.parametrize("n", [1, 355, 10_000])
def test_no_discordant_image_still_leaves_room_for_a_drop(n):
    drop, (low, high) = statistics.paired_drop(*outcomes(n, 0, 0, 0))
    bound = 100 * binomtest(0, n).proportion_ci(0.95, "exact").high
    assert drop == 0
    assert (-low, high) == (pytest.approx(bound), pytest.approx(bound))


@given(counts, counts, counts, counts)
def test_interval_holds_the_drop_mirrors_and_agrees_with_mcnemars_exact_test(both, lost, won, neither):
    n = both + lost + won + neither
    if n == 0:
        return
    drop, (low, high) = statistics.paired_drop(*outcomes(both, lost, won, neither))
    _, (mirror_low, mirror_high) = statistics.paired_drop(*outcomes(both, won, lost, neither))
    assert -100 <= low <= drop <= high <= 100
    assert (low, high) == (pytest.approx(-mirror_high, abs=1e-6), pytest.approx(-mirror_low, abs=1e-6))
    assert (low > 0 or high < 0) == (statistics.mcnemar(lost, won) < 0.05)


def test_interval_covers_the_true_drop_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n, p_lost, p_won, runs = 2000, 0.006, 0.003, 1500
    lost, won = rng.multinomial(n, [p_lost, p_won, 1 - p_lost - p_won], runs)[:, :2].T
    held = 0
    for a, b in zip(lost.tolist(), won.tolist(), strict=True):
        low, high = statistics.drop_interval(a, b, n)
        held += low <= 100 * (p_lost - p_won) <= high
    assert 0.95 < held / runs < 0.985


@pytest.mark.parametrize(("n", "drop", "p_won"), [(60, 0.02, 0.0), (400, 0.01, 0.001), (1000, 0.005, 0.002)])
def test_either_bound_errs_in_at_most_one_case_of_forty(n, drop, p_won):
    """Few changed images, exactly: Tango's lower bound is wrong in 5.3 % of cases of the second line."""
    lost, won = np.arange(16 + 30 * (n > 500))[:, None], np.arange(20)[None, :]
    rest = n - lost - won
    p_lost = drop + p_won
    chance = multinomial.pmf(
        np.stack(np.broadcast_arrays(lost, won, rest), -1), n, [p_lost, p_won, 1 - p_lost - p_won]
    )
    bounds = [
        (chance[i, j], *statistics.drop_interval(i, j, n)) for i, j in np.argwhere(chance > 1e-7).tolist()
    ]
    assert sum(p for p, _, _ in bounds) > 0.9999
    assert sum(p for p, low, _ in bounds if low > 100 * drop) <= 0.025
    assert sum(p for p, _, high in bounds if high < 100 * drop) <= 0.025


@pytest.mark.parametrize(
    ("lost", "won", "images", "limit"),
    [(0, 0, 355, 1.0), (8, 2, 200, 1.0), (10, 10, 1000, 1.0), (1, 0, 40, 0.5)],
)
def test_so_many_images_decide_and_a_few_less_do_not(lost, won, images, limit):
    needed = statistics.images_to_decide(lost, won, images, limit)

    def decided(n):
        low, high = statistics.drop_interval(lost * n / images, won * n / images, n)
        return low > limit or high <= limit

    assert needed > images and decided(needed) and not decided(0.88 * needed)


def test_more_images_than_anyone_labels_are_not_stated(monkeypatch):
    assert statistics.images_to_decide(1, 0, 40, 0.5) > 200
    monkeypatch.setattr(statistics, "MOST_IMAGES", 200)
    assert statistics.images_to_decide(1, 0, 40, 0.5) is None


def test_no_number_of_images_decides_a_drop_at_the_limit():
    assert statistics.images_to_decide(10, 0, 1000, 1.0) is None
    assert statistics.images_to_decide(0, 0, 300, 0.0) is None


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    p = statistics.mcnemar(lost, won)
    assert p == pytest.approx(
        reference_mcnemar([[5, lost], [won, 5]], exact=True).pvalue if lost + won else 1.0
    )
    if lost + won:
        assert p == pytest.approx(binomtest(lost, lost + won).pvalue)


def test_mcnemar_of_many_images_neither_overflows_nor_vanishes():
    assert statistics.mcnemar(20_000, 20_000) == 1.0
    assert statistics.mcnemar(12_000, 12_600) == pytest.approx(binomtest(12_000, 24_600).pvalue, rel=1e-6)


@pytest.mark.parametrize(("a", "n_a", "b", "n_b"), [(56, 70, 48, 80), (9, 10, 3, 10), (830, 1000, 840, 1000)])
def test_unpaired_difference_agrees_with_statsmodels(a, n_a, b, n_b):
    difference, interval = statistics.unpaired_difference(a, n_a, b, n_b)
    expected = confint_proportions_2indep(a, n_a, b, n_b, method="newcomb", compare="diff")
    assert difference == pytest.approx(100 * (a / n_a - b / n_b))
    assert interval == pytest.approx([100 * bound for bound in expected])


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    # Bin of 0.95: |0.75 - 0.95| over 4 of 6 images; bin of 0.55: |0.5 - 0.55| over 2 of 6.
    assert statistics.expected_calibration_error(confidence, right, bins=10) == pytest.approx(
        (4 * 0.20 + 2 * 0.05) / 6
    )


def test_a_bin_holds_its_upper_edge():
    confidence, right = np.array([0.5, 0.9]), np.array([False, True])
    assert statistics.expected_calibration_error(confidence, right, bins=2) == pytest.approx((0.5 + 0.1) / 2)


def test_confident_and_always_right_is_perfectly_calibrated():
    assert statistics.expected_calibration_error(np.ones(7), np.ones(7, bool)) == 0


def test_quantiles_are_those_of_the_distributions():
    assert pytest.approx(t.ppf(0.975, 9)) == statistics.T95_9


def test_variation_by_hand():
    assert statistics.variation([1.0, 3.0]) == pytest.approx(0.5)  # mean 2, deviation 1
    assert statistics.variation([1.0] * 30 + [1000.0]) == 0.0  # one pause of the system is not the run's
    assert statistics.variation([0.0, 0.0]) == 0.0  # a clock that did not tick


def test_median_interval_widens_with_drift_and_needs_fifty_samples():
    rng = np.random.default_rng(1)
    steady = 5 + 0.1 * rng.normal(size=500)
    drifting = steady + np.linspace(0, 1, 500)
    narrow, wide = statistics.batch_interval(steady.tolist()), statistics.batch_interval(drifting.tolist())
    assert narrow[0] < 5 < narrow[1]
    assert wide[1] - wide[0] > 10 * (narrow[1] - narrow[0])
    assert statistics.batch_interval([1.0] * 49) is None
    slow_at_last = [1.0] * 90 + [100.0] * 10  # a symmetric interval would begin below zero
    assert statistics.batch_interval(slow_at_last) == (1.0, pytest.approx(1 + 2.2622 * 9.9, abs=0.01))
    assert statistics.batch_interval([2.0] * 50) == (2.0, 2.0)


def test_median_interval_by_hand():
    """Ten runs with medians 0..9: deviation 3.0277, so 2.2622 * 3.0277 / sqrt(10) about 4.5."""
    low, high = statistics.batch_interval(np.repeat(np.arange(10.0), 5).tolist())
    assert (low, high) == pytest.approx((4.5 - 2.16586, 4.5 + 2.16586), abs=1e-4)


@pytest.mark.parametrize(
    ("count", "percent", "expected"), [(10, 50, 5), (10, 90, 9), (20, 95, 19), (1, 99, 1), (7, 0, 1)]
)
def test_percentile_by_hand(count, percent, expected):
    """Seen: of 10 samples the 90th percentile was the largest, for (1 - 0.9) * 10 is 0.9999..."""
    assert statistics.percentile([float(n) for n in range(count, 0, -1)], percent) == expected


def test_percentiles_here_and_on_a_device_are_the_same():
    for count in range(1, 201):
        ordered = [float(n) for n in range(count)]
        for percent in (50, 90, 95, 99):
            assert statistics.percentile(ordered, percent) == timing.percentile(ordered, percent)


def test_sqnr_by_hand():
    tens = np.full((4, 3), 10.0)
    assert statistics.sqnr_db(tens, tens - 1) == pytest.approx(20.0)
    assert statistics.sqnr_db(tens, tens) == math.inf
    assert statistics.sqnr_db(np.zeros(3), np.ones(3)) == -math.inf
    assert statistics.sqnr_db(np.zeros(3), np.zeros(3)) == math.inf
