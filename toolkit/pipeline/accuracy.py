"""Compute the accuracy of the variants from their logits."""

from __future__ import annotations

from collections.abc import Mapping

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
    labelled = bool((labels >= 0).all())
    rows = {}
    for variant, record in records.items():
        logits = outcome.logits[variant.name]
        correct = logits.argmax(1) == labels
        drop, interval = statistics.paired_drop(reference.argmax(1) == labels, correct)
        rows[variant.name] = AccuracyRow(
            images=len(logits),
            source="measured" if record.runs_here else "simulated",
            measured_on=here if record.runs_here else _simulation(variant, record),
            top1=float(correct.mean()) if labelled else None,
            top5=_top5(logits, labels) if labelled else None,
            drop_pp=drop if labelled else None,
            drop_ci95_pp=interval if labelled else None,
            agreement=statistics.agreement(reference, logits),
            sqnr_db=_finite(statistics.sqnr_db(reference, logits)),
        )
    return rows


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
