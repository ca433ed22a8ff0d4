"""Types of quantization: specs of tensors and schemes of targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from edgeship.toolkit.core.int8_sums import int8_sums

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]
PixelArray: TypeAlias = npt.NDArray[np.uint8]
PairOrder: TypeAlias = Literal["channels", "rows"]  # see `edgeship.quantization.overflow`
Accumulation: TypeAlias = Literal["exact", "pairs"]  # of INT8 products; pairs: in int16, may overflow


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU that a graph is quantized for: architecture and instruction sets, by the names of `Device`."""

    arch: str
    instruction_sets: tuple[str, ...] = ()

    @property
    def int8_sums(self) -> Accumulation | None:
        """Return the accumulation of INT8 products; None: unknown."""
        return int8_sums(self.arch, self.instruction_sets)


X86 = {  # an x86 CPU with each accumulation
    "exact": Cpu("x86_64", ("avx512_vnni",)),
    "pairs": Cpu("x86_64", ("avx2",)),
}


@dataclass(frozen=True, slots=True)
class QuantSpec:
    """Quantization of one kind of tensor.

    Attributes:
        dtype: Stored type: integers, or FP8 numbers (E4M3), which have no zero point.
        symmetric: Zero point fixed at 0, range the same on both sides (narrow: -127..127).
        axis: Channel axis of per-channel scales; None is per-tensor.
        bits: Bits of the type that are used; 7 avoids overflow of `vpmaddubsw` pair sums.
        offset: Added to the integers of an activation where the graph stores them: 128 makes signed ones
            uint8 with a zero point of 128, -128 unsigned ones int8 with a zero point of -128; the same steps.
    """

    dtype: Literal["int8", "uint8", "float8e4m3fn"]
    symmetric: bool
    axis: int | None = None
    bits: int = 8
    offset: int = 0

    @property
    def quant_min(self) -> int:
        """Return the lowest integer used."""
        if self.dtype == "uint8":
            return 0
        return -self.quant_max if self.symmetric else int(-(2 ** (self.bits - 1)))

    @property
    def stored(self) -> Literal["int8", "uint8", "float8e4m3fn"]:
        """Return the type of the numbers of an activation in the graph."""
        if not self.offset:
            return self.dtype
        return "uint8" if self.offset > 0 else "int8"

    @property
    def saturation(self) -> int:
        """Return the lowest integer of an activation; QuantizeLinear has no narrow range."""
        return self.quant_min if self.dtype == "uint8" else -128

    @property
    def quant_max(self) -> int:
        """Return the highest number used."""
        if self.dtype == "float8e4m3fn":
            return 448
        return int(2 ** (self.bits - (self.dtype == "int8")) - 1)


@dataclass(frozen=True, slots=True)
class QuantScheme:
    """Placement and types of Q/DQ pairs for a target; targets differ by these values only.

    Attributes:
        name: Short name, used in file names and snapshots.
        weight: Spec of convolution and fully connected weights.
        activation: Spec of an activation that can be negative.
        unsigned_activation: Spec of an activation that is never negative; None uses `activation`.
        shifted_activation: Spec of an activation that is never negative where the layers around it absorb a
            shift by 128 steps (toolkit/graph/shift.py), so that signed integers hold 8 bits of it; None: no
            tensor is shifted.
        add_inputs: "skip": only the shortcut input of a residual Add is quantized, so that the last
            convolution fuses with the Add; "both": the main branch too, where the fusion requires it;
            "all": always both, for an integer Add of its own.
        batch_norm: Quantize the input of a BatchNormalization that fuses with no convolution.
        store_integers: Store weights as integers, a quarter of the size; else in float with a Q node, as
            TensorRT before 10 requires.
        float_adds: Keep both inputs of residual Adds in float: more accurate, four times the memory traffic.
        max_pool: Quantize a max pooled tensor before ("input") or after ("output") the pool.
        reduced_max: The same for GlobalMaxPool, ReduceMax and ReduceMin.
        padded_average: Allow quantized inputs that can be negative for average pools that count padding.
        concat_offset: `QuantSpec.offset` of inputs and outputs of a Concat that can be negative.
        integer_bias: True if the runtime adds biases as 32-bit integers: quantize/integer_bias.py.
        pairs: Products that the runtime adds in pairs in int16 on an x86 CPU without VNNI; None: none.
        pair_sums: True for such a CPU: pair sums saturate, and weight ranges are reduced where they would.
    """

    name: str
    weight: QuantSpec
    activation: QuantSpec
    unsigned_activation: QuantSpec | None
    add_inputs: Literal["skip", "both", "all"]
    max_pool: Literal["input", "output"]
    store_integers: bool
    batch_norm: bool = False
    reduced_max: Literal["input", "output"] = "output"
    padded_average: bool = True
    concat_offset: int = 0
    integer_bias: bool = False
    pairs: PairOrder | None = None
    pair_sums: bool = False
    float_adds: bool = False
    shifted_activation: QuantSpec | None = None

    @property
    def saturating_pairs(self) -> PairOrder | None:
        """Return the weights that share a saturating sum; None: there are none."""
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
