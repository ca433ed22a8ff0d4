"""JSON lines on the real stdout; whatever an SDK prints goes to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from typing import Any, Callable


class Output:
    """The stream of JSON lines of one command.

    SDKs print to file descriptor 1 from C++. It is pointed at stderr, and only this class keeps the
    real one, so that every line on stdout is JSON.
    """

    def __init__(self) -> None:
        sys.stdout.flush()
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()
        self._started_s = time.perf_counter()

    def line(self, record: dict[str, Any]) -> None:
        """Write one object as one line."""
        data = (json.dumps(_finite(record), sort_keys=False, allow_nan=False) + "\n").encode()
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def progress(self, stage: str, **more: Any) -> None:
        """Tell how far the work is."""
        elapsed_s = round(time.perf_counter() - self._started_s, 3)
        self.line({"event": "progress", "stage": stage, "elapsed_s": elapsed_s, **more})


class Watch:
    """A context that shows life every few seconds, and ends the process when the time is over.

    SDK builds cannot be interrupted from Python, so at the limit `on_limit` writes the last line and
    cleans up, and the process ends there.
    """

    def __init__(
        self, output: Output, stage: str, limit_s: float | None, on_limit: Callable[[], None], every_s: float = 5.0
    ) -> None:
        self._output, self._stage, self._limit_s, self._on_limit = output, stage, limit_s, on_limit
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._output.progress(self._stage)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        started_s = time.monotonic()
        while True:
            left_s = math.inf if self._limit_s is None else self._limit_s - (time.monotonic() - started_s)
            if left_s <= 0:
                self._on_limit()
                os._exit(1)
            if self._done.wait(min(self._every_s, left_s)):
                return
            self._output.progress(self._stage)


def log(message: str) -> None:
    """A line for people, on stderr."""
    sys.stderr.write(message.rstrip("\n") + "\n")
    sys.stderr.flush()


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is none is null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
