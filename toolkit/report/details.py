"""Read the details of a report, JSON of single stages, as far as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.results import RunReport
from edgeship.toolkit.core.typed_json import from_json
from edgeship.toolkit.runs.quantized import PruningSummary, QuantizationSummary, Sensitivity

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Details:
    """Details by graph name, and of pruning; empty or None where a report has none."""

    sensitivity: dict[str, Sensitivity]
    quantize: dict[str, QuantizationSummary]
    pruning: PruningSummary | None


def details(report: RunReport) -> Details:
    """Return the details of a report; a part of another form, from an edited report, is left out."""

    def part(name: str, kind: type[T], absent: T) -> T:
        try:
            return from_json(stored, kind, name) if (stored := report.details.get(name)) else absent
        except DataError:
            return absent

    pruning = part("pruning", PruningSummary, PruningSummary())
    return Details(
        part("sensitivity", dict[str, Sensitivity], {}),
        part("quantize", dict[str, QuantizationSummary], {}),
        pruning if pruning.method != "none" else None,
    )
