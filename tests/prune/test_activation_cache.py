"""Activations beyond the budget are read back from disk unchanged, and no file remains."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from edgeship.toolkit.prune.activation_cache import ActivationCache

FILLED = """
import sys, torch
from edgeship.toolkit.prune.activation_cache import ActivationCache
cache = ActivationCache(budget_bytes=0)
cache.append(torch.ones(2**18))
print("ready", flush=True)
sys.stdin.read()
"""


def test_what_does_not_fit_comes_back_from_disk_in_order(tmp_path, monkeypatch):
    written, save = [], np.save
    monkeypatch.setattr(np, "save", lambda file, array: written.append(array) or save(file, array))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    values = [torch.randn(2, 3) for _ in range(5)]
    cache = ActivationCache(budget_bytes=2 * 24)  # two of them fit
    for value in values:
        cache.append(value)
    assert len(written) == 3
    assert all(torch.equal(a, b) for a, b in zip(cache, values, strict=True))
    doubled = cache.map(lambda x: 2 * x)
    assert all(torch.equal(a, 2 * b) for a, b in zip(doubled, values, strict=True))
    assert len(written) == 2 * 3
    assert [len(x) for x in cache.first(3)] == [2, 2]
    assert list(tmp_path.iterdir()) == []


def test_what_is_appended_while_it_is_read_does_not_disturb():
    cache = ActivationCache(budget_bytes=0)
    for number in range(3):
        cache.append(torch.full((4,), float(number)))
    read = iter(cache)
    first = next(read)
    cache.append(torch.full((4,), 3.0))
    assert [float(value[0]) for value in (first, *read)] == [0, 1, 2, 3]


@pytest.mark.skipif(os.name != "posix", reason="only there a process can be killed so")
def test_a_killed_process_leaves_no_file(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", FILLED],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
