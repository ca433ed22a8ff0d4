"""Image-by-image comparison on a case small enough to count by hand."""

import numpy as np
import pytest

from edgeship.toolkit.core.results import ClassAccuracy, Confusion
from edgeship.toolkit.core.statistics import drop_interval
from edgeship.toolkit.report import paired_analysis
from edgeship.toolkit.report.paired_analysis import Predictions

LABELS = np.array([0, 0, 1, 1, 2, 2])
WAS = Predictions(np.array([0, 0, 1, 2, 2, 0]), np.array([0.9, 0.6, 0.8, 0.5, 0.99, 0.7]))
NOW = Predictions(np.array([0, 1, 1, 1, 0, 0]), np.array([0.8, 0.5, 0.8, 0.6, 0.55, 0.7]))


def test_counts_by_hand():
    paired = paired_analysis.compare("reference", WAS, NOW, LABELS, list("abcdef"))
    assert (paired.lost, paired.won, paired.changed, paired.images) == (2, 1, 3, 6)
    assert paired.mcnemar_p == 1.0
    assert paired.classes == (
        ClassAccuracy(0, 2, 1.0, 0.5, drop_interval(1, 0, 2)),
        ClassAccuracy(1, 2, 0.5, 1.0, drop_interval(0, 1, 2)),
        ClassAccuracy(2, 2, 0.5, 0.0, drop_interval(1, 0, 2)),
    )
    assert set(paired.confusions) == {Confusion(0, 0, 1, 1), Confusion(1, 2, 1, 1), Confusion(2, 2, 0, 1)}
    assert [(f.image, f.name) for f in paired.flips] == [(4, "e"), (1, "b"), (3, "d")]  # surest first
    assert (paired.flips[0].was_confidence, paired.flips[0].now_confidence) == (0.99, 0.55)


def test_identical_means_to_the_last_bit():
    nearly = Predictions(WAS.first, np.nextafter(WAS.confidence, 1.0))
    assert paired_analysis.compare("reference", WAS, WAS, LABELS, None).identical
    assert not paired_analysis.compare("reference", WAS, nearly, LABELS, None).identical
    assert not paired_analysis.compare("reference", WAS, NOW, LABELS, None).identical


def test_images_without_a_label_change_but_do_not_count_as_right_or_wrong():
    labels = LABELS.copy()
    labels[4] = -1
    paired = paired_analysis.compare("reference", WAS, NOW, labels, None)
    assert (paired.lost, paired.won, paired.changed) == (1, 1, 3)
    assert paired.flips[0].label is None


def test_predictions_read_in_pieces_are_softmax(tmp_path, monkeypatch):
    monkeypatch.setattr(paired_analysis, "CHUNK", 7)
    logits = (50 * np.random.default_rng(0).normal(size=(20, 5))).astype(np.float32)
    logits[3] += 1000  # softmax must not overflow
    np.save(tmp_path / "a.npy", logits)
    predicted = paired_analysis.predictions(tmp_path / "a.npy")
    exact = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    assert (predicted.first == logits.argmax(1)).all()
    assert predicted.confidence == pytest.approx((exact / exact.sum(1, keepdims=True)).max(1))


def test_kept_predictions_read_back(run, tmp_path):
    paired_analysis.store_predictions(run["evaluate"], tmp_path)
    stored = paired_analysis.load_predictions(tmp_path)
    logits = np.load(run["evaluate"] / "logits" / "openvino-int8.npy")
    assert (stored.first["openvino-int8"] == logits.argmax(1)).all()
    assert (stored.labels == np.load(run["evaluate"] / "labels.npy")).all()
    (tmp_path / paired_analysis.PREDICTIONS).write_bytes(b"no archive")
    assert paired_analysis.load_predictions(tmp_path) is None
