"""The guard on a device: which images run again, counts, a damaged record."""

import json

import numpy as np
import pytest

from edgeship.targets.runner import guard, guard_record
from edgeship.targets.runner.failures import Failure

RECORD = {
    "schema": 1,
    "threshold": 0.5,
    "max_flips": 0.01,
    "bound": 0.01,
    "bound95": 0.03,
    "images": 1000,
    "rerun_share": 0.02,
    "reference": "fp32",
}


def guarded(threshold=0.5):
    """Return a guard whose images are the logits of INT8, and the calls of its reference: class 0."""
    calls = []

    def second(images):
        calls.append(images.copy())
        return np.tile(np.array([[9.0, 0.0, 0.0]], np.float32), (len(images), 1))

    return guard.Guarded(lambda images: images, second, threshold), calls


def test_margins_are_first_minus_second():
    found = guard.margins(np.array([[1.0, 5.0, 3.5], [2.0, 2.0, 2.0], [-1.0, -4.0, -1.25]], np.float32))
    np.testing.assert_array_equal(found, np.array([1.5, 0.0, 0.25], np.float32))
    assert guard.margins(np.zeros((2, 1), np.float32)).tolist() == [np.inf, np.inf]


def test_the_margin_without_numpy_is_the_same_to_the_bit():
    rows = np.random.default_rng(0).normal(size=(200, 7)).astype(np.float32)
    assert [guard_record.margin(row) for row in rows.tolist()] == guard.margins(rows).tolist()
    assert guard_record.margin([1.0]) == np.inf


def test_the_logits_that_it_reads_stay_as_they_are():
    logits = np.array([[3.0, 1.0, 2.0]], np.float32)
    guard.margins(logits)
    assert logits.tolist() == [[3.0, 1.0, 2.0]]


def test_only_close_images_run_again_the_threshold_included():
    infer, calls = guarded()
    images = np.array([[0.0, 1.0, 0.5], [0.0, 1.0, 0.4], [3.0, 0.0, 2.6], [0.0, 0.0, 7.0]], np.float32)
    found = infer(images)
    assert found.argmax(1).tolist() == [0, 1, 0, 2]  # margins 0.5, 0.6, 0.4, 7
    assert len(calls) == 1 and calls[0].tolist() == images[[0, 2]].tolist()
    assert found[1].tolist() == images[1].tolist()
    assert (infer.images, infer.rerun, infer.changed) == (4, 2, 1)
    infer.reset()
    assert (infer.images, infer.rerun, infer.changed) == (0, 0, 0)


@pytest.mark.parametrize(("margin", "again"), [(0.4, 1), (0.5, 1), (0.75, 0)])
def test_a_single_image(margin, again):
    infer, calls = guarded()
    found = infer(np.array([[0.0, margin, -1.0]], np.float32))
    assert len(calls) == infer.rerun == again and infer.images == 1
    assert found.argmax() == (0 if again else 1)


def test_a_threshold_below_zero_runs_nothing_again():
    infer, calls = guarded(-1.0)
    infer(np.zeros((3, 3), np.float32))
    assert not calls and infer.rerun == 0


def test_logits_that_are_not_finite_do_not_hide_behind_the_reference():
    infer, calls = guarded()
    assert not np.isfinite(infer(np.full((1, 3), np.nan, np.float32))).any() and not calls


@pytest.mark.parametrize(
    ("images", "rerun", "differs"),
    [(0, 0, None), (1000, 20, False), (1000, 26, False), (1000, 120, True), (10_000, 0, True), (5, 1, False)],
)
def test_the_share_that_runs_again_is_held_against_its_promise(images, rerun, differs):
    infer, _ = guarded()
    infer.images, infer.rerun, infer.changed = images, rerun, 1
    found = guard.status(RECORD, infer)
    assert found["differs"] is differs and found["promised_rerun_share"] == 0.02
    assert found["rerun_share"] == (rerun / images if images else None)
    assert (found["bound"], found["max_flips"], found["changed"]) == (0.01, 0.01, 1)


def test_a_record_is_read_and_a_folder_without_one_has_no_guard(tmp_path):
    assert guard_record.read(str(tmp_path)) is None
    (tmp_path / guard_record.FILE).write_text(json.dumps(RECORD))
    assert guard_record.read(str(tmp_path)) == RECORD


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"threshold": "0.5"},
        {"threshold": float("nan")},
        {"threshold": None},
        {"threshold": True},
        {"images": 0},
        {"rerun_share": 1.5},
        {"bound": 10**400},
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change):
    (tmp_path / guard_record.FILE).write_text(json.dumps({**RECORD, **change}))
    with pytest.raises(Failure) as raised:
        guard_record.read(str(tmp_path))
    assert raised.value.code == "guard-damaged" and str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 1}', "[" * 100_000])
def test_a_file_of_another_form_is_refused(tmp_path, text):
    (tmp_path / guard_record.FILE).write_text(text)
    with pytest.raises(Failure, match=r"guard\.json"):
        guard_record.read(str(tmp_path))
