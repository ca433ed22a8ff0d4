"""Read requests from the client and send answers.

The client (toolkit/deploy/agent_client.py) writes one JSON object a line, `{"do": name, ...}`; an upload or a
payload is followed by its bytes. The agent answers with any number of `{"event": ...}` lines and then one
`{"ok": ...}` or `{"error": ..., "hint": ..., "code": ...}`.
"""

from __future__ import annotations

import errno
import json
import os
import select
import threading
import time
from contextlib import suppress
from typing import Any, Iterator  # noqa: UP035 (Python 3.8)

SILENCE_S = 90.0  # then the client counts as gone; it sends at least a blank line every 15 s
HEARTBEAT_S = 2.0
BLOCK = 1 << 18  # bytes read at once


class RefusedError(Exception):
    """Error answer to the client: message, hint, and a code for programs."""

    def __init__(self, message: str, hint: str, code: str = "refused", *, fatal: bool = False) -> None:
        super().__init__(message)
        self.hint, self.code, self.fatal = hint, code, fatal


class DisconnectedError(Exception):
    """The client closed the connection or sent nothing for SILENCE_S."""


class Client:
    """Connection to the client: requests from file descriptor 0, answers to 1."""

    def __init__(self) -> None:
        self._buffer = b""
        self._sending = threading.Lock()
        # A process that is started in the middle of a line would keep the lock.
        os.register_at_fork(
            before=self._sending.acquire,
            after_in_parent=self._sending.release,
            after_in_child=self._sending.release,
        )

    def start_heartbeat(self) -> None:
        """Send a blank line every HEARTBEAT_S from now on: the client gives up a silent agent."""

        def beat() -> None:
            with suppress(DisconnectedError):
                while True:
                    time.sleep(HEARTBEAT_S)
                    self._write(b"\n")

        threading.Thread(target=beat, daemon=True).start()

    def receive(self, limit: int) -> bytes:
        """Return the next bytes, at least one and at most `limit`."""
        if not self._buffer:
            if not select.select([0], [], [], SILENCE_S)[0]:
                raise DisconnectedError
            self._buffer = os.read(0, BLOCK)
            if not self._buffer:
                raise DisconnectedError
        data, self._buffer = self._buffer[:limit], self._buffer[limit:]
        return data

    def read_exactly(self, count: int) -> Iterator[bytes]:
        """Yield the next `count` bytes in blocks."""
        while count:
            block = self.receive(count)
            count -= len(block)
            yield block

    def request(self) -> dict[str, Any]:
        """Return the next request; skip blank lines, which only show that the client is connected."""
        line = b""
        while True:
            before, newline, self._buffer = self._buffer.partition(b"\n")
            line += before
            if newline and line.strip():
                request: dict[str, Any] = json.loads(line.decode())
                return request
            if not newline:
                self._buffer = self.receive(BLOCK)

    def send(self, value: dict[str, Any]) -> None:
        """Send one line."""
        self._write((json.dumps(value) + "\n").encode())

    def _write(self, data: bytes) -> None:
        try:
            with self._sending:
                while data:
                    data = data[os.write(1, data) :]
        except OSError as error:
            raise DisconnectedError from error

    def check_connected(self) -> None:
        """Discard blank lines of the client; call it when descriptor 0 is readable."""
        if not os.read(0, BLOCK):
            raise DisconnectedError

    def wait(self, seconds: float) -> None:
        """Wait, or raise as soon as the client disconnects."""
        if select.select([0], [], [], seconds)[0]:
            self.check_connected()


def disk_refusal(error: OSError, when: str, *, fatal: bool = False) -> RefusedError:
    """Convert a file system error to an error answer."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = "`edgeship prune-releases` removes old releases; `df -h` on the device shows the full disk"
        return RefusedError(f"the device's disk is full ({when})", hint, "disk", fatal=fatal)
    if "temporary directory" in str(error):  # tempfile: no candidate can be written
        hint = "free space in /tmp on the device: `df -h /tmp /`"
        return RefusedError(f"no room for temporary files ({when})", hint, "disk", fatal=fatal)
    where = f": {error.filename}" if error.filename else ""
    message = f"{error.strerror or error} ({when}){where}"
    return RefusedError(message, "check the root folder and its owner", "disk", fatal=fatal)
