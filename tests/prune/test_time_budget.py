"""The time budget: reading, counting over interruptions, and phases."""

import pytest

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.prune.options import PruneOptions
from edgeship.toolkit.prune.time_budget import TimeBudget, in_words, read_seconds


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400), (30, 30)])
def test_times_are_read(text, seconds):
    assert read_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "20 minutes", "-5s", True, None])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError):
        read_seconds(text)


def test_a_time_is_written_as_it_is_read():
    for seconds in (1, 61, 119.5, 121, 3600):
        assert seconds <= read_seconds(in_words(seconds)) < seconds + 60


def test_a_stopped_process_does_not_count(tmp_path):
    clock = [100.0]
    file = tmp_path / "clock.json"
    budget = TimeBudget(60.0, file, now=lambda: clock[0])
    clock[0] += 10
    assert budget.phase_start("tuning") == 10
    clock[0] += 15
    budget.save()
    clock[0] += 1000  # stopped
    again = TimeBudget(60.0, file, now=lambda: clock[0], used_s=3.0)
    assert (again.elapsed_s, again.left_s) == (25, 35)
    assert again.phase_start("tuning") == 10
    again.restart()
    assert TimeBudget(60.0, file, now=lambda: clock[0], used_s=3.0).elapsed_s == 3


def test_a_joint_scope_has_a_latency_goal():
    with pytest.raises(RecipeError, match="joint"):
        PruneOptions(scope="joint", macs_ratio=0.5)
    assert PruneOptions(scope="joint", latency_ratio=0.5, budget_s=60.0).budget_s == 60


def test_a_budget_without_a_method_is_refused():
    with pytest.raises(RecipeError, match="budget_s") as caught:
        PruneOptions(method="none", budget_s=60.0)
    assert "prune.method" in caught.value.hint
