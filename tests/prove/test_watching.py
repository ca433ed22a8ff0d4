"""Figures of the monitor on CIFAR-10: frames to a false alarm, and frames to changes that cost accuracy."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from prove.test_prove import cifar

from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.targets.runner import monitor
from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit.pipeline.model_recipe import recipe_of
from edgeship.toolkit.prove import watching
from edgeship.toolkit.prove.pipeline import normalized, preprocess_of

RNG = np.random.default_rng(0)


def levels(change):
    return lambda pixels, s: np.rint(change(pixels.astype(np.float32), s)).clip(0, 255).astype(np.uint8)


def each(change):
    return lambda pixels, s: np.stack([np.asarray(change(Image.fromarray(one), s)) for one in pixels])


def motion(pixels, s):
    shifts = range(-s, s + 1)
    return (sum(np.roll(pixels.astype(float), by, 2) for by in shifts) / len(shifts)).astype(np.uint8)


def jpeg(image, quality):
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def occluded(pixels, s):
    changed = pixels.copy()
    changed[:, 5 : 5 + s, 40 - s // 2 : 40 + s] = 60
    return changed


def zoomed(image, side):
    first = (64 - side) // 2
    return image.crop((first, first, first + side, first + side)).resize((64, 64), Image.Resampling.BILINEAR)


def impulses(pixels, share):
    dots = RNG.random((*pixels.shape[:3], 1)) < share
    return np.where(dots, RNG.choice([0, 255], dots.shape), pixels).astype(np.uint8)


CHANGES = {  # change, severity that costs about 2 pp or more, and 5 pp or more
    "gaussian noise": (levels(lambda x, s: x + RNG.normal(0, s, x.shape)), 16, 20),
    "shot noise": (levels(lambda x, s: RNG.poisson(x / s) * s), 1.6, 3.6),
    "impulse noise": (impulses, 0.004, 0.008),
    "gaussian blur": (each(lambda image, s: image.filter(ImageFilter.GaussianBlur(s))), 1.0, 1.1),
    "box blur": (each(lambda image, s: image.filter(ImageFilter.BoxBlur(s))), 0.5, 1.25),
    "motion blur": (motion, 1, 2),
    "dark": (levels(lambda x, s: x * s), 0.73, 0.5),
    "bright": (levels(lambda x, s: x + s), 48, 72),
    "low contrast": (levels(lambda x, s: 128 + s * (x - 128)), 0.64, 0.5),
    "fog": (levels(lambda x, s: x * (1 - s) + s * 200), 0.3, 0.45),
    "jpeg": (each(jpeg), 18, 8),
    "pixelate": (
        each(lambda image, s: image.resize((s, s), Image.Resampling.BOX).resize((64, 64), 0)),
        34,
        21,
    ),
    "desaturate": (each(lambda image, s: ImageEnhance.Color(image).enhance(s)), 0.28, 0.04),
    "saturate": (each(lambda image, s: ImageEnhance.Color(image).enhance(s)), 1.5, 2.0),
    "red tint": (levels(lambda x, s: x * np.array([1 + s, 1, 1 - s])), 0.18, 0.26),
    "gamma": (levels(lambda x, s: 255 * (x / 255) ** s), 1.4, 2.0),
    "posterize": (lambda pixels, s: (pixels // s * s).astype(np.uint8), 34, 54),
    "occlusion": (occluded, 12, 16),
    "rotation": (each(lambda image, s: image.rotate(s, Image.Resampling.BILINEAR)), 6, 8),
    "zoom": (each(zoomed), 57, 51),
    "bgr": (lambda pixels, _s: np.ascontiguousarray(pixels[..., ::-1]), 0, 0),
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_false_alarm_in_a_million_frames_and_every_change_is_seen_in_time(tmp_path):
    out = cifar(tmp_path)
    dataset = open_dataset(recipe_of(str(out)).evaluate.source, use="evaluate")
    places = np.random.default_rng(1).permutation(len(dataset))[:4000].tolist()
    with Classifier(out / "engines/openvino/openvino-int8", threads=1) as classifier:
        how = preprocess_of(classifier)
        pixels = np.concatenate([part.pixels for part in batches(dataset, places, how, batch=100)])

        def measured(images):
            inputs = normalized(images, how)
            parts = [classifier.classify_inputs(part) for part in np.split(inputs, len(inputs) // 100)]
            logits = np.stack([result.logits for part in parts for result in part])
            return monitor.statistics(np.stack([monitor.sample(one) for one in images]), logits), logits

        rows, logits = measured(pixels)
        reference = watching.reference([pixels[:2000]], logits[:2000], how)
        labels = dataset.labels[places]
        detector = monitor.Detector(reference)
        clean = detector.log_bets(rows[2000:], logits[2000:].argmax(1))
        assert np.exp(clean).mean(0).max() < 1.02
        rng = np.random.default_rng(2)
        for _ in range(1_000_000 // 250):
            assert detector.add(clean[rng.integers(0, len(clean), 250)]) < monitor.FRAMES

        part, right = pixels[2000:3000], (logits[2000:3000].argmax(1) == labels[2000:3000]).mean()
        for name, (change, *severities) in CHANGES.items():
            for severity, cost, most in zip(severities, (1.0, 3.5), (3000, 300), strict=True):
                changed, outputs = measured(change(part, severity))
                drop = 100 * (right - (outputs.argmax(1) == labels[2000:3000]).mean())
                assert drop > cost, (name, severity)  # another part of the images, another drop
                bets = detector.log_bets(changed, outputs.argmax(1))
                frames = []
                for _ in range(10):
                    stream = monitor.Detector(reference)
                    stream.add(clean[rng.integers(0, len(clean), 640)])
                    seen = 0
                    while seen < 4000:
                        seen += monitor.BLOCK
                        if stream.add(bets[rng.integers(0, len(bets), monitor.BLOCK)]) >= monitor.FRAMES:
                            break
                    frames.append(seen)
                assert np.mean(frames) <= most, (name, severity, drop)
