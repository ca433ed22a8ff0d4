"""Threshold of guarded INT8: its bound holds on new images, and no smaller number of images supports it."""

import numpy as np
import pytest

from edgeship.quantization.guard import (
    allowed_flips,
    check_enough,
    fewest_images,
    least_bound,
    set_threshold,
)
from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.pipeline import Recipe

NONE = np.zeros(10_000, bool)


def drawn(count, seed, spread=0.05):
    """Return margins and flips of `count` images: logits with noise, margins even in 0..2."""
    random = np.random.default_rng(seed)
    exact = random.uniform(-2, 2, count).astype(np.float32)  # of class 0 over class 1
    int8 = exact + random.normal(0, spread, count).astype(np.float32)
    return np.abs(int8), (exact > 0) != (int8 > 0)


@pytest.mark.parametrize(("limit", "images"), [(1e-4, 9_999), (1e-3, 999), (0.1, 9), (3e-4, 3_333)])
def test_the_fewest_images_of_a_bound(limit, images):
    assert fewest_images(limit) == images
    assert allowed_flips(limit, images) >= 0 > allowed_flips(limit, images - 1)


def test_more_images_may_leave_flips():
    assert [allowed_flips(1e-4, n) for n in (9_999, 19_998, 19_999, 29_999, 49_700)] == [0, 0, 1, 2, 3]


def test_too_few_images_are_refused_with_the_number_and_the_bound_they_support():
    with pytest.raises(RecipeError, match=r"needs 9999 images, photos has 1200 .* 1 in 1201") as raised:
        check_enough(1e-4, 1_200, "photos")
    stated = float(raised.value.hint.rpartition("=")[2])
    assert stated == pytest.approx(8.4e-4) and stated >= 1 / 1201
    check_enough(stated, 1_200, "photos")  # the hint works
    with pytest.raises(RecipeError, match="has 0"):
        check_enough(0.1, 0, "photos")


@pytest.mark.parametrize("images", [9, 57, 1_200, 9_998, 123_456])
def test_the_least_bound_is_one_that_the_images_support(images):
    assert allowed_flips(least_bound(images), images) >= 0
    assert least_bound(images) == pytest.approx(1 / (images + 1), rel=0.1)


def test_the_threshold_is_the_margin_of_a_flip_and_leaves_as_many_as_are_allowed():
    margins = np.array([0.1, 0.2, 0.3, 0.4] + [1.0] * 16, np.float32)
    flips = np.array([True, False, True, True] + [False] * 16)
    found = set_threshold(margins, flips, np.zeros(20, bool), 1 / 21)
    assert (found.threshold, found.left, found.flips) == (pytest.approx(0.4), 0, 3)
    assert found.rerun_share == 4 / 20 and found.bound == pytest.approx(1 / 21)
    found = set_threshold(margins, flips, np.zeros(20, bool), 2 / 21)
    assert (found.threshold, found.left, found.rerun_share) == (pytest.approx(0.3), 1, 3 / 20)
    assert found.bound == pytest.approx(2 / 21)


def test_without_flips_nothing_runs_again():
    found = set_threshold(np.ones(99, np.float32), NONE[:99], NONE[:99], 0.01)
    assert found.rerun_share == 0 and found.left == 0 and found.threshold < 0
    assert found.bound == 0.01  # what the images support, not 0


def test_flips_of_the_reference_count_at_every_threshold():
    margins = np.array([0.1, 0.2, 0.3] + [1.0] * 96, np.float32)
    flips = np.array([True, True, True] + [False] * 96)
    second = np.zeros(99, bool)
    second[[1, 50]] = True
    found = set_threshold(margins, flips, second, 0.03)  # allows 2: both of the reference
    assert found.left == 2 and found.threshold == pytest.approx(0.3)
    found = set_threshold(margins, flips, second, 0.04)  # allows 3: the largest flip stays
    assert found.left == 3 and found.threshold == pytest.approx(0.1)
    with pytest.raises(RecipeError, match="reference itself flips 2 of 99") as raised:
        set_threshold(margins, flips, second, 0.02)
    assert "fp32" in raised.value.hint


@pytest.mark.parametrize(("images", "limit"), [(199, 0.005), (999, 0.005)])
def test_the_bound_holds_on_new_images_and_is_not_idle(images, limit):
    """The mean share over 400 draws is within the bound, and above a third of it: the threshold is tight."""
    left, over = [], 0
    new_margins, new_flips = drawn(400_000, 10**6)
    for seed in range(400):
        found = set_threshold(*drawn(images, seed), np.zeros(images, bool), limit)
        share = float((new_flips & (new_margins > found.threshold)).mean())
        left.append(share)
        over += share > found.bound95
        assert found.bound <= limit
    error = np.std(left) / 20
    assert limit / 3 < np.mean(left) < limit + 3 * error
    assert over <= 0.05 * 400 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_the_bound_of_one_draw_by_hand():
    found = set_threshold(np.ones(9_999, np.float32), NONE[:9_999], NONE[:9_999], 1e-4)
    assert found.bound95 == pytest.approx(1 - 0.05 ** (1 / 9_999), rel=1e-6)  # the rule of three


@pytest.mark.parametrize("value", ["0", "0.2", "-1", "nan", "often"])
def test_a_limit_that_is_no_share_is_refused(value):
    with pytest.raises(RecipeError):
        Recipe.build({}, [f"guard.max_flips={value}"])
