"""Watch the frames of an application for drift and faults: no image is kept, nothing leaves the device.

Of each frame a few statistics of its pixels and logits are taken, and their ranks among those of the evaluation
images (`reference`, in model.json). A bet on a rank is an e-value: 1 on average while frames are like the evaluation
images, more after a change that it bets on. The Shiryaev-Roberts sum of the e-values of all bets is an e-detector:
if it is compared with `FRAMES`, the mean number of frames to a false alarm is at least `FRAMES`.

Shin, Ramdas and Rinaldo 2022, "E-detectors: a nonparametric framework for sequential change detection",
arXiv:2203.03532, definition 2.2 and theorem 2.4 (sums and averages of e-detectors are e-detectors). Frames are taken
as independent; each bet is lowered by `SIGMAS` standard errors of its mean over the evaluation images.
"""

from __future__ import annotations

from typing import Any

import numpy as np

FRAMES = 1e6  # mean number of frames to a false alarm
BLOCK = 64  # frames that are computed together
BINS = 16  # ranks of a statistic
SIDE = 16  # samples of an image on either axis, at most
SIGMAS = 4.5
STAKES = (0.25, 0.9)
RECENT = 256  # frames over which the cause is averaged
CLASSES = 16  # most frequent classes whose shares are watched
NAMES = (
    *("red", "green", "blue", "contrast", "gradient", "gradient2", "detail", "flat", "dark", "bright"),
    *("saturation", "top", "left", "tint", "margin", "confidence"),
)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_MOST = 1e30  # of a sum
_STEADY, _FAR = 0.02, 20.0  # least standard deviation of a statistic; most of a frame, in standard deviations
_LEAST = 0.1  # levels; added before a logarithm


