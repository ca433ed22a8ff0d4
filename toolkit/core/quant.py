"""The vocabulary of quantization: what a tensor becomes, and what a target wants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
PixelArray: TypeAlias = npt.NDArray[np.uint8]
PairOrder: TypeAlias = Literal["channels", "rows"]  # see `edgeship.quantization.overflow`


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """How one kind of tensor is quantized.

    Attributes:
        dtype: Stored integer type.
        symmetric: Zero point fixed at 0, range the same on both sides (narrow: -127..127).
        axis: Channel axis of per-channel scales; None is per-tensor.
        bits: Bits of the type that are used; 7 leaves head room for `vpmaddubsw` pair sums.
        offset: Added to the integers of an activation where the graph stores them: signed ones become uint8
            with a zero point of 128, the same steps.
    """

    dtype: Literal["int8", "uint8"]
    symmetric: bool
    axis: int | None = None
    bits: int = 8
    offset: int = 0

    @property
    def quant_min(self) -> int:
        """Lowest integer used."""
        if self.dtype == "uint8":
            return 0
        return -self.quant_max if self.symmetric else int(-(2 ** (self.bits - 1)))

    @property
    def stored(self) -> Literal["int8", "uint8"]:
        """Type of the integers of an activation in the graph."""
        return "uint8" if self.offset else self.dtype

    @property
    def saturation(self) -> int:
        """Lowest integer that an activation comes out as: QuantizeLinear does not know of a narrow range."""
        return self.quant_min if self.dtype == "uint8" else -128

    @property
    def quant_max(self) -> int:
        """Highest integer used."""
        return int(2 ** (self.bits - (self.dtype == "int8")) - 1)


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """What a target wants of a graph: the quantizer follows it, so targets differ by value only.

    Attributes:
        name: Short name, used in file names and snapshots.
        weight: Spec of convolution and fully connected weights.
        activation: Spec of an activation that can be negative.
        unsigned_activation: Spec of an activation that is never negative; None uses `activation`.
        add_inputs: "skip": only the shortcut input of a residual Add is quantized, so that the last
            convolution fuses with the Add; "both": the main branch too, where that is what lets it
            fuse; "all": always both, for an integer Add of its own.
        store_integers: Whether weights are stored as the integers they become, a quarter of the size;
            else in float, with a Q of their own, as TensorRT before 10 wants them.
        float_adds: Whether residual Adds read both inputs as they were made: more accurate, and what they
            write is four times as large.
        max_pool: Whether a max pooled tensor is quantized before ("input") or after the pool.
        reduced_max: Whether the largest of a map (GlobalMaxPool, ReduceMax, ReduceMin) is quantized before
            ("input") or after it is found.
        padded_average: Whether an average pool that counts padded zeros may read integers of a tensor that
            can be negative.
        concat_offset: `QuantSpec.offset` of a tensor that can be negative and goes into a Concat or comes
            out of one.
        integer_bias: True if the runtime adds biases as 32-bit integers: quantize/integer_bias.py.
        pairs: Which products the runtime adds by twos in 16 bits on an x86 CPU without VNNI; None: never.
        pair_sums: Whether it runs on such a CPU: these sums saturate, and weights leave head room where a
            pair needs it.
    """

    name: str
    weight: QuantSpec
    activation: QuantSpec
    unsigned_activation: QuantSpec | None
    add_inputs: Literal["skip", "both", "all"]
    max_pool: Literal["input", "output"]
    store_integers: bool
    reduced_max: Literal["input", "output"] = "output"
    padded_average: bool = True
    concat_offset: int = 0
    integer_bias: bool = False
    pairs: PairOrder | None = None
    pair_sums: bool = False
    float_adds: bool = False

    @property
    def saturating_pairs(self) -> PairOrder | None:
        """Which weights share a sum that saturates; None: none do."""
        return self.pairs if self.pair_sums else None


@dataclass(frozen=True, slots=True)
class Range:
    """C lowest and C highest values of a tensor, in its own units; C = 1 is per-tensor."""

    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class QParams:
    """C scales (tensor units per integer step, > 0) and C zero points (integer steps)."""

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    spec: QuantSpec
