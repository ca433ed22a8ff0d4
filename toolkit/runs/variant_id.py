"""Define the identity of a variant: its name, and the graph that it is compiled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.results import Precision

GraphName = Literal["float", "pruned"]
_PRUNED, _GUARDED = "-pruned", "-guarded"


@dataclass(frozen=True, slots=True)
class VariantId:
    """One network in one precision on one target.

    Attributes:
        guarded: True: close images run again in the reference (`runs.guarded`).
    """

    target: str
    precision: Precision
    pruned: bool = False
    guarded: bool = False

    @classmethod
    def parse(cls, name: str) -> VariantId:
        """Return the variant of a name, e.g. openvino-int8-pruned or openvino-int8-guarded.

        Raises:
            DataError: The name has another form.
        """
        unguarded = name.removesuffix(_GUARDED)
        bare, pruned = split_pruned(unguarded)
        target, _, precision = bare.rpartition("-")
        guarded = unguarded != name
        if not target or precision not in get_args(Precision) or (guarded and precision != "int8"):
            raise DataError(
                f"'{name}' is no variant, expected TARGET-PRECISION, TARGET-PRECISION{_PRUNED} or "
                f"TARGET-int8{_GUARDED}",
                hint=f"precisions: {', '.join(get_args(Precision))}",
            )
        return cls(target, cast(Precision, precision), pruned, guarded)

    @property
    def name(self) -> str:
        """Return the name, e.g. openvino-int8-pruned."""
        return f"{self.target}-{self.precision}{_PRUNED * self.pruned}{_GUARDED * self.guarded}"

    @property
    def float_graph(self) -> GraphName:
        """Return the name of the float graph that it is derived from."""
        return "pruned" if self.pruned else "float"

    @property
    def quantized_graph(self) -> str:
        """Return the name of the quantized graph of its target, e.g. openvino-pruned or tensorrt-fp8."""
        return quantized_name(
            f"{self.target}-fp8" if self.precision == "fp8" else self.target, self.float_graph
        )

    def graph(self, folders: Mapping[str, Path]) -> Path:
        """Return the ONNX file that it is compiled from; `folders` are those of the stages."""
        if self.precision in ("int8", "fp8"):
            return folders["quantize"] / f"{self.quantized_graph}.onnx"
        return folders["export"] / f"{self.float_graph}.onnx"


REFERENCE = VariantId("onnxruntime", "fp32")  # all others are compared with it


def quantized_name(target: str, graph: GraphName) -> str:
    """Return the name of the quantized graph of a float graph for a target."""
    return f"{target}{_PRUNED * (graph == 'pruned')}"


def split_pruned(name: str) -> tuple[str, bool]:
    """Split a name into the part before the suffix -pruned, and True if it has that suffix."""
    bare = name.removesuffix(_PRUNED)
    return bare, bare != name
