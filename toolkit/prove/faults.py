"""List the faults of applications: each replaces one step between an image file and the outputs.

decode     bytes -> RGB image
colour     (H, W, 3) uint8 -> the same
geometry   image, preprocessing -> (h, w, C) uint8
values     (N, h, w, C) uint8, preprocessing -> (N, C, h, w) float32
precision  float32 -> float32
layout     (N, C, h, w) or (N, h, w, C) -> the same shape, other order
outputs    see `toolkit.prove.outputs`

To add one: an entry of `CATALOGUE`. Two faults of different steps can be combined.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal

import numpy as np

from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess, sides
from edgeship.toolkit.prove import pixels

Step = Literal["decode", "colour", "geometry", "values", "precision", "layout", "outputs"]
STEPS: tuple[Step, ...] = ("decode", "colour", "geometry", "values", "precision", "layout", "outputs")
ON_PIXELS = ("decode", "colour", "geometry", "layout")  # steps before an engine that takes uint8 pixels


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of an application.

    Attributes:
        name: Short name; those of one kind share it.
        title: The fault, in words.
        line: The line of the application that is right; fields of `advice` in braces.
        step: The step that it replaces.
        apply: Its function, see above; None: fitted to the outputs (`toolkit.prove.outputs`).
    """

    name: str
    title: str
    line: str
    step: Step
    apply: Callable[..., Any] | None = None

    def advice(self, how: Preprocess) -> str:
        """Return the line to change, with the values of a preprocessing."""
        height, width = how.sides
        resize = how.resize
        if resize is None:
            resized = "image"
        elif isinstance(resize, int):
            resized = f"image.resize(({resize} * w // min(w, h), {resize} * h // min(w, h)), {{filter}})"
        else:
            resized = f"image.resize(({sides(resize)[1]}, {sides(resize)[0]}), {{filter}})"
        resized = resized.format(filter=f"PIL.Image.{how.interpolation.upper()}")
        return self.line.format(
            mean=list(how.mean), std=list(how.std), height=height, width=width, resized=resized
        )


def _affine(images: PixelArray, divisor: float, mean: Any, std: Any) -> FloatArray:
    """Return (pixels / divisor - mean) / std as (N, C, h, w), in float32 steps as the calibration does."""
    values = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    values /= np.float32(divisor)
    values -= np.asarray(mean, np.float32).reshape(-1, 1, 1)
    values /= np.asarray(std, np.float32).reshape(-1, 1, 1)
    return values


def _twice(images: PixelArray, how: Preprocess) -> FloatArray:
    mean, std = (np.asarray(each, np.float32).reshape(-1, 1, 1) for each in (how.mean, how.std))
    result: FloatArray = (_affine(images, 255, how.mean, how.std) - mean) / std
    return result


def _half(values: FloatArray) -> FloatArray:
    return values.astype(np.float16).astype(np.float32)


def _interleaved(values: Any) -> Any:
    """Return the memory of the other channel order, read in this one's shape."""
    other = (0, 2, 3, 1) if values.shape[1] in (1, 3) else (0, 3, 1, 2)
    return np.ascontiguousarray(values.transpose(other)).reshape(values.shape)


def _transposed(values: Any) -> Any:
    """Return rows and columns exchanged, in the same shape."""
    order = (0, 1, 3, 2) if values.shape[1] in (1, 3) else (0, 2, 1, 3)
    return np.ascontiguousarray(values.transpose(order)).reshape(values.shape)


_RESIZE = "image = {resized}  # Pillow, antialiased"
_CENTRE = "left, top = round((w - {width}) / 2), round((h - {height}) / 2)  # of the resized image"
_VALUES = "x = (pixels / 255 - numpy.array({mean})) / numpy.array({std})  # float32, RGB"
_VIDEO = "state range and matrix of the video where it is converted to RGB (JPEG: full range, BT.601)"
_CHROMA = "decode with smooth chroma upsampling (TurboJPEG: no TJFLAG_FASTUPSAMPLE; nvJPEG: interpolated)"
_LAYOUT = "x = numpy.ascontiguousarray(x.transpose(0, 3, 1, 2))  # (N, C, {height}, {width})"
_ORDER = "names = open('labels.txt').read().splitlines()  # of the run, in the order of the outputs"


def _geometry(name: str, title: str, line: str = _RESIZE, **changes: Any) -> Fault:
    return Fault(name, title, line, "geometry", partial(pixels.prepared, **changes))


def _value(name: str, title: str, of: Callable[[Preprocess], tuple[float, Any, Any]]) -> Fault:
    """Return a fault of (pixels / divisor - mean) / std; `of` returns the three."""
    return Fault(name, title, _VALUES, "values", lambda images, how: _affine(images, *of(how)))


