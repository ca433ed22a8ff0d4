"""Work spread over threads, processes or a cluster, by joblib: the same results in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from typing import Literal, TypeAlias, TypeVar

from edgeship.toolkit.core.errors import RecipeError
from edgeship.toolkit.core.progress import report_progress

Item = TypeVar("Item")
Result = TypeVar("Result")
Backend: TypeAlias = Literal["threading", "loky", "ray", "dask"]

AT_ONCE = 8  # items a worker between two reports of progress, where a backend reports only at its end


def ordered(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    backend: Backend = "threading",
    label: str,
) -> Iterator[Result]:
    """Apply a function to every item, some at a time; yield the results in the order of the items.

    Args:
        work: A function that gives the same whoever calls it; other processes need it at the top of a module,
            or as a `functools.partial` of such a one.
        items: What it is applied to.
        workers: Items at a time.
        backend: threading: here; loky: other processes on this machine; ray, dask: a cluster, which
            RAY_ADDRESS or DASK_SCHEDULER_ADDRESS names, else one on this machine.
        label: What is done, told as progress.

    Raises:
        RecipeError: Ray or Dask is not installed.
    """
    report_progress(label, 0, len(items))
    if backend == "threading" and min(workers, len(items)) <= 1:
        results = map(work, items)
        yield from _told(results, label, len(items))
        return
    import joblib  # type: ignore[import-untyped]

    with _started(backend), joblib.parallel_config(backend=backend):
        calls = [joblib.delayed(work)(item) for item in items]
        if backend == "ray":  # which gives results only when it has them all: so some at a time
            with joblib.Parallel(n_jobs=workers, batch_size=1) as parallel:
                size = workers * AT_ONCE
                rounds = (parallel(calls[start : start + size]) for start in range(0, len(calls), size))
                yield from _told(chain.from_iterable(rounds), label, len(items))
        else:
            parallel = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1)
            yield from _told(parallel(calls), label, len(items))


def _told(results: Iterator[Result], label: str, total: int) -> Iterator[Result]:
    for done, result in enumerate(results, 1):
        yield result
        report_progress(label, done, total)


@contextmanager
def _started(backend: Backend) -> Iterator[None]:
    """Connect to the cluster of a backend that has one, for as long as it is needed."""
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
