"""Make the reference of the monitor on devices: statistics of clean images, and changes by causes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edgeship.targets.runner import imaging, monitor
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.prove.faults import CATALOGUE

MOST, FEWEST = 2000, 40  # clean images of a reference
SHOWN = 100  # images on which causes are computed
_STEPS = ("colour", "values", "layout")  # faults of `faults.CATALOGUE` that a device can have
_LEAST = 0.25  # smallest change that names a cause, in standard deviations


def _blurred(images: PixelArray) -> PixelArray:
    radius = max(1.0, min(images.shape[1:3]) / 64)
    return np.stack([np.asarray(_image(each).filter(ImageFilter.GaussianBlur(radius))).reshape(each.shape)
                     for each in images])  # fmt: skip


def _image(pixels: PixelArray) -> Image.Image:
    return Image.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])


def _levels(change: Callable[[Any], Any]) -> Callable[[PixelArray], PixelArray]:
    return lambda images: np.rint(change(images.astype(np.float32))).clip(0, 255).astype(np.uint8)


CHANGES: dict[str, tuple[str, Callable[[PixelArray], PixelArray]]] = {
    "blur": ("blurred images: focus, dirt on the lens, or another resize", _blurred),
    "dark": ("dark images: light, exposure or aperture", _levels(lambda x: 0.5 * x)),
    "bright": ("bright images: light or exposure", _levels(lambda x: x + 70)),
    "low-contrast": ("low contrast: fog, haze or a dirty lens", _levels(lambda x: 128 + 0.4 * (x - 128))),
    "noise": ("noisy images: gain of the sensor", _levels(
        lambda x: x + np.random.default_rng(0).normal(0, 20, x.shape))),
    "colourless": ("colourless images: a night mode, or grey frames", _levels(
        lambda x: np.repeat(x.mean(-1, keepdims=True), x.shape[-1], -1))),
}  # fmt: skip


def reference(batches: Iterable[PixelArray], logits: FloatArray, how: Preprocess) -> dict[str, Any] | None:
    """Return the reference of a monitor (`targets.runner.watch`); None with fewer than `FEWEST` images.

    Args:
        batches: The clean images, in the order of the logits: (n, h, w, C) uint8, resized and cropped.
        logits: (N, classes) of the engine.
        how: Their preprocessing.
    """
    if len(logits) < FEWEST:
        return None
    samples: list[Any] = []
    shown: list[PixelArray] = []
    for images in batches:
        shown += list(images[: max(SHOWN - len(shown), 0)])
        samples += [monitor.sample(image) for image in images]
    rows = monitor.statistics(np.stack(samples), logits)
    made = monitor.make_reference(rows, logits.argmax(1))
    return {**made, "causes": _causes(np.stack(shown), rows, logits, how)}


def _causes(images: PixelArray, rows: Any, logits: FloatArray, how: Preprocess) -> list[dict[str, Any]]:
    """Return name, title and mean change of the pixels' statistics of every cause that has one."""
    cases = [(name, title, change(images)) for name, (title, change) in CHANGES.items()]
    for fault in CATALOGUE:
        if fault.step in _STEPS and fault.apply is not None:
            cases.append((fault.name, fault.title, _faulty(images, fault.step, fault.apply, how)))
    pixels = len(monitor.NAMES) - 2
    count, std = len(images), np.maximum(rows.std(0), 0.02)
    causes = []
    for name, title, changed in cases:
        after = monitor.statistics(np.stack([monitor.sample(image) for image in changed]), logits[:count])
        shift = ((after - rows[:count]).mean(0) / std)[:pixels]
        if float(np.abs(shift).max()) >= _LEAST:
            causes.append({"name": name, "title": title, "shift": [float(f"{each:.3g}") for each in shift]})
    return causes


def _faulty(images: PixelArray, step: str, apply: Callable[..., Any], how: Preprocess) -> PixelArray:
    """Return the pixels that the calibration's normalization would make the faulty input from."""
    if step == "colour":
        if images.shape[3] == 1:
            return images
        return np.stack([apply(image) for image in images])
    ready = imaging.normalize(images, how.mean, how.std)
    inputs = apply(images, how) if step == "values" else apply(ready)
    mean, std = (np.asarray(each, np.float32).reshape(-1, 1, 1) for each in (how.mean, how.std))
    levels = np.rint((inputs * std + mean) * 255).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1))
