"""Predict the outputs of an engine on image files, under any combination of faults."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from PIL import Image

from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess, as_size, sides
from edgeship.toolkit.prove import pixels
from edgeship.toolkit.prove.faults import ON_PIXELS, STEPS, Fault, Step

BATCH = 32
PIXELS, OUTPUTS = 24, 128  # sets in memory: pairs of faults share their steps
Faults = tuple[Fault, ...]


class Pipeline:
    """An engine, and image files.

    Args:
        classifier: The engine.
        files: Contents of the image files.
        names: Their names, for messages.

    Attributes:
        how: The preprocessing of the calibration.
        takes_pixels: True for an engine that takes uint8 pixels.

    Raises:
        DataError: The engine has no preprocessing.
    """

    def __init__(self, classifier: Classifier, files: Sequence[bytes], names: Sequence[str]) -> None:
        self._classifier, self._files, self._names = classifier, files, names
        self.how = preprocess_of(classifier)
        self.takes_pixels = classifier.input_form == "pixels"
        self._pixels = lru_cache(PIXELS)(self._prepare)
        self._decoded = lru_cache(4)(self._decode)
        self.outputs = lru_cache(OUTPUTS)(self._run)

    def usable(self, faults: Iterable[Fault]) -> list[Fault]:
        """Return the faults before the outputs that differ from the calibration of this engine."""
        steps = ON_PIXELS if self.takes_pixels else STEPS[:-1]
        right: set[str] = {self.how.interpolation}
        if self.how.resize is None or min(sides(self.how.resize)) == min(self.how.sides):
            right.add("no-margin")
        return [fault for fault in faults if fault.step in steps and fault.name not in right]

    def inputs(self, faults: Faults = (), places: slice = slice(None)) -> Any:
        """Return the inputs (N, ...) of the engine, in the form that it takes."""
        steps = {fault.step: fault.apply for fault in faults}
        images = self._pixels(_of(faults, "decode", "colour", "geometry"))[places]
        if self.takes_pixels:
            values: Any = images
        else:
            values = (steps.get("values") or normalized)(images, self.how)
            values = steps["precision"](values) if "precision" in steps else values  # type: ignore[misc]
            if self._classifier.input_form == "nhwc":
                values = np.ascontiguousarray(values.transpose(0, 2, 3, 1))
        return steps["layout"](values) if "layout" in steps else values  # type: ignore[misc]

    def part(self, places: slice) -> Pipeline:
        """Return the same engine with a part of the images."""
        return Pipeline(self._classifier, self._files[places], self._names[places])

    def _run(self, faults: Faults = ()) -> FloatArray:
        """Return the outputs (N, classes) of the engine under faults before its outputs."""
        return self.outputs_of(self.inputs(faults))

    def outputs_of(self, inputs: Any) -> FloatArray:
        """Return the outputs (N, classes) of the engine for inputs in the form that it takes."""
        parts = [
            self._classifier.classify_inputs(inputs[start : start + BATCH])
            for start in range(0, len(inputs), BATCH)
        ]
        return np.stack([result.logits for part in parts for result in part]).astype(np.float32)

    @cached_property
    def jittered_outputs(self) -> FloatArray:
        """Return the outputs for `jittered`."""
        return self.outputs_of(self.jittered())

    def jittered(self) -> Any:
        """Return inputs whose pixels differ by up to one level, as between two right decoders or resizes."""
        noise = np.random.default_rng(0)
        images = self._pixels(())
        moved = images.astype(np.int16) + noise.integers(-1, 2, images.shape, np.int16)
        values = moved.clip(0, 255).astype(np.uint8)
        if self.takes_pixels:
            return values
        ready = normalized(values, self.how)
        return (
            ready
            if self._classifier.input_form == "nchw"
            else np.ascontiguousarray(ready.transpose(0, 2, 3, 1))
        )

    def _decode(self, fault: Fault | None) -> list[Image.Image]:
        decode = fault.apply if fault and fault.apply else pixels.decoded
        images = []
        for data, name in zip(self._files, self._names, strict=True):
            try:
                images.append(decode(data))
            except ValueError as error:
                raise DataError(f"{name} {error}", hint="replace or remove the image") from error
        return images

    def _prepare(self, faults: Faults) -> PixelArray:
        """Return (N, h, w, C) pixels, resized and cropped."""
        steps = {fault.step: fault for fault in faults}
        colour, geometry = (steps[step].apply if step in steps else None for step in ("colour", "geometry"))
        rows = []
        for image in self._decoded(steps.get("decode")):
            changed = Image.fromarray(colour(np.asarray(image))) if colour else image
            grey = changed.convert("L") if len(self.how.mean) == 1 else changed
            rows.append((geometry or pixels.prepared)(grey, self.how))
        return np.stack(rows)


def preprocess_of(classifier: Classifier) -> Preprocess:
    """Return the preprocessing of an engine.

    Raises:
        DataError: It has none.
    """
    stated = classifier.description
    if stated is None:
        raise DataError(
            f"the preprocessing of {classifier.path} is unknown",
            hint="name the folder of a run, or keep model.json next to the engine",
        )
    mean, std, filter_ = tuple(stated.mean), tuple(stated.std), stated.interpolation
    return Preprocess(stated.resize, as_size(*stated.crop), mean, std, filter_)  # type: ignore[arg-type]


def normalized(images: PixelArray, how: Preprocess) -> FloatArray:
    """Return the inputs (N, C, H, W) of pixels (N, H, W, C), as the calibration has them."""
    from edgeship.targets.runner import imaging

    result: FloatArray = imaging.normalize(images, how.mean, how.std)
    return result


def _of(faults: Faults, *steps: Step) -> Faults:
    return tuple(fault for step in steps for fault in faults if fault.step == step)
