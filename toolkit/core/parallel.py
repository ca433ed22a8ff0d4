"""Map functions over threads, processes or a cluster with joblib, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Literal, TypeAlias, TypeVar

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.threads import ordered_map

Item = TypeVar("Item")
Result = TypeVar("Result")
Backend: TypeAlias = Literal["threading", "loky", "ray", "dask"]


@dataclass(frozen=True, slots=True)
class Workers:
    """Number of parallel workers, and the executor that they run in."""

    count: int = 1
    backend: Backend = "threading"


ONE = Workers()
AT_ONCE = 8  # items per worker and round, for backends that return all results of a round at once


def ordered(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    backend: Backend = "threading",
    label: str,
) -> Iterator[Result]:
    """Apply a function to every item in parallel; yield the results in the order of the items.

    Threads are joined when the loop ends, also by an error or Ctrl-C: those of joblib would run on.

    Args:
        work: A deterministic function; for other processes a module-level one or its `functools.partial`.
        items: Its arguments.
        workers: Items in parallel.
        backend: threading; loky: processes on this machine; ray, dask: the cluster at RAY_ADDRESS or
            DASK_SCHEDULER_ADDRESS, else one on this machine.
        label: Label of the progress.

    Raises:
        RecipeError: Ray or Dask is not installed.
    """
    report_progress(label, 0, len(items))
    if backend == "threading":
        if min(workers, len(items)) <= 1:
            yield from _reported(map(work, items), label, len(items))
            return
        with closing(ordered_map(work, items, workers=workers, chunk=1)) as results:
            yield from _reported(results, label, len(items))
        return
    import joblib  # type: ignore[import-untyped]

    with _started(backend), joblib.parallel_config(backend=backend):
        calls = [joblib.delayed(work)(item) for item in items]
        if backend == "ray":  # returns results only at the end: run in rounds
            with joblib.Parallel(n_jobs=workers, batch_size=1) as parallel:
                size = workers * AT_ONCE
                rounds = (parallel(calls[start : start + size]) for start in range(0, len(calls), size))
                yield from _reported(chain.from_iterable(rounds), label, len(items))
        else:
            parallel = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1)
            yield from _reported(parallel(calls), label, len(items))


def _reported(results: Iterator[Result], label: str, total: int) -> Iterator[Result]:
    for done, result in enumerate(results, 1):
        yield result
        report_progress(label, done, total)


@contextmanager
def _started(backend: Backend) -> Iterator[None]:
    """Connect to the cluster of a backend during the block."""
    try:
        if backend == "ray":
            import_module("ray.util.joblib").register_ray()
            yield
        elif backend == "dask":
            with import_module("dask.distributed").Client():
                yield
        else:
            yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in {"ray", "dask", "distributed"}:
            raise
        raise RecipeError(
            f"backend '{backend}' is not installed: {error}",
            hint=f"pip install 'edgeship[{backend}]'",
        ) from error
