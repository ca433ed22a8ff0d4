"""Compare preprocessed images with the training statistics of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeship.calibration.preprocess_forms import STATED, Form, value_forms
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.results import DataFinding
from edgeship.toolkit.core.tensors import Preprocess

_BETTER = 0.4  # report another preprocessing if its divergence is below this share of the stated one's
_NOISE = 0.02  # nats; sampling noise of some dozens of images
NOISE_PAIRED = 0.01  # nats; sampling noise between two forms on the same hundreds of images
_TINT = 0.1  # standard deviations of colour; sampling noise
_FOREIGN = 1.0  # nats; a shift of the mean by 1.4 standard deviations, or 0..1 where -2..2 was trained
_POSITIONS = 32  # positions per side at which the first convolution is computed
SAMPLE = 64  # images; enough to detect a wrong preprocessing
_EPSILON = 1e-5  # variance below which a channel is dead


@dataclass(frozen=True, slots=True)
class Stem:
    """First convolution of a network and the running statistics of the BatchNorm after it.

    Attributes:
        weight: (O, C, kh, kw) float32.
        mean: (O,) running means of the convolution's output.
        variance: (O,) running variances of the convolution's output.
        stride: Stride of the convolution.
    """

    weight: FloatArray
    mean: FloatArray
    variance: FloatArray
    stride: int


def stem_divergence(stem: Stem, inputs: FloatArray) -> float:
    """Compute the divergence of the first convolution's output from its training statistics.

    Args:
        stem: First convolution and its normalization.
        inputs: (N, C, H, W) preprocessed images.

    Returns:
        Mean over the O channels of KL(N(images) || N(training)), in nats; 0: equal, above 1: unlike.
    """
    height, width = stem.weight.shape[2:]
    view: Any = np.lib.stride_tricks.sliding_window_view  # typed for one axis before NumPy 2.3
    windows: FloatArray = view(inputs, (height, width), (2, 3))
    rows, columns = windows.shape[2:4]
    positions = _POSITIONS if len(inputs) <= SAMPLE else _POSITIONS // 2  # fewer positions suffice
    step_y, step_x = (stem.stride * max(1, size // (stem.stride * positions)) for size in (rows, columns))
    patches = windows[:, :, ::step_y, ::step_x].transpose(0, 2, 3, 1, 4, 5)
    out = patches.reshape(-1, stem.weight[0].size) @ stem.weight.reshape(len(stem.weight), -1).T
    alive = stem.variance > _EPSILON
    mean, variance = out.mean(0, dtype=np.float64)[alive], out.var(0, dtype=np.float64)[alive]
    spread = np.maximum(variance, _EPSILON) / stem.variance[alive]
    shift = (mean - stem.mean[alive]) ** 2 / stem.variance[alive]
    return float(0.5 * (spread - np.log(spread) - 1 + shift).mean())


def stem_divergences(stem: Stem, images: PixelArray, preprocess: Preprocess) -> dict[Form, float]:
    """Return the divergence of every usual form, in nats; the stated form comes first.

    Args:
        stem: First convolution and its normalization.
        images: (N, H, W, C) uint8, resized and cropped; some dozens of different ones.
        preprocess: Stated preprocessing.
    """
    return {form: stem_divergence(stem, form.inputs(images)) for form in value_forms(preprocess)}


def better_form(divergences: dict[Form, float], noise: float = _NOISE) -> Form | None:
    """Return the form that fits the training statistics far better than the stated one, or None.

    Args:
        divergences: See `stem_divergences`.
        noise: Sampling noise in nats.
    """
    stated = next(iter(divergences.values()))
    best = min(divergences, key=lambda form: divergences[form])
    better = divergences[best] < _BETTER * stated and stated - divergences[best] > noise
    return best if better else None


def check_stem(stem: Stem, images: PixelArray, preprocess: Preprocess) -> list[DataFinding]:
    """Compare the stated preprocessing with the usual ones by the checkpoint's BatchNorm statistics.

    Args:
        stem: First convolution and its normalization.
        images: (N, H, W, C) uint8, resized and cropped; some dozens of different ones.
        preprocess: Stated preprocessing.
    """
    divergences = stem_divergences(stem, images, preprocess)
    stated, best = next(iter(divergences.values())), better_form(divergences)
    if best is not None:
        return [
            DataFinding(
                "error" if stated > _FOREIGN else "warning",
                f"the checkpoint seems to be trained with {best.name}: first layer statistics are "
                f"{divergences[best]:.3g} nats from those of training; with {STATED} {stated:.3g}",
                "correct mean, std or channel order in load.preprocess",
            )
        ]
    if stated > _FOREIGN:
        return [
            DataFinding(
                "warning",
                f"the first layer's statistics are {stated:.3g} nats from those of training: images or "
                "preprocessing are unlike the training images",
                "compare resize, crop, mean and std in load.preprocess with the checkpoint's training",
            )
        ]
    return []


def check_colours(mean: FloatArray, std: FloatArray, preprocess: Preprocess) -> list[DataFinding]:
    """Compare the images' colours with the stated mean and std.

    Args:
        mean: C mean values of the pixels, in [0, 1].
        std: C standard deviations of the pixels, in [0, 1].
        preprocess: Mean and std of the checkpoint.
    """
    stated_mean, stated_std = np.array(preprocess.mean), np.array(preprocess.std)
    if stated_mean.max() > 1 or stated_std.max() > 1:
        return [
            DataFinding(
                "error",
                f"mean {preprocess.mean} and std {preprocess.std} look like units of 0..255",
                "divide mean and std in load.preprocess by 255",
            )
        ]
    shift, spread = (mean - stated_mean) / stated_std, std / stated_std
    swapped = (mean[::-1] - stated_mean) / stated_std
    fit, fit_swapped = float(np.abs(shift).mean()), float(np.abs(swapped).mean())
    if fit_swapped < _BETTER * fit and fit - fit_swapped > _TINT:
        return [
            DataFinding(
                "warning",
                f"the images' mean colour {_text(mean)} fits the stated mean {_text(stated_mean)} better "
                "with red and blue exchanged",
                "state mean and std in RGB order in load.preprocess",
            )
        ]
    if np.abs(shift).max() > 1 or spread.min() < 0.5 or spread.max() > 2:
        return [
            DataFinding(
                "warning",
                f"after preprocessing the channels have mean {_text(shift)} and std {_text(spread)}; "
                "expected about 0 and 1",
                "compare mean and std in load.preprocess with the checkpoint's training",
            )
        ]
    return []


def _text(values: FloatArray) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in values) + ")"
