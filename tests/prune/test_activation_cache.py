"""Activations beyond the budget lie on disk, come back the same, and leave nothing behind."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from edgeship.toolkit.prune.activation_cache import Stash

FILLED = """
import sys, torch
from edgeship.toolkit.prune.activation_cache import Stash
stash = Stash(budget_bytes=0)
stash.append(torch.ones(2**18))
print(stash.bytes_on_disk, flush=True)
sys.stdin.read()
"""


def test_what_does_not_fit_comes_back_from_disk_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    values = [torch.randn(2, 3) for _ in range(5)]
    stash = Stash(budget_bytes=2 * 24)  # two of them fit
    for value in values:
        stash.append(value)
    assert 3 * 24 < stash.bytes_on_disk < 3 * 24 + 3 * 256  # a header each
    assert all(torch.equal(a, b) for a, b in zip(stash, values, strict=True))
    doubled = stash.map(lambda x: 2 * x)
    assert all(torch.equal(a, 2 * b) for a, b in zip(doubled, values, strict=True))
    assert doubled.bytes_on_disk == stash.bytes_on_disk
    assert [len(x) for x in stash.first(3)] == [2, 2]
    assert list(tmp_path.iterdir()) == []


def test_what_is_appended_while_it_is_read_does_not_disturb():
    stash = Stash(budget_bytes=0)
    for number in range(3):
        stash.append(torch.full((4,), float(number)))
    read = iter(stash)
    first = next(read)
    stash.append(torch.full((4,), 3.0))
    assert [float(value[0]) for value in (first, *read)] == [0, 1, 2, 3]


@pytest.mark.skipif(os.name != "posix", reason="only there a process can be killed so")
def test_a_killed_process_leaves_no_file(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", FILLED],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert int(process.stdout.readline()) > 2**20
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
