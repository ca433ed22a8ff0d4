"""Activations beyond the budget lie on disk and come back the same."""

import torch

from toolkit.prune.stash import Stash


def test_what_does_not_fit_comes_back_from_disk_in_order():
    values = [torch.randn(2, 3) for _ in range(5)]
    stash = Stash(budget_bytes=2 * 24)  # two of them fit
    for value in values:
        stash.append(value)
    assert len(list(stash.folder.iterdir())) == 3
    assert all(torch.equal(a, b) for a, b in zip(stash, values, strict=True))
    doubled = stash.map(lambda x: 2 * x)
    assert all(torch.equal(a, 2 * b) for a, b in zip(doubled, values, strict=True))
    assert len(list(doubled.folder.iterdir())) == 3
    assert [len(x) for x in stash.first(3)] == [2, 2]
    folder = stash.folder
    del stash
    assert not folder.exists()
