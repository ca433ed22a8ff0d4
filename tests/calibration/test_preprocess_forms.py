"""Search for the preprocessing form, with networks that work in one form only."""

import numpy as np
import pytest

from edgeship.calibration.preprocess_forms import (
    FEWEST_IMAGES,
    Form,
    geometries,
    geometry,
    most_informative_form,
    search,
    size_forms,
    value_forms,
)
from edgeship.toolkit.core.tensors import Preprocess

STATED = Preprocess(resize=8, crop=8)
COLOURS = np.random.default_rng(0).integers(0, 256, (6, 3))  # of six classes


def images(count, seed=1):
    """Return labels, and pixels of images in the noisy colour of their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(COLOURS)
    noise = rng.normal(scale=45, size=(count, 8, 8, 3)) + rng.normal(scale=30, size=(count, 1, 1, 3))
    return labels, np.clip(COLOURS[labels][:, None, None] + noise, 0, 255).astype(np.uint8)


def network(form):
    """Return a network trained with a form: logits by the distance to each colour."""
    centres = form.inputs(np.tile(COLOURS[:, None, None].astype(np.uint8), (1, 8, 8, 1))).mean((2, 3))

    def infer(inputs):
        return -((inputs.mean((2, 3))[:, None] - centres[None]) ** 2).sum(2).astype(np.float32)

    return infer


@pytest.mark.parametrize("place", range(len(value_forms(STATED))))
def test_the_form_of_training_is_found(place):
    trained = value_forms(STATED)[place]
    labels, pixels = images(120)
    result = search(STATED, {geometry(STATED): pixels}, labels, network(trained))
    own = network(trained)(trained.inputs(pixels)).argmax(1)
    stated = network(trained)(Form("", STATED).inputs(pixels)).argmax(1)
    if (own == labels).mean() - (stated == labels).mean() < 0.1:  # both are as good
        assert not result.better or result.accuracy > result.accuracy_stated
    else:
        assert result.better and result.best == trained
        assert (
            result.accuracy == (own == labels).mean() and result.accuracy_stated == (stated == labels).mean()
        )


def test_the_right_form_raises_no_alarm():
    for seed in range(10):
        labels, pixels = images(90, seed)
        result = search(STATED, {geometry(STATED): pixels}, labels, network(Form("", STATED)))
        assert not result.better


def test_a_network_that_guesses_prefers_no_form():
    rng = np.random.default_rng(0)
    for seed in range(10):
        labels, pixels = images(200, seed)
        guess = lambda inputs: rng.normal(size=(len(inputs), 6)).astype(np.float32)  # noqa: E731
        assert not search(STATED, {geometry(STATED): pixels}, labels, guess).better


def test_a_size_is_found():
    """Check that a network trained on whole images is detected when it gets centre crops."""
    stated = Preprocess(resize=16, crop=8)
    labels, whole = images(120)
    cut = np.roll(whole, 1, axis=0)  # the centres have the colour of another class
    pixels = {each: whole if each.resize == 8 else cut for each in geometries(stated)}
    result = search(stated, pixels, labels, network(Form("", stated)))
    assert result.better and result.best.preprocess.resize == 8


def test_few_images_name_nothing():
    labels, pixels = images(FEWEST_IMAGES - 1)
    assert search(STATED, {geometry(STATED): pixels}, labels, network(Form("", STATED))) is None


def test_forms_differ_and_start_with_the_stated_one():
    forms = value_forms(STATED)
    assert forms[0].preprocess == STATED
    keys = {(form.preprocess.mean, form.preprocess.std, form.exchange) for form in forms}
    assert len(keys) == len(forms) >= 12
    assert {form.exchange for form in forms} == {"none", "files", "network"}
    grey = value_forms(Preprocess(mean=(0.5,), std=(0.5,)))
    assert all(len(form.preprocess.mean) == 1 and form.exchange == "none" for form in grey)
    assert all(form.preprocess.crop == 8 for form in size_forms(forms[0]))


def test_without_labels_sure_and_varied_predictions_speak():
    trained = next(form for form in value_forms(STATED) if "0..255" in form.name and form.exchange == "none")
    _, pixels = images(120)
    form, best, stated = most_informative_form(STATED, pixels, network(trained))
    assert best >= stated + 0.2 and "0..255" in form.name
