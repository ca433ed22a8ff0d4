"""Counts of INT8 layers in the report: layers of unknown precision are counted separately."""

from types import SimpleNamespace

import pytest

from edgeship.toolkit.core.results import LayerAudit
from edgeship.toolkit.report import formatting


@pytest.mark.parametrize(
    ("precisions", "shown"),
    [
        (["int8", "int8"], "2 of 2"),
        (["int8", "fp16", "unknown"], "1 of 3, 1 not known"),
        (["unknown", "unknown"], "0 of 2, 2 not known"),
    ],
)
def test_unknown_layers_are_counted_and_not_as_float(precisions, shown):
    audit = [LayerAudit(f"conv{i}", "Convolution", each, weighted=True) for i, each in enumerate(precisions)]
    audit.append(LayerAudit("add", "Add", "unknown", weighted=False))
    variant = SimpleNamespace(
        precision="int8", int8_layers=precisions.count("int8"), weighted_layers=len(precisions), audit=audit
    )
    assert formatting.coverage(variant) == shown
