"""What one pass over the calibration images keeps: the same memory for a hundred images or a million."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit.core.artifact import read_json, replacing, write_json
from toolkit.core.errors import QuantizationError
from toolkit.core.quant import FloatArray

FloatPrecision = Literal["f32", "bf16"]
Raw = np.ndarray[Any, Any]  # float32, or uint16: the bits of bfloat16
SAMPLE_VALUES = 2**17  # values kept of one tensor
SAMPLE_ROWS = 256  # at least so many positions, however many channels
PROBE_PIXELS = 2**21  # pixels of calibration images kept: 512 images at 64 px
PROBE_IMAGES = 83  # at least, however large


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """What was seen of one activation with C channels.

    Attributes:
        low: Exact lowest value of every channel, (C,).
        high: Exact highest value of every channel, (C,).
        sample: Rows of values at positions spread evenly over images and pixels, (rows, C).
    """

    low: FloatArray
    high: FloatArray
    sample: FloatArray

    @property
    def largest(self) -> float:
        """Largest magnitude."""
        return float(max(-self.low.min(), self.high.max()))

    def scaled(self, factor: FloatArray) -> TensorStatistics:
        """The statistics of the tensor divided by a factor for every channel, (C,) > 0."""
        return TensorStatistics(self.low / factor, self.high / factor, self.sample / factor)

    def dithered(self) -> TensorStatistics:
        """The same with a sample of bfloat16 as float32: for every value one of those that round to it.

        A bfloat16 has 8 bits, as what is quantized has: of such a sample a histogram is a comb, and a grid
        that happens to be its own loses nothing. Zeros stay; the same sample gives the same numbers.
        """
        noise = np.random.default_rng(0).integers(0, 2**16, self.sample.shape, np.uint32)
        moved = (self.sample.view(np.uint32) - 2**15 + noise).view(np.float32)
        sample = np.where(self.sample == 0, self.sample, moved).clip(self.low, self.high)
        return TensorStatistics(self.low, self.high, sample)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of every activation that can be quantized, and images to probe the network with.

    Attributes:
        images: Calibration images seen.
        tensors: Tensor name -> statistics, in the order of the graph.
        probe: Images spread evenly over those seen, preprocessed, (N, C, H, W).
        precision: What the activations were computed in.
    """

    images: int
    tensors: dict[str, TensorStatistics]
    probe: FloatArray
    precision: FloatPrecision = "f32"

    @property
    def largest(self) -> dict[str, float]:
        """Tensor name -> its largest magnitude."""
        return {name: seen.largest for name, seen in self.tensors.items()}

    def save(self, folder: Path) -> None:
        """Write statistics.npz and statistics.json into a folder."""
        arrays = {
            f"{index}.{part}": getattr(seen, part)
            for index, seen in enumerate(self.tensors.values())
            for part in TensorStatistics.__slots__
        }
        with replacing(folder / "statistics.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, probe=self.probe, **arrays)
        described = {"images": self.images, "precision": self.precision, "tensors": list(self.tensors)}
        write_json(folder / "statistics.json", described)

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """Read what `save` wrote.

        Raises:
            DataError: The folder holds no statistics.
        """
        described = read_json(folder / "statistics.json")
        with np.load(folder / "statistics.npz") as arrays:
            tensors = {
                name: TensorStatistics(*(arrays[f"{index}.{part}"] for part in TensorStatistics.__slots__))
                for index, name in enumerate(described["tensors"])
            }
            return cls(described["images"], tensors, arrays["probe"], described.get("precision", "f32"))


class Thinned:
    """A bounded, evenly spread part of a stream of rows.

    Every `stride`-th row is kept; when there are too many, every second of them goes and the stride
    doubles. No random numbers: the same stream gives the same rows.
    """

    def __init__(self, most: int) -> None:
        self._most = max(most, 2)
        self._stride = 1
        self._seen = 0
        self._kept: list[Raw] = []
        self._count = 0

    def add(self, rows: Raw) -> None:
        """Offer rows, (n, ...)."""
        first = -self._seen % self._stride
        self._seen += len(rows)
        chosen = rows[first :: self._stride]
        self._kept.append(chosen.copy())
        self._count += len(chosen)
        while self._count > self._most:
            self._halve()

    def rows(self) -> Raw:
        """The rows that were kept."""
        if len(self._kept) > 1:
            whole = np.empty((self._count, *self._kept[0].shape[1:]), self._kept[0].dtype)
            end = self._count
            while self._kept:  # memory: a part goes as soon as it is in its place
                part = self._kept.pop()
                whole[end - len(part) : end] = part
                end -= len(part)
            self._kept = [whole]
        return self._kept[0]

    def _halve(self) -> None:
        """Let every second row go, part by part."""
        seen = 0
        for index, part in enumerate(self._kept):
            self._kept[index] = part[seen % 2 :: 2].copy()
            seen += len(part)
        self._kept = [part for part in self._kept if len(part)]
        self._count = sum(map(len, self._kept))
        self._stride *= 2


def check_finite(name: str, *values: FloatArray) -> None:
    """Check what was seen of a tensor.

    Raises:
        QuantizationError: A value is NaN or infinite.
    """
    if not all(np.isfinite(each).all() for each in values):
        raise QuantizationError(
            f"activation '{name}' is NaN or infinite on a calibration image",
            hint="look for NaN in the weights, and for a wrong mean or std in load.preprocess",
        )


def float32(values: Raw) -> FloatArray:
    """Values as float32; what is of another type is the bits of bfloat16."""
    return values if values.dtype == np.float32 else (values.astype(np.uint32) << 16).view(np.float32)


class Gathered:
    """Statistics of one tensor while batches come in."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sample: Thinned | None = None

    def add(self, low: FloatArray, high: FloatArray, sample: Raw) -> None:
        """Add a batch: low and high (N, C) and sample (rows, C).

        Raises:
            QuantizationError: A value is NaN or infinite.
        """
        check_finite(self._name, low, high)
        if self._sample is None:
            self._low, self._high = low.min(0), high.max(0)
            self._sample = Thinned(max(SAMPLE_ROWS, SAMPLE_VALUES // sample.shape[1]))
        else:
            self._low, self._high = np.minimum(self._low, low.min(0)), np.maximum(self._high, high.max(0))
        self._sample.add(sample)

    def result(self) -> TensorStatistics:
        """What was seen.

        Raises:
            QuantizationError: A value is NaN or infinite.
        """
        assert self._sample is not None
        sample = float32(self._sample.rows())
        check_finite(self._name, sample)
        return TensorStatistics(self._low, self._high, sample)
