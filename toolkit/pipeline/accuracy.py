"""Compute the accuracy of the variants from their logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.pipeline.evaluation import Outcome
from edgeship.toolkit.runs.compiled import CompiledVariant
from edgeship.toolkit.runs.measured import AccuracyRow
from edgeship.toolkit.runs.variant_id import REFERENCE, VariantId

TOP = 5


def accuracies(outcome: Outcome, records: Mapping[VariantId, CompiledVariant]) -> dict[str, AccuracyRow]:
    """Return the accuracy of every variant by name, and the paired drop against the reference."""
    from edgeship.targets._device import this_device

    here = f"this machine ({this_device().name})"
    reference, labels = outcome.logits[REFERENCE.name], outcome.labels
    rows = {}
    for variant, record in records.items():
        logits = outcome.logits[variant.name]
        rows[variant.name] = AccuracyRow(
            images=len(logits),
            source="measured" if record.runs_here else "simulated",
            measured_on=here if record.runs_here else _simulation(variant, record),
            **figures(reference, logits, labels),
        )
    return rows


def figures(reference: FloatArray, logits: FloatArray, labels: IntArray) -> dict[str, Any]:
    """Return the figures of an `AccuracyRow` from (N, classes) logits; None where a label is unknown.

    Args:
        reference: Logits of the float reference.
        logits: Logits of the variant.
        labels: N class indices; -1 is unknown.
    """
    known: dict[str, Any] = dict.fromkeys(("top1", "top5", "drop_pp", "drop_ci95_pp"))
    if (labels >= 0).all():
        correct = logits.argmax(1) == labels
        drop, interval = statistics.paired_drop(reference.argmax(1) == labels, correct)
        top1, top5 = float(correct.mean()), _top5(logits, labels)
        known = {"top1": top1, "top5": top5, "drop_pp": drop, "drop_ci95_pp": interval}
    return {
        **known,
        "agreement": statistics.agreement(reference, logits),
        "sqnr_db": _finite(statistics.sqnr_db(reference, logits)),
    }


def _simulation(variant: VariantId, record: CompiledVariant) -> str:
    types = f"{variant.precision.upper()} types, " if record.simulated else ""
    return f"simulation ({types}ONNX Runtime)"


def _top5(logits: FloatArray, labels: IntArray) -> float | None:
    """Return the top-5 accuracy; None for five classes or fewer, where it is always 1."""
    if logits.shape[1] <= TOP:
        return None
    best = np.argpartition(logits, -TOP, axis=1)[:, -TOP:]
    return float((best == labels[:, None]).any(1).mean())


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
