"""Calibration statistics in bounded memory, independent of the number of images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeship.toolkit.core.artifact import read_json, replacing, write_json
from edgeship.toolkit.core.errors import QuantizationError
from edgeship.toolkit.core.quant import FloatArray

FloatPrecision = Literal["f32", "bf16"]
Raw = np.ndarray[Any, Any]  # float32, or uint16: the bits of bfloat16
_Numbers = np.ndarray[Any, np.dtype[np.uint64]]
GOLDEN = 2654435769  # 2**32 times the fraction of the golden ratio
SAMPLE_VALUES = 2**17  # sampled values of one tensor
SAMPLE_ROWS = 256  # minimum of sampled positions
PEAK_ROWS = 2**8  # images with stored channel peaks
PROBE_PIXELS = 2**21  # pixels of stored calibration images: 512 images at 64 px
PROBE_IMAGES = 83  # limit for large images; of many images at least half as many are stored


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """Statistics of one activation with C channels.

    Attributes:
        low: Lowest value of every channel on all images, (C,).
        high: Highest value of every channel on all images, (C,).
        sample: Rows of values at positions spread evenly over images and pixels, (rows, C).
        peaks: Largest magnitude of every channel in each of some images, spread evenly, (images, C).
    """

    low: FloatArray
    high: FloatArray
    sample: FloatArray
    peaks: FloatArray

    @property
    def lowest(self) -> float:
        """Return the lowest value of all channels."""
        return float(self.low.min())

    @property
    def highest(self) -> float:
        """Return the highest value of all channels."""
        return float(self.high.max())

    @property
    def largest(self) -> float:
        """Return the largest magnitude of all channels."""
        return max(-self.lowest, self.highest)

    def scaled(self, factor: FloatArray) -> TensorStatistics:
        """Divide the statistics by a factor for every channel, (C,) > 0."""
        return TensorStatistics(*(getattr(self, part) / factor for part in self.__slots__))

    def dithered(self) -> TensorStatistics:
        """Dither a bfloat16 sample: replace each value by a float32 number that rounds to it.

        bfloat16 has 8 significant bits, as INT8 has: a histogram of its values is a comb, and a quantization
        grid that coincides with it has no error. Zeros stay; the noise is deterministic.
        """
        noise = np.random.default_rng(0).integers(0, 2**16, self.sample.shape, np.uint32)
        dithered = (self.sample.view(np.uint32) - 2**15 + noise).view(np.float32)
        sample = np.where(self.sample == 0, self.sample, dithered).clip(self.low, self.high)
        return replace(self, sample=sample)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics of every quantizable activation, and a probe of calibration images.

    Attributes:
        images: Number of calibration images.
        tensors: Tensor name -> statistics, in the order of the graph.
        probe: Preprocessed images spread evenly over all, (N, C, H, W).
        precision: Precision of the inference.
    """

    images: int
    tensors: dict[str, TensorStatistics]
    probe: FloatArray
    precision: FloatPrecision = "f32"

    @property
    def largest(self) -> dict[str, float]:
        """Tensor name -> its largest magnitude."""
        return {name: tensor.largest for name, tensor in self.tensors.items()}

    @property
    def lowest(self) -> dict[str, float]:
        """Tensor name -> its lowest value."""
        return {name: tensor.lowest for name, tensor in self.tensors.items()}

    def save(self, folder: Path) -> None:
        """Write statistics.npz and statistics.json into a folder."""
        arrays = {
            f"{index}.{part}": getattr(tensor, part)
            for index, tensor in enumerate(self.tensors.values())
            for part in TensorStatistics.__slots__
        }
        with replacing(folder / "statistics.npz") as temporary, temporary.open("wb") as stream:
            np.savez(stream, probe=self.probe, **arrays)
        described = {"images": self.images, "precision": self.precision, "tensors": list(self.tensors)}
        write_json(folder / "statistics.json", described)

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """Read statistics from a folder written by `save`.

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


class EvenSample:
    """Bounded sample of a stream of rows by a low-discrepancy sequence.

    A row is sampled if the fractional part of its index times the golden ratio is below a limit; the limit
    halves if the sample is too large. Unlike a fixed step, the sample has no period that could coincide with
    positions of a map or with classes. It does not depend on the batches of the stream.

    Source:
        Weyl's equidistribution; the golden ratio as in Knuth, The Art of Computer Programming, vol. 3, 6.4.
    """

    def __init__(self, most: int) -> None:
        self._most = max(most, 2)
        self._limit = 2**32
        self._offered = 0
        self._count = 0
        self._parts: list[tuple[_Numbers, Raw]] = []

    def add(self, rows: Raw) -> None:
        """Offer rows, (n, ...)."""
        numbers = np.arange(self._offered, self._offered + len(rows), dtype=np.uint64)
        self._offered += len(rows)
        self._parts.append(self._sampled(numbers, rows))
        self._count += len(self._parts[-1][0])
        while self._count > self._most:
            self._limit //= 2
            for index, part in enumerate(self._parts):  # memory: part by part
                self._parts[index] = self._sampled(*part)
            self._count = sum(len(numbers) for numbers, _ in self._parts)

    def rows(self) -> Raw:
        """Return the sampled rows and clear the sample."""
        parts = [rows for _, rows in self._parts]
        whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
        end = len(whole)
        del self._parts[:]
        while parts:  # memory: free each part after its copy
            part = parts.pop()
            whole[end - len(part) : end] = part
            end -= len(part)
        return whole

    def _sampled(self, numbers: _Numbers, rows: Raw) -> tuple[_Numbers, Raw]:
        """Copy the rows below the limit."""
        below = numbers * GOLDEN % 2**32 < self._limit
        return numbers[below], rows[below]


def check_finite(name: str, *values: FloatArray) -> None:
    """Check the values of a tensor.

    Raises:
        QuantizationError: A value is NaN or infinite.
    """
    if not all(np.isfinite(each).all() for each in values):
        raise QuantizationError(
            f"activation '{name}' is NaN or infinite on a calibration image; expected finite values",
            hint="look for NaN in the weights, and for a wrong mean or std in load.preprocess",
        )


def float32(values: Raw) -> FloatArray:
    """Convert float32 values or uint16 bit patterns of bfloat16 to float32."""
    return values if values.dtype == np.float32 else (values.astype(np.uint32) << 16).view(np.float32)


class StatisticsAccumulator:
    """Statistics of one tensor, accumulated over batches."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._peaks = EvenSample(PEAK_ROWS)
        self._sample: EvenSample | None = None

    def add(self, low: FloatArray, high: FloatArray, sample: Raw) -> None:
        """Add a batch: low and high (N, C) and sample (rows, C).

        Raises:
            QuantizationError: A value is NaN or infinite.
        """
        check_finite(self._name, low, high)
        self._peaks.add(np.maximum(-low, high))
        if self._sample is None:
            self._low, self._high = low.min(0), high.max(0)
            self._sample = EvenSample(max(SAMPLE_ROWS, SAMPLE_VALUES // sample.shape[1]))
        else:
            self._low, self._high = np.minimum(self._low, low.min(0)), np.maximum(self._high, high.max(0))
        self._sample.add(sample)

    def result(self) -> TensorStatistics:
        """Return the statistics over all batches.

        Raises:
            QuantizationError: A value is NaN or infinite.
        """
        assert self._sample is not None
        sample = float32(self._sample.rows())
        check_finite(self._name, sample)
        return TensorStatistics(self._low, self._high, sample, self._peaks.rows())
