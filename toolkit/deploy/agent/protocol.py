"""Requests from the client and answers to it.

The client (toolkit/deploy/agent_client.py) writes one JSON object a line, `{"do": name, ...}`; an upload or a
payload is followed by its bytes. The agent answers with any number of `{"event": ...}` lines and then one
`{"ok": ...}` or `{"error": ..., "hint": ..., "code": ...}`.
"""

from __future__ import annotations

import errno
import json
import os
import select
from typing import Any, Iterator  # noqa: UP035 (Python 3.8)

SILENCE_S = 90.0  # the client sends at least a blank line every 15 s; after this long it is gone
BLOCK = 1 << 18  # bytes read at once


class RefusedError(Exception):
    """What the client is told: message, what to do about it, and a code that programs can test."""

    def __init__(self, message: str, hint: str, code: str = "refused", *, fatal: bool = False) -> None:
        super().__init__(message)
        self.hint, self.code, self.fatal = hint, code, fatal


class GoneError(Exception):
    """The client closed the connection, or has been silent for too long."""


class Client:
    """The other end of the connection: requests from file descriptor 0, answers to 1."""

    def __init__(self) -> None:
        self._buffer = b""

    def receive(self, limit: int) -> bytes:
        """The next bytes, at least one and at most `limit`."""
        if not self._buffer:
            if not select.select([0], [], [], SILENCE_S)[0]:
                raise GoneError
            self._buffer = os.read(0, BLOCK)
            if not self._buffer:
                raise GoneError
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    def exactly(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes, in blocks."""
        while count:
            block = self.receive(count)
            count -= len(block)
            yield block

    def request(self) -> dict[str, Any]:
        """The next request; blank lines are the client's sign of life."""
        line = b""
        while True:
            before, newline, self._buffer = self._buffer.partition(b"\n")
            line += before
            if newline and line.strip():
                request: dict[str, Any] = json.loads(line.decode())
                return request
            if not newline:
                self._buffer = self.receive(BLOCK)

    def say(self, value: dict[str, Any]) -> None:
        """Send one line."""
        data = (json.dumps(value) + "\n").encode()
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError as error:
            raise GoneError from error

    def still_there(self) -> None:
        """Take the signs of life that have arrived; call it when descriptor 0 is readable."""
        if not os.read(0, BLOCK):
            raise GoneError

    def idle(self, seconds: float) -> None:
        """Wait, but not longer than the client does."""
        if select.select([0], [], [], seconds)[0]:
            self.still_there()


def disk_refusal(error: OSError, when: str, *, fatal: bool = False) -> RefusedError:
    """What to tell of a failure of the file system."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = "free some with `edgeship prune-releases`"
        return RefusedError(f"the device's disk is full ({when})", hint, "disk", fatal=fatal)
    where = f": {error.filename}" if error.filename else ""
    message = f"{error.strerror or error} ({when}){where}"
    return RefusedError(message, "check the root folder and its owner", "disk", fatal=fatal)
