"""Worker threads end when the loop over the results ends."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import pytest

from edgeship.toolkit.core.threads import check_stop, ordered_map


def test_long_work_ends_when_its_caller_leaves():
    ended, begun = [], threading.Event()

    def work(item):
        if item == 0:
            return item
        begun.set()
        try:
            for _ in range(20_000):  # 200 s
                check_stop()
                time.sleep(0.01)
        finally:
            ended.append(item)
        return item

    started = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        closing(ordered_map(work, range(8), workers=3, chunk=1)) as results,
    ):
        for _ in results:
            assert begun.wait(60)
            raise KeyboardInterrupt
    assert time.monotonic() - started < 100 and 1 in ended


def test_outside_of_workers_nothing_stops():
    check_stop()
    assert list(ordered_map(lambda item: check_stop() or item, range(5))) == list(range(5))
