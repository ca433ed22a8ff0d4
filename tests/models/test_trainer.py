"""Training converges, is deterministic, and resumes after an interruption."""

import numpy as np
import pytest
import torch

from edgeship.toolkit.core.errors import DataError, RecipeError
from edgeship.toolkit.core.progress import listening
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models.resnet import architecture, build
from edgeship.toolkit.models.train_options import TrainOptions
from edgeship.toolkit.models.trainer import augment, one_cycle, train
from edgeship.toolkit.models.weights import load

OPTIONS = TrainOptions(epochs=3, batch=16, learning_rate=0.05, flip=False, crop_px=1)


@pytest.fixture(scope="module")
def squares():
    """64 noisy images of 12 px whose class is the corner that is bright."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 64)
    images = rng.normal(0, 0.3, (64, 3, 12, 12)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[:, 6 * (label // 2) :, 6 * (label % 2) :][:, :6, :6] += 2
    return images, labels


def feeder(squares, stop_in_epoch=None):
    images, labels = squares

    def batches(epoch):
        order = np.random.default_rng(epoch).permutation(len(images))
        for i in range(0, len(images), 16):
            if epoch == stop_in_epoch and i:
                raise KeyboardInterrupt
            yield images[order[i : i + 16]], labels[order[i : i + 16]]

    return batches


def small():
    return build(architecture("resnet20", width=4, classes=4), seed=0)


def run(squares, out, options=OPTIONS, **kwargs):
    model = small()
    history = train(model, feeder(squares, **kwargs), options, out, images=64, preprocess=Preprocess(crop=12))
    return model, history


def test_it_learns_and_leaves_a_checkpoint_that_loads(squares, tmp_path):
    model, history = run(squares, tmp_path, TrainOptions(8, 16, 0.1, 5e-4, False, 1))
    assert history.loss[-1] < 0.3 < history.loss[0]
    assert history.accuracy[-1] > 0.9
    loaded = load(tmp_path)
    assert loaded.preprocess.crop == 12
    assert loaded.model.architecture == model.architecture
    assert torch.equal(loaded.model.fc.weight, model.fc.weight)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["history.json", "model.safetensors", "widths.json"]


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(squares, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(squares, tmp_path / name, TrainOptions(2, 16, 0.05, 5e-4, True, 2, seed))
    content = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert content[0] == content[1] != content[2]


def test_an_interrupted_run_ends_with_the_same_bytes(squares, tmp_path):
    _, straight = run(squares, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(squares, tmp_path / "b", stop_in_epoch=2)
    assert (tmp_path / "b" / "checkpoint.pt").exists()
    done = []
    with listening(lambda label, at, total: done.append((label, at, total))):
        _, resumed = run(squares, tmp_path / "b")
    assert resumed == straight
    assert done == [("training", i, 12) for i in (9, 10, 11, 12)]  # one epoch of four batches
    for name in ("model.safetensors", "history.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_checkpoint_of_other_options_is_not_taken_up(squares, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(squares, tmp_path, stop_in_epoch=2)
    _, history = run(squares, tmp_path, TrainOptions(1, 16))
    assert len(history.loss) == 1


def test_decay_spares_batchnorm_and_biases(squares, tmp_path):
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def still(epoch):
        yield np.zeros((16, 3, 12, 12), np.float32), np.arange(16) % 4  # no gradient in any convolution

    train(model, still, TrainOptions(1, 16, 0.1, 0.5, False, 0), tmp_path, images=16)
    after = {name: p.detach() for name, p in model.named_parameters()}
    shrunk = float(after["layer1.0.conv1.weight"].norm() / before["layer1.0.conv1.weight"].norm())
    assert shrunk == pytest.approx(1 - 0.1 * one_cycle(0.0) * 0.5 * 1.9, abs=1e-4)  # Nesterov: 1 + momentum
    assert torch.equal(after["layer1.0.bn1.weight"], before["layer1.0.bn1.weight"])


def test_one_cycle_rises_and_ends_at_zero():
    rates = [one_cycle(x) for x in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) == 25
    assert rates[0] == pytest.approx(0.04)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_augment_only_shifts_and_mirrors():
    images = np.arange(2 * 1 * 4 * 4, dtype=np.float32).reshape(2, 1, 4, 4)
    same = augment(images, np.random.default_rng(0), flip=False, crop_px=0)
    np.testing.assert_array_equal(same, images)
    many = np.repeat(images[:1], 200, 0)
    out = augment(many, np.random.default_rng(0), flip=True, crop_px=1)
    padded = np.pad(images[0, 0], 1)
    views = [padded[t : t + 4, x : x + 4] for t in range(3) for x in range(3)]
    allowed = {v.tobytes() for view in views for v in (view, np.ascontiguousarray(view[:, ::-1]))}
    assert {image[0].tobytes() for image in out} == allowed  # each of the 18 appears, and no other


def test_a_diverging_run_says_so(squares, tmp_path):
    with pytest.raises(DataError, match="the loss is nan") as caught:
        train(
            small(),
            lambda epoch: [(np.full((4, 3, 12, 12), np.nan, np.float32), np.zeros(4, int))],
            OPTIONS,
            tmp_path,
            images=4,
        )
    assert "learning rate" in caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("labels", [np.array([0, 7]), np.array([-1, 0])])
def test_labels_the_model_has_no_output_for(labels, tmp_path):
    with pytest.raises(DataError, match="outputs"):
        train(
            small(),
            lambda epoch: [(np.zeros((2, 3, 12, 12), np.float32), labels)],
            OPTIONS,
            tmp_path,
            images=2,
        )


def test_no_images_and_useless_options(tmp_path):
    with pytest.raises(DataError, match="no images"):
        train(small(), lambda epoch: [], OPTIONS, tmp_path, images=4)
    with pytest.raises(RecipeError, match="epochs = 0 must be at least 1"):
        TrainOptions(epochs=0)
