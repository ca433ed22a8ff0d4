"""Gates of a device: allowed loss of accuracy and latency, hand-worked."""

import pytest

from edgeship.toolkit.deploy.agent.protocol import RefusedError
from edgeship.toolkit.deploy.checks import check_gates


def failed_gate(images, gap_pp, limit_pp, median_ms=1.0, **gates):
    accuracy = {"images": images, "top1": 0.9, "gap_pp": gap_pp}
    record = {
        "accuracy": accuracy,
        "latency_ms": {"p50": median_ms, "batch": 1},
    }
    try:
        check_gates("nano", record, {"max_gap_pp": limit_pp, **gates})
    except RefusedError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("images", "gap_pp", "limit_pp", "refused"),
    [
        (1000, 0.9, 1.0, None),  # the limit decides
        (1000, 1.1, 1.0, "evaluate"),
        (50, 2.0, 1.0, None),  # one image of 50 is 2 pp: always allowed
        (50, 4.0, 1.0, "evaluate"),
        (50, 4.0, 5.0, None),
        (1000, 0.1, 0.0, None),  # one image of 1000
        (1000, 0.2, 0.0, "evaluate"),
        (1000, None, 0.0, None),  # not simulated
    ],
)
def test_the_gap_to_the_simulation(images, gap_pp, limit_pp, refused):
    assert failed_gate(images, gap_pp, limit_pp) == refused


def test_the_latency():
    assert failed_gate(1000, 0.0, 1.0, 5.0, max_latency_ms=5.0) is None
    assert failed_gate(1000, 0.0, 1.0, 5.1, max_latency_ms=5.0) == "time"
