"""Map a function over items in threads, in order and with bounded memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

CHUNK = 8  # items per task: amortizes its overhead, bounds the memory
_AHEAD = 2  # queued tasks per worker
_MAX_WORKERS = 8  # more threads mostly wait for the interpreter lock

_task = threading.local()  # in a worker thread: `left`, an event

Item = TypeVar("Item")
Result = TypeVar("Result")


class LeftError(Exception):
    """The loop over `ordered_map` has ended; results of workers are unused."""


def check_stop() -> None:
    """Raise in a worker thread whose loop over the results has ended; call about every second in long work.

    Raises:
        LeftError: The loop has ended, by Ctrl-C or an error.
    """
    left = getattr(_task, "left", None)
    if left is not None and left.is_set():
        raise LeftError


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], *, workers: int | None = None, chunk: int = CHUNK
) -> Generator[Result, None, None]:
    """Apply a function to every item in worker threads; yield the results in order.

    A bounded number of items and results is in memory. When the loop ends, also by an error or Ctrl-C, queued
    tasks are dropped, running ones stop at `check_stop`, and the threads are joined.

    Args:
        work: Function of an item; must release the interpreter lock to run in parallel.
        items: The items; iterated in the caller's thread.
        workers: Threads; None: one per granted core, at most 8.
        chunk: Items per task.
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
    """Return the default number of threads of `ordered_map`."""
    return min(granted_cores(), _MAX_WORKERS)


def granted_cores() -> int:
    """Return the number of usable cores: the affinity, limited by a container's quota."""
    import joblib  # type: ignore[import-untyped]

    return int(joblib.cpu_count())
