"""The image checks report planted problems by name, and nothing on healthy images."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.doctor import examine
from edgeship.calibration.duplicates import hash_image, similar_pairs
from edgeship.calibration.preprocess import normalize, pixels
from edgeship.calibration.preprocessing_check import Stem, stem_divergence
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.tensors import Preprocess

# The generated pictures are uniform grain: mean 0.5 in every channel.
PREPROCESS = Preprocess(resize=32, crop=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
COUNTS = {"a": 12, "b": 12}


def whats(dataset, preprocess=PREPROCESS, **options):
    findings = examine(dataset, range(len(dataset)), preprocess, **options)
    return [(finding.severity, finding.what) for finding in findings]


def match(findings, *expected):
    """Return True if there is one finding per (severity, key words...), in order."""
    return len(findings) == len(expected) and all(
        severity == other and all(word in what for word in words)
        for (severity, what), (other, *words) in zip(findings, expected, strict=True)
    )


def test_healthy_images_have_no_findings(class_folder):
    train = open_dataset(class_folder(COUNTS, "train"))
    test = open_dataset(class_folder(COUNTS, "test", first_seed=500))
    assert examine(train, range(24), PREPROCESS, evaluation=test, classes=2) == []


def test_exact_copies(class_folder, jpeg):
    folder = class_folder(COUNTS)
    (folder / "b" / "copy.jpg").write_bytes(jpeg(3))
    assert match(whats(open_dataset(folder)), ("warning", "1 image", "exact", "a/003.jpg = b/copy.jpg"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda image: (image, {"quality": 40}), id="compressed again"),
        pytest.param(lambda image: (image.resize((60, 45)), {"quality": 90}), id="enlarged"),
        pytest.param(lambda image: (image.point(lambda x: x * 0.8 + 20), {"quality": 90}), id="dimmed"),
        pytest.param(lambda image: (image.convert("L"), {"quality": 90}), id="without colour"),
    ],
)
def test_near_copies(class_folder, picture, encode, change):
    folder = class_folder(COUNTS)
    image, options = change(picture(3))
    (folder / "b" / "copy.jpg").write_bytes(encode(image, **options))
    assert match(whats(open_dataset(folder)), ("warning", "1 pair", "a/003.jpg ~ b/copy.jpg"))


def test_pairs_agree_with_comparing_one_by_one(picture):
    rng = np.random.default_rng(0)
    images = [picture(seed, (48, 48)) for seed in range(40)]
    for index in rng.integers(0, 40, 15):  # noisy copies, from faint to strong
        noise = rng.normal(0, rng.uniform(2, 60), (48, 48, 3))
        images.append(Image.fromarray((np.asarray(images[index]) + noise).clip(0, 255).astype(np.uint8)))
    hashes = [hash_image(image) for image in images]
    slow = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i].bits != hashes[j].bits).sum() <= 8
        and hashes[i].thumbnail @ hashes[j].thumbnail >= 0.985
    ]
    assert similar_pairs(hashes) == slow
    assert 2 <= len(slow) <= 40
    assert similar_pairs(hashes[:30], hashes[30:]) == [(i, j - 30) for i, j in slow if i < 30 <= j]
    assert similar_pairs([]) == similar_pairs(hashes, []) == []


def test_what_shows_nothing_is_alike_to_nothing():
    assert similar_pairs([hash_image(Image.new("RGB", (40, 40), (grey,) * 3)) for grey in (9, 9, 200)]) == []
    assert similar_pairs([hash_image(Image.new("RGB", (8, 8), "red"))] * 2) == []


def test_overlap_with_evaluation(class_folder, jpeg, picture, encode):
    train = open_dataset(class_folder(COUNTS, "train"))
    folder = class_folder(COUNTS, "test", first_seed=500)
    (folder / "a" / "same.jpg").write_bytes(jpeg(2))
    (folder / "a" / "alike.jpg").write_bytes(encode(picture(5), quality=50))
    test = open_dataset(folder)
    assert match(
        whats(train, evaluation=test),
        ("error", "1 image", "evaluation", "a/002.jpg = a/same.jpg"),
        ("warning", "1 pair", "evaluation", "a/005.jpg ~ a/alike.jpg"),
    )
    names = [item.name for item in test.items]
    only = [names.index("a/000.jpg"), names.index("b/001.jpg")]
    assert examine(train, range(24), PREPROCESS, evaluation=test, evaluation_indices=only) == []


def test_missing_and_uneven_classes(class_folder):
    dataset = open_dataset(class_folder({"a": 9, "b": 2, "c": 1}))
    findings = examine(dataset, range(11), PREPROCESS, classes=10)
    assert match(
        [(finding.severity, finding.what) for finding in findings],
        ("warning", "3 classes", "model 10"),
        ("warning", "1 of 3 classes", "no image: c"),
        ("warning", "9 images of a, 2 of b"),
    )


def test_no_labels_is_reported(tmp_path, jpeg):
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    (severity, what), *_ = whats(open_dataset(tmp_path), Preprocess(32, 32, (0.5,) * 3, (0.2,) * 3))
    assert severity == "info" and "no labels" in what


def test_unreadable_and_blank_images_are_named(class_folder, encode):
    folder = class_folder(COUNTS)
    (folder / "a" / "blank.png").write_bytes(encode(Image.new("RGB", (40, 40), "navy"), "PNG"))
    (folder / "b" / "broken.jpg").write_bytes(b"\xff\xd8")
    assert match(
        whats(open_dataset(folder)),
        ("error", "1 image", "cannot be decoded: b/broken.jpg"),
        ("warning", "1 image", "one colour", "a/blank.png"),
    )


def test_nothing_to_examine(class_folder):
    with pytest.raises(DataError, match="no images of data to examine"):
        examine(open_dataset(class_folder(COUNTS)), [], PREPROCESS)


@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, "error", "units of 0..255"),
        ({"mean": (0.0,) * 3, "std": (0.2,) * 3}, "warning", "have mean (2."),
        ({"mean": (0.5,) * 3, "std": (1.0,) * 3}, "warning", "std (0.2"),
    ],
)
def test_colours_that_do_not_fit_the_stated_mean_and_std(class_folder, change, severity, words):
    ((actual, what),) = whats(open_dataset(class_folder(COUNTS)), replace(PREPROCESS, **change))
    assert actual == severity and words in what


def tinted(folder, picture, encode, scale):
    """Write images with scaled red, green and blue channels."""
    for index in range(16):
        pixel = np.asarray(picture(index)) * np.array(scale)
        for label in "ab":
            (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[index % 2] / f"{index}.png").write_bytes(
            encode(Image.fromarray(pixel.astype(np.uint8)), "PNG")
        )
    return open_dataset(folder)


def test_red_and_blue_exchanged(tmp_path, picture, encode):
    stated = replace(PREPROCESS, mean=(0.5, 0.4, 0.3))
    assert whats(tinted(tmp_path / "rgb", picture, encode, (1.0, 0.8, 0.6)), stated) == []
    ((severity, what),) = whats(tinted(tmp_path / "bgr", picture, encode, (0.6, 0.8, 1.0)), stated)
    assert severity == "warning" and "red and blue exchanged" in what


def trained_stem(dataset, preprocess):
    """Return a first layer with BatchNorm statistics of these images under this preprocessing."""
    weight = np.random.default_rng(5).normal(size=(16, 3, 3, 3)).astype(np.float32)
    images = normalize(
        np.stack([pixels(dataset.image(i), preprocess) for i in range(len(dataset))]), preprocess
    )
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (2, 3))
    out = np.einsum("nchwij,ocij->nhwo", windows, weight)
    return Stem(weight, out.mean((0, 1, 2)), out.var((0, 1, 2)), 1)


def test_divergence_by_hand():
    stem = Stem(
        np.ones((1, 1, 1, 1), np.float32), np.array([1.0], np.float32), np.array([4.0], np.float32), 1
    )
    inputs = np.array([0.0, 2.0] * 8, np.float32).reshape(1, 1, 4, 4)  # mean 1, variance 1
    assert stem_divergence(stem, inputs) == pytest.approx(0.5 * (0.25 - np.log(0.25) - 1))
    moved = replace(stem, mean=np.array([3.0], np.float32), variance=np.array([1.0], np.float32))
    assert stem_divergence(moved, inputs) == pytest.approx(0.5 * 2.0**2)


def test_statistics_of_the_first_layer_show_the_preprocessing(tmp_path, picture, encode):
    dataset = tinted(tmp_path / "x", picture, encode, (1.0, 0.8, 0.6))
    imagenet = Preprocess(resize=32, crop=32)
    stem = trained_stem(dataset, imagenet)
    assert whats(dataset, imagenet, stem=stem) == []
    ((severity, what),) = whats(dataset, replace(imagenet, mean=(0.0,) * 3, std=(1.0,) * 3), stem=stem)
    assert severity == "error" and "trained with ImageNet's mean and std:" in what
    exchanged = Stem(stem.weight[:, ::-1], stem.mean, stem.variance, stem.stride)
    ((severity, what),) = whats(dataset, imagenet, stem=exchanged)
    assert severity == "warning" and "BGR order" in what


def test_files_with_red_and_blue_exchanged_since_training(tmp_path, picture, encode):
    imagenet = Preprocess(resize=32, crop=32)
    stem = trained_stem(tinted(tmp_path / "x", picture, encode, (1.0, 0.8, 0.6)), imagenet)
    for path in (tmp_path / "x").rglob("*.png"):
        path.write_bytes(encode(Image.fromarray(np.asarray(Image.open(path))[..., ::-1].copy()), "PNG"))
    ((severity, what),) = whats(open_dataset(tmp_path / "x"), imagenet, stem=stem)
    assert severity == "warning" and "red and blue exchanged" in what


def test_foreign_images(tmp_path, picture, encode, class_folder):
    stem = trained_stem(open_dataset(class_folder(COUNTS)), PREPROCESS)
    dark = tinted(tmp_path / "dark", picture, encode, (0.05, 0.05, 0.05))
    ((severity, what),) = whats(dark, PREPROCESS, stem=stem)
    assert severity == "warning" and "unlike the training images" in what
