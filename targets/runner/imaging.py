"""Decode images and preprocess them to network inputs, identically for calibration, evaluation and devices.

1. Resize so that the shorter side has `resize` pixels; the longer one is truncated:
   int(resize * long / short). A `resize` of (height, width) sets both sides, whatever the aspect ratio.
   Pillow's filters: antialiased when shrinking, rounded to uint8.
2. Centre crop to (height, width): left = round((image width - width) / 2), ties to even; top likewise.
3. (pixel / 255 - mean) / std per channel, each step in float32.

Bit-identical to torchvision's Resize, CenterCrop, ToTensor and Normalize on a Pillow image, except that an
image smaller than the crop is an error here; torchvision pads it with black. Without Pillow, `resample` computes
the same pixels with the fixed-point arithmetic of Pillow's Resample.c (22 bits, rounded to uint8 after each pass).
"""

from __future__ import annotations

import functools
import io
import struct
from typing import Any, Callable, Optional, Tuple, Union

import numpy as np

try:
    import PIL
    from PIL import Image as _pillow
except ImportError:  # a device without Pillow
    _pillow = None  # type: ignore[assignment]

Image: Any = _pillow

Size = Union[int, Tuple[int, int]]  # shorter side, or (height, width), in pixels

SUFFIXES = (
    *(".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# Pillow formats that are read. Others stay disabled: EPS, for one, runs programs from the file in an interpreter.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_FORMATS_SINCE = 8  # major release of Pillow that can limit the formats
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation -> Pillow's transpose
_MOST_BYTES = 400_000_000  # of a decoded image, copies included: 100 megapixels of a JPEG, else 50

_FIXED_BITS = 32 - 8 - 2  # of a coefficient: sums over 8-bit pixels stay below 2**31
_LUMA = (19595, 38470, 7471)  # ITU-R 601-2 in 16 bits, as Pillow rounds it
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # weights of red and blue in luma
LEVELS = {"limited": (16, 219.0, 224.0), "full": (0, 255.0, 255.0)}  # black, ranges of luma and chroma
_TIE = 2e-12  # above float64's error of a sum, below the distance of any other sum to half a level: halves go up
_GREY_MODES = 2  # dimensions of a grey image array


class DecodeError(ValueError):
    """A file that is no complete image; the message follows the name of the file."""


def decode(data: bytes) -> Any:
    """Decode an image file to upright RGB.

    The format follows from the content, not the suffix. Grey is repeated over the channels, palettes are
    looked up, alpha is dropped without blending (as in training pipelines), CMYK is converted, 16-bit samples
    are reduced to their high byte, EXIF orientation is applied, and an animation's first frame is used.

    Args:
        data: Content of the file.

    Returns:
        An RGB image of Pillow.

    Raises:
        DecodeError: The file is empty, corrupt, truncated, not an image, or needs over 400 MB when decoded.
        ImportError: Pillow is not installed.
    """
    if Image is None:
        raise ImportError("Pillow is not installed")
    if not data:
        raise DecodeError("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), **_formats()) as image:
            _check_size(image)
            image.load()
            turn = _TURNS.get(_orientation(image))
            return _rgb(image if turn is None else image.transpose(turn))
    except PIL.UnidentifiedImageError as error:
        raise DecodeError("is not an image") from error
    except Exception as error:  # broken files make Pillow's plug-ins raise many types
        raise DecodeError(f"cannot be decoded: {error}") from error


@functools.lru_cache(maxsize=None)
def _formats() -> Any:
    """Return the limit to the formats that this build of Pillow reads."""
    Image.init()
    usual = int(PIL.__version__.split(".")[0]) >= _FORMATS_SINCE
    return {"formats": tuple(name for name in _FORMATS if name in Image.OPEN)} if usual else {}


def _check_size(image: Any) -> None:
    """Raise if the size in the header needs too much memory, before memory is allocated."""
    each = 16 if image.mode.startswith("I") else 8  # bytes per pixel with a copy; 16 bits go through int64
    if image.format == "JPEG" and image.mode == "RGB" and _orientation(image) not in _TURNS:
        each = 4
    needed = image.width * image.height * each
    if needed > _MOST_BYTES:
        raise ValueError(
            f"{image.width} x {image.height} pixels need {needed // 10**6} MB, more than {_MOST_BYTES // 10**6}"
        )


def _orientation(image: Any) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, struct.error, OSError):
        return 1  # an image with broken metadata can still be decoded


def _rgb(image: Any) -> Any:
    if image.mode.startswith("I"):
        samples = np.asarray(image).astype(np.int64)
        if samples.min() < 0 or samples.max() > 0xFFFF:
            raise ValueError("32-bit samples have no agreed range")
        return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point samples have no agreed range")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when it converts such a palette to RGB directly
    return image if image.mode == "RGB" else image.convert("RGB")


def from_nv12(frame: Any, matrix: str, levels: str) -> Any:
    """Convert an NV12 frame to RGB; the four pixels of a 2 x 2 block share their chroma.

    Exact: the correctly rounded values of ITU-R BT.601-7 or BT.709-6 for every triple of samples.

    Args:
        frame: uint8 (3/2 height, width): rows of luma, then rows of Cb and Cr in turns; height and width even.
        matrix: bt601 or bt709.
        levels: limited (luma 16 to 235, chroma 16 to 240) or full (0 to 255).

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: The frame has another form.
    """
    rows, width = frame.shape if frame.ndim == _GREY_MODES else (0, 0)
    if frame.dtype != np.uint8 or not rows or not width or rows % 3 or width % 2:
        raise ValueError(f"{frame.dtype} {frame.shape} is no NV12 frame: uint8 (3/2 height, width), both even")
    height = rows * 2 // 3
    luma, red, green, blue = _yuv_tables(matrix, levels)
    chroma = frame[height:].reshape(height // 2, width // 2, 2)
    cb, cr = chroma[..., 0], chroma[..., 1]
    base = luma[frame[:height]].reshape(height // 2, 2, width // 2, 2)
    out = np.empty((height, width, 3), np.uint8)
    for channel, part in enumerate((red[cr], green[0][cb] + green[1][cr], blue[cb])):
        total = (base + part[:, None, :, None]).reshape(height, width)
        out[..., channel] = np.clip(total, 0, 255)  # cut to whole levels: luma has half a level more
    return out


@functools.lru_cache(maxsize=None)
def _yuv_tables(matrix: str, levels: str) -> Any:
    """Return the summands of luma, and of chroma for red, green (two) and blue, of each sample value, float64."""
    kr, kb = MATRICES[matrix]
    kg = 1 - kr - kb
    offset, luma_range, chroma_range = LEVELS[levels]
    samples = np.arange(256)
    y = (samples - offset) * (255 / luma_range)
    c = (samples - 128) * (255 / chroma_range)
    red, blue = 2 * (1 - kr) * c, 2 * (1 - kb) * c
    return y + 0.5 + _TIE, red, (-blue * kb / kg, -red * kr / kg), blue


def read_sides(value: Any) -> Tuple[int, int]:
    """Return height and width of a size in JSON: N, or [height, width].

    Raises:
        TypeError, ValueError: The value is no size.
    """
    height, width = (value, value) if isinstance(value, int) else value
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise ValueError(f"{value!r} is no size")
    return height, width


def read_resize(value: Any) -> Optional[Size]:
    """Return a resize in JSON: null, N (the shorter side), or [height, width].

    Raises:
        TypeError, ValueError: The value is no size.
    """
    return value if value is None or (isinstance(value, int) and value > 0) else read_sides(value)


def resized_sides(height: int, width: int, resize: Optional[Size]) -> Tuple[int, int]:
    """Return height and width after the resize: shorter side of `resize` pixels, or both sides set."""
    if resize is None:
        return height, width
    if not isinstance(resize, int):
        return resize
    longer = int(resize * max(height, width) / min(height, width))
    return (longer, resize) if width <= height else (resize, longer)


def pixels(image: Any, resize: Optional[Size], crop: Tuple[int, int], interpolation: str, channels: int) -> Any:
    """Resize and crop an image.

    Args:
        image: RGB image of Pillow, or an array (H, W, 3), RGB, or (H, W), grey, uint8.
        resize: Shorter side or (height, width), in pixels; None keeps the size.
        crop: Height and width of the result.
        interpolation: bilinear, bicubic, nearest or lanczos.
        channels: 3, or 1 for grey by ITU-R 601 luma.

    Returns:
        (height, width, channels) uint8.

    Raises:
        ValueError: The image is smaller than the crop.
    """
    if Image is not None:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        image = image.convert("L" if channels == 1 else "RGB")
        height, width = image.height, image.width
    else:
        image = _with_channels(image, channels)
        height, width = image.shape[:2]
    resized = resized_sides(height, width, resize)
    if resized[0] < crop[0] or resized[1] < crop[1]:
        raise ValueError(f"{width} x {height}, smaller than the crop of {crop[1]} x {crop[0]}")
    top, left = round((resized[0] - crop[0]) / 2), round((resized[1] - crop[1]) / 2)
    if Image is None:
        image = resample(image, resized, interpolation)[top : top + crop[0], left : left + crop[1]]
        return np.ascontiguousarray(image)
    if resized != (height, width):
        image = image.resize(resized[::-1], getattr(Image, "Resampling", Image)[interpolation.upper()])
    if resized != crop:
        image = image.crop((left, top, left + crop[1], top + crop[0]))
    return np.asarray(image).reshape(*crop, channels)


def normalize(images: Any, mean: Any, std: Any) -> Any:
    """Convert pixels to network inputs.

    Args:
        images: (N, H, W, C) uint8.
        mean: Mean of each channel, of pixels in 0..1.
        std: Standard deviation of each channel.

    Returns:
        (N, C, H, W) float32, contiguous.
    """
    scaled = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    scaled /= np.float32(255)
    scaled -= np.asarray(mean, np.float32)[:, None, None]
    scaled /= np.asarray(std, np.float32)[:, None, None]
    return scaled


def resample(image: Any, sides: Tuple[int, int], interpolation: str) -> Any:
    """Resize an array as Pillow resizes an image, in NumPy alone.

    Args:
        image: (H, W, C) uint8.
        sides: Height and width of the result.
        interpolation: bilinear, bicubic, nearest or lanczos.

    Returns:
        (height, width, C) uint8.
    """
    if interpolation == "nearest":
        rows, columns = (_nearest(old, new) for old, new in zip(image.shape, sides))
        return image[rows][:, columns]
    axes = (0, 1) if _columns_first(image.shape, sides) else (1, 0)
    for axis in axes:  # rounded to uint8 in between
        if image.shape[axis] != sides[axis]:
            image = np.moveaxis(_weighted(np.moveaxis(image, axis, 0), sides[axis], interpolation), 0, axis)
    return image


def _columns_first(old: Tuple[int, ...], new: Tuple[int, int]) -> bool:
    """Return True if Pillow 13 resizes the columns first (found by trial; earlier releases: rows always)."""
    return new[0] < old[0] and old[0] - new[0] > 2 * (old[1] - new[1])


def _with_channels(image: Any, channels: int) -> Any:
    """Return an array with 3 channels, or with 1 of luma."""
    if image.ndim == _GREY_MODES:
        return np.repeat(image[..., None], channels, axis=2)
    if channels == 1:
        return ((image.astype(np.uint32) * _LUMA).sum(2, keepdims=True) + 0x8000 >> 16).astype(np.uint8)
    return image


def _nearest(old: int, new: int) -> Any:
    """Return the source position of each target position (Pillow adds up the step in double precision)."""
    step = old / new
    steps = np.full(new, step)
    steps[0] = step * 0.5
    return np.minimum(np.add.accumulate(steps).astype(np.int64), old - 1)


def _weighted(image: Any, new: int, interpolation: str) -> Any:
    """Resize the first axis by a filter of Pillow."""
    first, weights = _coefficients(image.shape[0], new, interpolation)
    total = np.full((new, *image.shape[1:]), 1 << _FIXED_BITS - 1, np.int32)
    for tap in range(weights.shape[1]):
        rows = np.minimum(first + tap, image.shape[0] - 1)  # weights beyond the edge are 0
        total += image[rows].astype(np.int32) * weights[:, tap, None, None]
    return np.clip(total >> _FIXED_BITS, 0, 255).astype(np.uint8)


def _coefficients(old: int, new: int, interpolation: str) -> Tuple[Any, Any]:
    """Return first source position and fixed-point weights (new, taps) of each target position."""
    kernel, radius = _KERNELS[interpolation]
    scale = old / new
    filter_scale = max(scale, 1.0)
    support = radius * filter_scale
    centre = (np.arange(new) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), old)
    taps = np.arange(int((last - first).max()))
    weights = kernel((taps + first[:, None] - centre[:, None] + 0.5) / filter_scale)
    weights[taps >= (last - first)[:, None]] = 0.0
    weights /= weights.sum(1, keepdims=True)
    fixed = weights * (1 << _FIXED_BITS)
    return first, np.trunc(fixed + np.where(fixed < 0, -0.5, 0.5)).astype(np.int32)


def _bilinear(x: Any) -> Any:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: Any) -> Any:
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))  # noqa: PLR2004


def _lanczos(x: Any) -> Any:
    return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)  # noqa: PLR2004


FILTERS = ("bilinear", "bicubic", "nearest", "lanczos")
_KERNELS: "dict[str, Tuple[Callable[[Any], Any], float]]" = {
    "bilinear": (_bilinear, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
