"""JSON lines on the real stdout; whatever an SDK prints goes to stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from typing import Any, Callable

from edgeship.toolkit.core import signals

_EVERY_S = 5.0


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
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except BrokenPipeError:  # the client is gone; the result is for the next one
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._descriptor)

    def progress(self, stage: str, **more: Any) -> None:
        """Write a progress event.

        Raises:
            KeyboardInterrupt: A signal was received.
        """
        signals.check()
        elapsed_s = round(time.perf_counter() - self._started_s, 3)
        self.line({"event": "progress", "stage": stage, "elapsed_s": elapsed_s, **more})


def watched(output: Output, stage: str, limit_s: float | None, work: Callable[[], Any]) -> Any:
    """Do a piece of work that cannot be interrupted, showing life every few seconds.

    An SDK's build is one call into C++ that may take minutes. It runs in a thread of its own, so that this
    one still hears signals and the clock. A build that is given up goes on until the process ends.

    Raises:
        TimeoutError: It took longer than `limit_s` seconds.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work()
        except BaseException as error:
            outcome["error"] = error

    output.progress(stage)
    started_s = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        left_s = math.inf if limit_s is None else limit_s - (time.monotonic() - started_s)
        if left_s <= 0:
            raise TimeoutError(f"{stage} took longer than {limit_s:g} s")
        thread.join(min(_EVERY_S, left_s))
        if thread.is_alive():
            output.progress(stage)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]


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
