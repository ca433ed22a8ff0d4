"""A graph for exact sums on a device whose sums saturate: deployed, but a failure names the reason."""

import pytest

from edgeship.toolkit.deploy.agent_client import RefusedError
from edgeship.toolkit.deploy.verification import _blaming, _doubts

OLD, NEW = ["sse4_2", "avx2"], ["sse4_2", "avx2", "avx_vnni"]


@pytest.mark.parametrize(
    ("graph", "arch", "sets", "doubted"),
    [
        ("exact", "x86_64", OLD, True),
        ("exact", "x86_64", NEW, False),
        ("pairs", "x86_64", OLD, False),
        (None, "x86_64", OLD, False),
        ("exact", "aarch64", ["neon"], False),
    ],
)
def test_only_pairs_that_saturate_under_a_graph_for_exact_sums_are_doubted(graph, arch, sets, doubted):
    probed = {"facts": {"arch": arch, "cpu": {"name": "a", "instruction_sets": sets}}}
    assert bool(_doubts({"int8_sums": graph}, probed)) == doubted


def test_a_bundle_of_before_and_an_unknown_processor_are_not_doubted():
    assert _doubts({}, {"facts": {"arch": "x86_64", "cpu": None}}) == []
    assert _doubts({"int8_sums": "exact"}, {"facts": {"arch": "x86_64", "cpu": None}}) == []


@pytest.mark.parametrize(("code", "blamed"), [("selftest", True), ("evaluate", True), ("time", False)])
def test_what_fails_for_its_accuracy_gets_the_cure(code, blamed):
    doubts = _doubts({"int8_sums": "exact"}, {"facts": {"arch": "x86_64", "cpu": {"instruction_sets": OLD}}})
    with pytest.raises(RefusedError) as caught, _blaming(doubts):
        raise RefusedError("it says no", hint="look", code=code)
    assert ("overflow_fix=pairs" in caught.value.hint) == blamed == ("no VNNI" in str(caught.value))
    assert caught.value.code == code
    with pytest.raises(RefusedError, match=r"^it says no$"), _blaming([]):
        raise RefusedError("it says no", hint="look", code=code)