CATALOGUE: tuple[Fault, ...] = (
    Fault("exif", "the EXIF orientation is ignored", "image = PIL.ImageOps.exif_transpose(image)", "decode",
          pixels.unrotated),
    Fault("jpeg-chroma", "the JPEG decoder repeats chroma samples", _CHROMA, "decode",
          pixels.repeated_chroma),
    Fault("jpeg-reduced", "JPEG files are decoded at half size", "image = cv2.imread(path, cv2.IMREAD_COLOR)",
          "decode", pixels.reduced),
    Fault("bgr", "red and blue are exchanged (BGR)", "image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)",
          "colour", pixels.bgr),
    Fault("limited-range", "YUV of limited range (16..235) is taken as full range", _VIDEO, "colour",
          pixels.limited_as_full),
    Fault("full-range", "YUV of full range is expanded as limited range", _VIDEO, "colour",
          pixels.full_as_limited),
    Fault("yuv-matrix", "YUV of BT.601 is converted by the matrix of BT.709", _VIDEO, "colour",
          pixels.bt709_for_bt601),
    _geometry("nearest", "resized by the nearest pixel", filter_="nearest"),
    _geometry("nearest", "resized by the nearest pixel (OpenCV's INTER_NEAREST)", filter_="floor"),
    _geometry("no-antialias", "bilinear resize without antialias (OpenCV's INTER_LINEAR)", filter_="linear"),
    _geometry("no-antialias", "bilinear resize without antialias, corners aligned", filter_="linear-corners"),
    _geometry("no-antialias", "bicubic resize without antialias (OpenCV's INTER_CUBIC)", filter_="cubic"),
    _geometry("bicubic", "resized by Pillow's bicubic filter", filter_="bicubic"),
    _geometry("bilinear", "resized by Pillow's bilinear filter", filter_="bilinear"),
    _geometry("lanczos", "resized by Pillow's Lanczos filter", filter_="lanczos"),
    Fault("squash", "both sides are resized: the aspect ratio is lost", f"{_RESIZE}\n{_CENTRE}", "geometry",
          pixels.squashed),
    Fault("squash", "the whole image is squashed to the input, without a crop", f"{_RESIZE}\n{_CENTRE}",
          "geometry", lambda image, how: pixels.prepared(image, how, resize=how.sides)),
    Fault("no-margin", "the shorter side is resized to the crop, without its margin", _RESIZE, "geometry",
          lambda image, how: pixels.prepared(image, how, resize=min(how.sides))),
    _geometry("no-resize", "the crop is taken from the image without a resize", resize=None),
    *(
        Fault("longer-side", f"the longer side is resized, the rest padded with {fill}", _RESIZE, "geometry",
              partial(pixels.letterboxed, fill=fill))
        for fill in (0, pixels.GREY, 255)
    ),
    *(
        _geometry("crop-shift", f"crop off by one pixel ({y:+} rows, {x:+} columns)", _CENTRE, shift=(y, x))
        for y, x in product((-1, 0, 1), repeat=2)
        if (y, x) != (0, 0)
    ),
    _value("range-255", "pixels are not divided by 255", lambda how: (1, how.mean, how.std)),
    _value("range-1", "pixels are divided by 255 twice", lambda how: (255**2, how.mean, how.std)),
    _value("not-normalized", "mean and std are missing: pixels in 0..1", lambda _how: (255, 0, 1)),
    _value("not-normalized", "mean and std are missing: pixels in 0..255", lambda _how: (1, 0, 1)),
    _value("not-normalized", "pixels in -1..1 in place of mean and std", lambda _how: (255, 0.5, 0.5)),
    _value("mean-missing", "the mean is not subtracted", lambda how: (255, 0, how.std)),
    _value("std-missing", "the std is not divided by", lambda how: (255, how.mean, 1)),
    _value("std-multiplied", "multiplied by the std", lambda how: (255, how.mean, 1 / np.asarray(how.std))),
    _value("mean-std-swapped", "mean and std are exchanged", lambda how: (255, how.std, how.mean)),
    _value("mean-std-bgr", "mean and std are in BGR order", lambda how: (255, how.mean[::-1], how.std[::-1])),
    Fault("normalized-twice", "mean and std are applied twice", _VALUES, "values", _twice),
    Fault("half-input", "the input is rounded to half precision", "x = x.astype(numpy.float32)", "precision",
          _half),
    Fault("layout", "the memory has the other order (NHWC for NCHW, or the reverse)", _LAYOUT, "layout",
          _interleaved),
    Fault("transposed", "rows and columns are exchanged", _LAYOUT, "layout", _transposed),
    Fault("softmax-twice", "softmax is applied twice, or before outputs that are given as logits",
          "remove one softmax", "outputs"),
    Fault("softmax-missing", "logits are given as probabilities", "p = numpy.exp(z - z.max()); p /= p.sum()",
          "outputs"),
    Fault("class-order", "the classes are in another order", _ORDER, "outputs"),
    Fault("scale", "the outputs are scaled", "z = q * scale  # dequantize integer outputs", "outputs"),
)  # fmt: skip
