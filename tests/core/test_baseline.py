"""Baselines and class orders of logits that are known by construction."""

import numpy as np
import pytest

from edgeship.toolkit.core import baseline


def outcomes(classes, images, accuracy, seed=0, sharpness=4.0):
    """Labels, and logits of a network that is right with this probability and as sure as `sharpness`."""
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % classes
    wrong = (labels + rng.integers(1, classes, images)) % classes
    first = np.where(rng.random(images) < accuracy, labels, wrong)
    logits = rng.normal(size=(images, classes)).astype(np.float32)
    logits[np.arange(images), first] = logits.max(1) + sharpness * rng.random(images)
    return logits, labels


class TestBaseline:
    def test_a_healthy_network(self):
        found = baseline.baseline(*outcomes(10, 1000, 0.8))
        assert found.accuracy == pytest.approx(0.8, abs=0.03) and found.chance == pytest.approx(0.1, abs=0.01)
        assert not found.at_chance and not found.overconfident

    def test_at_chance(self):
        assert baseline.baseline(*outcomes(10, 1000, 0.1)).at_chance
        assert baseline.baseline(*outcomes(2, 200, 0.5)).at_chance

    def test_chance_counts_the_predictions(self):
        """One class for all is right on 90 % of uneven labels and has learned nothing."""
        labels = np.array([0] * 90 + [1] * 10)
        logits = np.tile(np.float32([1, 0]), (100, 1))
        found = baseline.baseline(logits, labels)
        assert found.accuracy == found.chance == pytest.approx(0.9) and found.at_chance

    def test_sure_and_mostly_wrong(self):
        assert baseline.baseline(*outcomes(10, 500, 0.3, sharpness=30)).overconfident
        assert not baseline.baseline(*outcomes(10, 500, 0.6, sharpness=30)).overconfident  # only overfitted

    def test_few_images_raise_no_alarm_by_confidence(self):
        assert not baseline.baseline(*outcomes(10, 10, 0.5, sharpness=30)).overconfident


class TestClassOrder:
    @pytest.mark.parametrize("classes", [2, 10, 200])
    @pytest.mark.parametrize("accuracy", [0.55, 0.8, 0.99])
    def test_the_right_order_is_left_alone(self, classes, accuracy):
        for seed in range(5):
            assert baseline.find_class_order(*outcomes(classes, 5 * max(classes, 40), accuracy, seed)) is None

    @pytest.mark.parametrize("accuracy", [0.02, 0.1, 0.3])
    def test_a_network_at_chance_or_weak_has_no_other_order(self, accuracy):
        for seed in range(5):
            assert baseline.find_class_order(*outcomes(10, 400, accuracy, seed)) is None

    @pytest.mark.parametrize("classes", [3, 10, 200])
    def test_a_random_order_is_found(self, classes):
        logits, labels = outcomes(classes, 6 * max(classes, 50), 0.8)
        order = np.random.default_rng(classes).permutation(classes)
        while (order == np.arange(classes)).all():
            order = np.roll(order, 1)
        found = baseline.find_class_order(logits[:, np.argsort(order)], labels)
        assert found is not None and found.accuracy > 0.7
        assert (np.array(found.outputs) == order).mean() > 0.98

    def test_two_exchanged_classes(self):
        logits, labels = outcomes(10, 500, 0.85)
        order = [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]
        found = baseline.find_class_order(logits[:, order], labels)
        assert found is not None and found.moved == (3, 5) and found.cause == ""
        assert found.accuracy - found.accuracy_stated == pytest.approx(0.17, abs=0.06)

    def test_usual_orders_are_named(self):
        logits, labels = outcomes(12, 600, 0.8)
        reverse = baseline.find_class_order(logits[:, ::-1], labels)
        assert reverse is not None and "reversed" in reverse.cause
        one_based = baseline.find_class_order(logits[:, np.roll(np.arange(12), -1)], labels)
        assert one_based is not None and one_based.outputs[:2] == (11, 0)
        assert "start at 1" in one_based.cause

    def test_a_background_class_comes_first(self):
        logits, labels = outcomes(12, 600, 0.8)
        wider = np.concatenate([np.full((600, 1), -9, np.float32), logits], 1)
        found = baseline.find_class_order(wider, labels)
        assert found is not None and found.outputs == tuple(range(1, 13)) and "background" in found.cause

    def test_folders_sorted_as_text_against_numbers(self):
        """Folders 0, 1, 10, 11, 2, ...; the outputs are in the order of the numbers."""
        names = sorted(str(number) for number in range(12))
        by_number, numbers = outcomes(12, 600, 0.8)
        labels = np.array([names.index(str(number)) for number in numbers])
        found = baseline.find_class_order(by_number, labels, names)
        assert found is not None and found.outputs == tuple(int(name) for name in names)
        assert "number" in found.cause
        back = baseline.find_class_order(
            by_number[:, [int(name) for name in names]], numbers, list(map(str, range(12)))
        )
        assert back is not None and "text" in back.cause

    def test_chance_does_not_pass_for_an_order(self):
        """One image a class: the assignment fits the first half perfectly, and the other half validates."""
        rng = np.random.default_rng(0)
        labels = np.repeat(np.arange(100), 2)
        assert baseline.find_class_order(rng.normal(size=(200, 100)).astype(np.float32), labels) is None

    def test_more_labels_than_outputs(self):
        logits, labels = outcomes(10, 100, 0.8)
        assert baseline.find_class_order(logits[:, :9], labels) is None


def test_losses_do_not_depend_on_the_scale_of_the_logits():
    logits, labels = outcomes(10, 300, 0.8)
    losses = [baseline.label_losses(scale * logits, labels) for scale in (1.0, 0.05, 20.0)]
    assert np.allclose(losses[0], losses[1], atol=1e-3) and np.allclose(losses[0], losses[2], atol=1e-3)
    assert losses[0].mean() < baseline.label_losses(np.zeros_like(logits), labels).mean()
    assert np.isfinite(baseline.label_losses(np.full_like(logits, np.nan), labels)).all()


def test_mutual_information_of_sure_and_varied_predictions():
    varied = 50 * np.eye(8, dtype=np.float32)
    assert baseline.mutual_information(varied) == pytest.approx(np.log(8))
    assert baseline.mutual_information(np.tile(varied[:1], (8, 1))) == pytest.approx(0)  # sure of one class
    assert baseline.mutual_information(np.zeros((8, 8), np.float32)) == pytest.approx(0)  # not sure
