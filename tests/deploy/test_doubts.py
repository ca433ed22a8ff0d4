"""A graph for exact sums on a device with saturating sums deploys; a failure names the cause."""

import pytest

from edgeship.toolkit.deploy.agent.protocol import RefusedError
from edgeship.toolkit.deploy.checks import accuracy_risks, naming_cause

OLD, NEW = ["sse4_2", "avx2"], ["sse4_2", "avx2", "avx_vnni"]


@pytest.mark.parametrize(
    ("graph", "arch", "sets", "at_risk"),
    [
        ("exact", "x86_64", OLD, True),
        ("exact", "x86_64", NEW, False),
        ("pairs", "x86_64", OLD, False),
        (None, "x86_64", OLD, False),
        ("exact", "aarch64", ["neon"], False),
    ],
)
def test_only_pairs_that_saturate_under_a_graph_for_exact_sums_are_doubted(graph, arch, sets, at_risk):
    probed = {"facts": {"arch": arch, "cpu": {"name": "a", "instruction_sets": sets}}}
    assert bool(accuracy_risks({"int8_sums": graph}, probed)) == at_risk


def test_a_bundle_of_before_and_an_unknown_processor_are_not_doubted():
    assert accuracy_risks({}, {"facts": {"arch": "x86_64", "cpu": None}}) == []
    assert accuracy_risks({"int8_sums": "exact"}, {"facts": {"arch": "x86_64", "cpu": None}}) == []


@pytest.mark.parametrize(("code", "named"), [("selftest", True), ("evaluate", True), ("time", False)])
def test_what_fails_for_its_accuracy_gets_the_cure(code, named):
    risks = accuracy_risks(
        {"int8_sums": "exact"}, {"facts": {"arch": "x86_64", "cpu": {"instruction_sets": OLD}}}
    )
    with pytest.raises(RefusedError) as caught, naming_cause(risks):
        raise RefusedError("it failed", "look", code)
    assert ("overflow_fix=pairs" in caught.value.hint) == named == ("no VNNI" in str(caught.value))
    assert caught.value.code == code
    with pytest.raises(RefusedError, match=r"^it failed$"), naming_cause([]):
        raise RefusedError("it failed", "look", code)
