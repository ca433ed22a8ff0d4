"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys


def release_freed_memory() -> None:
    """Return freed memory to the system, where the C library would keep it for its threads (glibc).

    Worth its milliseconds after work in threads that needed much more than what follows.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # musl has none
            trim(0)
