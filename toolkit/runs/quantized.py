"""Define what is read of the summaries of quantized graphs, quantize/quantize.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeship.toolkit.core.typed_json import read_as

FILE = "quantize.json"


@dataclass(frozen=True, slots=True)
class QuantizedGraph:
    """Facts of a quantized graph.

    Attributes:
        warnings: Warnings for the report.
        int8_sums: Accumulation of INT8 products that the graph is safe for; None: any.
    """

    warnings: tuple[str, ...] = ()
    int8_sums: Literal["exact", "pairs"] | None = None


def read(folder: Path) -> dict[str, QuantizedGraph]:
    """Return the facts of every graph by name, see `variant_id.quantized_name`.

    Raises:
        DataError: The file is absent or damaged.
    """
    return read_as(folder / FILE, dict[str, QuantizedGraph])
