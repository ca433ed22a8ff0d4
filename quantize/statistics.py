"""What one pass over the calibration images keeps: the same memory for a hundred images or a million."""

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
SAMPLE_VALUES = 2**17  # values kept of one tensor
SAMPLE_ROWS = 256  # at least so many positions, however many channels
PEAK_ROWS = 2**8  # images whose channels' magnitudes are kept
PROBE_PIXELS = 2**21  # pixels of calibration images kept: 512 images at 64 px
PROBE_IMAGES = 83  # at most, of large ones; of many images at least half as many are kept


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """What was seen of one activation with C channels.

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
    def largest(self) -> float:
        """Largest magnitude."""
        return float(max(-self.low.min(), self.high.max()))

    def scaled(self, factor: FloatArray) -> TensorStatistics:
        """The statistics of the tensor divided by a factor for every channel, (C,) > 0."""
        return TensorStatistics(*(getattr(self, part) / factor for part in self.__slots__))

    def dithered(self) -> TensorStatistics:
        """The same with a sample of bfloat16 as float32: for every value one of those that round to it.

        A bfloat16 has 8 bits, as what is quantized has: of such a sample a histogram is a comb, and a grid
        that happens to be its own loses nothing. Zeros stay; the same sample gives the same numbers.
        """
        noise = np.random.default_rng(0).integers(0, 2**16, self.sample.shape, np.uint32)
        moved = (self.sample.view(np.uint32) - 2**15 + noise).view(np.float32)
        sample = np.where(self.sample == 0, self.sample, moved).clip(self.low, self.high)
        return replace(self, sample=sample)


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

    @property
    def lowest(self) -> dict[str, float]:
        """Tensor name -> its lowest value."""
        return {name: float(seen.low.min()) for name, seen in self.tensors.items()}

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


class EvenSample:
    """A bounded, evenly spread part of a stream of rows.

    A row is kept if the fraction of its number times the golden ratio is small enough; when there are too
    many, the limit is halved. So nothing in the order of the rows is preferred, as every second row would
    prefer some of a map's positions, or every other class. The same stream gives the same rows, in whatever
    parts it comes.

    Source:
        Weyl's equidistribution; the golden ratio as in Knuth, The Art of Computer Programming, vol. 3, 6.4.
    """

    def __init__(self, most: int) -> None:
        self._most = max(most, 2)
        self._limit = 2**32
        self._seen = 0
        self._count = 0
        self._kept: list[tuple[_Numbers, Raw]] = []

    def add(self, rows: Raw) -> None:
        """Offer rows, (n, ...)."""
        numbers = np.arange(self._seen, self._seen + len(rows), dtype=np.uint64)
        self._seen += len(rows)
        self._kept.append(self._chosen(numbers, rows))
        self._count += len(self._kept[-1][0])
        while self._count > self._most:
            self._limit //= 2
            for index, part in enumerate(self._kept):  # memory: part by part
                self._kept[index] = self._chosen(*part)
            self._count = sum(len(numbers) for numbers, _ in self._kept)

    def rows(self) -> Raw:
        """Hand over the rows that were kept."""
        parts = [rows for _, rows in self._kept]
        whole = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), parts[0].dtype)
        end = len(whole)
        del self._kept[:]
        while parts:  # memory: a part goes as soon as it is in its place
            part = parts.pop()
            whole[end - len(part) : end] = part
            end -= len(part)
        return whole

    def _chosen(self, numbers: _Numbers, rows: Raw) -> tuple[_Numbers, Raw]:
        """A copy of those that the limit leaves."""
        chosen = numbers * GOLDEN % 2**32 < self._limit
        return numbers[chosen], rows[chosen]


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


class StatisticsAccumulator:
    """Statistics of one tensor while batches come in."""

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
        """What was seen.

        Raises:
            QuantizationError: A value is NaN or infinite.
        """
        assert self._sample is not None
        sample = float32(self._sample.rows())
        check_finite(self._name, sample)
        return TensorStatistics(self._low, self._high, sample, self._peaks.rows())
