"""Log the progress of long work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from edgeship.toolkit.core import progress

LOGGER = logging.getLogger("edgeship")


@contextmanager
def logged_progress() -> Iterator[None]:
    """Log each new activity inside the block as INFO, unless a listener already shows the progress."""
    if progress.has_listener():
        yield
        return
    labels = set[str]()

    def log(label: str, _done: int, total: int | None) -> None:
        if label not in labels:
            labels.add(label)
            LOGGER.info("%s%s", label, f" ({total})" if total else "")

    with progress.listening(log):
        yield
