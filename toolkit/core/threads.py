"""Work on many items in threads: results in order, few of them waiting, all threads gone at the end."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

CHUNK = 8  # items a task: enough to hide its cost, few enough to bound the memory
_AHEAD = 2  # tasks for each worker beyond the one that is waited for
_MAX_WORKERS = 8  # beyond, threads mostly wait for the interpreter lock

_task = threading.local()  # in a worker thread: `left`, an event

Item = TypeVar("Item")
Result = TypeVar("Result")


class LeftError(Exception):
    """The loop over `ordered_map` was left: the result of a worker is not needed any more."""


def check_stop() -> None:
    """End the work of a worker thread whose caller has left; long work calls this every second or so.

    Raises:
        LeftError: The loop over the results was left, by Ctrl-C or an error.
    """
    left = getattr(_task, "left", None)
    if left is not None and left.is_set():
        raise LeftError


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None, chunk: int = CHUNK
) -> Generator[Result, None, None]:
    """Apply a function to every item in worker threads; yield the results in order.

    Only a few items and results wait at a time, however many there are. When the loop is left, by its end,
    an error or Ctrl-C, what has not begun is dropped, what calls `check_stop` ends, and the threads are gone.

    Args:
        work: What is done with an item; must release the interpreter lock to run side by side.
        items: What it is done with; taken from in the caller's thread.
        workers: Threads; None is one for each core this process may use, at most 8.
        chunk: Items a task.
    """
    count = workers or default_workers()
    pool = ThreadPoolExecutor(count, thread_name_prefix="edgeship-work")
    source = iter(items)
    left = threading.Event()

    def task(part: list[Item]) -> list[Result]:
        _task.left = left
        results = []
        for item in part:
            check_stop()
            results.append(work(item))
        return results

    try:
        tasks = (pool.submit(task, part) for part in iter(lambda: list(islice(source, chunk)), []))
        pending: deque[Future[list[Result]]] = deque(islice(tasks, 1 + count * _AHEAD))
        while pending:
            results = pending.popleft().result()
            pending.extend(islice(tasks, 1))
            yield from results
    finally:
        left.set()
        pool.shutdown(wait=True, cancel_futures=True)


def default_workers() -> int:
    """Threads of `ordered_map` where none are asked for."""
    return min(granted_cores(), _MAX_WORKERS)


def granted_cores() -> int:
    """Cores this process may use: its affinity, and below that a container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = Path("/sys/fs/cgroup")
    quota = cgroup_cores(
        *(_text(groups / name) for name in ("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
    )
    return cores if quota is None else max(1, min(cores, int(quota)))


def cgroup_cores(cpu_max: str, quota_us: str = "", period_us: str = "") -> float | None:
    """Cores a control group grants: version 2 ("200000 100000", "max 100000") or version 1; None is all."""
    parts = cpu_max.split() or [quota_us.strip(), period_us.strip()]
    if len(parts) != 2 or not all(part.isdecimal() for part in parts) or int(parts[1]) == 0:
        return None
    return int(parts[0]) / int(parts[1])


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
