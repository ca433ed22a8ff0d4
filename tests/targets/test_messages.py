"""Many places with the same trouble make one line; few are listed one by one."""

from edgeship.targets._messages import summed_up


def test_a_few_are_told_one_by_one_in_the_order_of_their_kinds():
    found = [("slow", "conv1", "is slow"), ("odd", "fc", "is odd"), ("slow", "conv2", "is slow too")]
    assert summed_up(found) == ("conv1: is slow", "conv2: is slow too", "fc: is odd")


def test_many_are_told_once_and_all_are_named():
    found = [("slow", f"conv{i}", f"takes {i} ms") for i in range(1, 5)]
    assert summed_up(found) == ("conv1: takes 1 ms (the same at conv2, conv3, conv4)",)
    assert summed_up([]) == ()