def sample(image: Any, *, channels_first: bool = False) -> Any:
    """Return a copy of samples of an image: pixels on a grid, with two neighbours each.

    Args:
        image: (H, W, C), or (C, H, W).
        channels_first: True for (C, H, W).

    Returns:
        (C, 3 neighbours, h, w), of the type of the image.
    """
    if not channels_first:
        image = image.transpose(2, 0, 1)
    channels, height, width = image.shape
    step = max(3, -(-max(height, width) // SIDE))
    rows = image[:, step // 2 :: step]
    samples = np.empty((channels, 3, rows.shape[1], width // step), image.dtype)
    for place in range(3):
        samples[:, place] = rows[:, :, place : width // step * step : step]
    return samples


def statistics(samples: Any, logits: Any) -> Any:
    """Return the statistics (N, 16) of N frames.

    Args:
        samples: (N, C, 3, h, w) in 0..255, see `sample`.
        logits: (N, classes).
    """
    values = samples.astype(np.float32)
    if values.shape[1] == 1:
        values = values.repeat(3, 1)
    luma = np.einsum("ncphw,c->nphw", values, _LUMA)
    first, second, third = luma[:, 0], luma[:, 1], luma[:, 2]
    near, far = np.abs(second - first), np.abs(third - first)
    tint = values[:, 0, :2] - values[:, 1, :2]
    here = values[:, :, 0]
    best = np.partition(logits.astype(np.float64), -2, axis=1)[:, -2:]
    middle = first.shape[1] // 2, first.shape[2] // 2

    def mean(part: Any) -> Any:
        return part.reshape(len(part), -1).mean(1)

    def log(part: Any) -> Any:
        return np.log(mean(part) + _LEAST)

    return np.column_stack([
        here.reshape(len(here), 3, -1).mean(2),
        np.log(first.reshape(len(first), -1).std(1) + _LEAST),
        log(near),
        log(far),
        log(np.abs(first - 2 * second + third)),
        mean(near < 0.5),
        mean(first < 6),
        mean(first > 249),
        mean(here.max(1) - here.min(1)),
        mean(first[:, : middle[0]]) - mean(first[:, middle[0] :]),
        mean(first[:, :, : middle[1]]) - mean(first[:, :, middle[1] :]),
        log(np.abs(tint[:, 0] - tint[:, 1])),
        best[:, 1] - best[:, 0],
        -np.log(np.exp(logits - best[:, 1:]).sum(1)),
    ]).astype(np.float64)  # fmt: skip


def make_reference(rows: Any, classes: Any) -> dict[str, Any]:
    """Return the reference of a monitor, as JSON.

    Args:
        rows: (N, 16) statistics of clean images.
        classes: (N,) predicted classes.
    """
    mean, std = (np.array(_short(each)) for each in (rows.mean(0), np.maximum(rows.std(0), _STEADY)))
    scaled = _scaled(rows, mean, std)
    values, vectors = np.linalg.eigh(np.cov(scaled.T) + 1e-3 * np.eye(rows.shape[1]))
    whiten = np.array([_short(row) for row in vectors / np.sqrt(values)])
    ranked = np.concatenate([scaled, scaled @ whiten], 1)
    edges = np.quantile(ranked, np.arange(1, BINS) / BINS, axis=0).T
    edges = np.array([[float(f"{value:.4g}") for value in row] for row in edges])
    shares = np.stack([np.bincount(_bins(edges[j], ranked[:, j]), minlength=BINS) for j in range(len(edges))])
    watched = np.argsort(-np.bincount(classes), kind="stable")[:CLASSES]
    counts = [int((classes == each).sum()) for each in watched]
    return {
        "images": len(rows),
        "mean": mean.tolist(), "std": std.tolist(), "whiten": whiten.tolist(),
        "edges": [_short(row) for row in edges], "counts": shares.tolist(),
        "classes": [int(each) for each in watched], "class_counts": counts,
    }  # fmt: skip


class Detector:
    """The sums of the e-detector over blocks of frames.

    Args:
        reference: See `make_reference`.

    Attributes:
        frames: Frames so far.
        evidence: The e-detector; an alarm is raised at `FRAMES`.
        shift: (16,) mean of the recent statistics, in standard deviations of the reference.
    """

    def __init__(self, reference: dict[str, Any]) -> None:
        self._mean, self._std = np.array(reference["mean"]), np.array(reference["std"])
        self._whiten, self._edges = np.array(reference["whiten"]), np.array(reference["edges"])
        counts, images = np.array(reference["counts"], float), float(reference["images"])
        size = len(NAMES)
        shapes = [self._mean.shape, self._std.shape, self._whiten.shape, self._edges.shape, counts.shape]
        if shapes != [(size,), (size,), (size, size), (2 * size, BINS - 1), (2 * size, BINS)]:
            raise ValueError(f"arrays of shape {shapes}")
        self._tables = _tables(counts / counts.sum(1, keepdims=True), images)  # (statistics, bets, bins)
        self._classes = np.array(reference["classes"], np.int64)
        self._class_bets = _class_bets(np.array(reference["class_counts"]) / images, images)
        self.frames, self.shift = 0, np.zeros(len(self._mean))
        self.sums = np.zeros(self._tables.shape[0] * self._tables.shape[1] + len(self._classes) * len(STAKES))

    @property
    def evidence(self) -> float:
        """Return the average of the sums of all bets."""
        return float(self.sums.mean())

    def update(self, rows: Any, classes: Any) -> float:
        """Add frames; return the largest evidence in this block.

        Args:
            rows: (N, 16) statistics.
            classes: (N,) predicted classes.
        """
        logs = self.log_bets(rows, classes)
        self.frames += len(rows)
        weight = min(1.0, max(len(rows) / RECENT, len(rows) / self.frames))
        self.shift += weight * (_scaled(rows, self._mean, self._std).mean(0) - self.shift)
        return self.add(logs)

    def strongest(self) -> int | None:
        """Return the class on which the bet with the largest sum is; None: it is on a statistic."""
        place = int(np.nan_to_num(self.sums, nan=np.inf).argmax()) - self._tables.shape[0] * self._tables.shape[1]
        return None if place < 0 else int(self._classes[place % len(self._classes)])

    def restore(self, frames: int, sums: Any, shift: Any) -> None:
        """Continue from an earlier state."""
        self.frames, self.sums, self.shift = frames, sums, shift

    def log_bets(self, rows: Any, classes: Any) -> Any:
        """Return the logarithms (N, bets) of the e-values of frames."""
        scaled = _scaled(rows, self._mean, self._std)
        ranked = np.concatenate([scaled, scaled @ self._whiten], 1)
        parts = [table[:, _bins(edges, ranked[:, j])].T for j, (edges, table) in enumerate(zip(self._edges, self._tables))]
        hits = classes[:, None] == self._classes
        for hit, miss in self._class_bets:
            parts.append(np.where(hits, hit, miss))
        return np.concatenate(parts, 1)

    def add(self, logs: Any) -> float:
        """Add the e-values of a block to the Shiryaev-Roberts sums: sum = e * (1 + sum); return the largest mean."""
        total = np.cumsum(logs, 0)
        before = np.vstack([np.zeros(logs.shape[1]), total[:-1]])
        sums = np.exp(total) * (self.sums + np.cumsum(np.exp(-before), 0))
        sums = np.minimum(np.nan_to_num(sums, nan=_MOST, posinf=_MOST), _MOST)
        self.sums = sums[-1]
        return float(sums.mean(1).max())


def _tables(shares: Any, images: float) -> Any:
    """Return the logarithms (statistics, bets, bins) of e-values: up, down, outwards and inwards, at each stake."""
    ranks = np.cumsum(shares, 1) - shares / 2  # the middle of each bin
    slope = 2 * ranks - 1
    bend = slope**2 - (shares * slope**2).sum(1, keepdims=True)
    tables = []
    for gain in (slope, -slope, bend, -bend):
        gain = gain / np.maximum(1e-9, -gain.min(1, keepdims=True)).clip(1)  # loses the stake at most
        error = SIGMAS * np.sqrt((shares * gain**2).sum(1, keepdims=True) / images)
        tables += [np.log(np.maximum(1 + stake * (gain - error), 0.01)) for stake in STAKES]
    return np.stack(tables, 1)


def _class_bets(shares: Any, images: float) -> Any:
    """Return the logarithms of the e-values of a class that is predicted, and of others, at each stake."""
    upper = np.minimum(shares + SIGMAS * np.sqrt(shares * (1 - shares) / images) + 1 / images, 1 - 1e-6)
    bets = []
    for stake in STAKES:
        target = upper + 0.5 * stake * (1 - upper)  # the share that is bet on
        bets.append((np.log(target / upper), np.log((1 - target) / (1 - upper))))
    return bets


def _scaled(rows: Any, mean: Any, std: Any) -> Any:
    return ((rows - mean) / std).clip(-_FAR, _FAR)


def _bins(edges: Any, values: Any) -> Any:
    return np.searchsorted(edges, values, side="right")


def _short(values: Any) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
