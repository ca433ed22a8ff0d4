"""Start the agent on this device and call its commands over a pipe, as a host does over a connection."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from contextlib import suppress
from typing import IO, Any, Callable, Sequence  # noqa: UP035 (Python 3.8)

from edgeship.toolkit.deploy.agent import START
from edgeship.toolkit.deploy.agent.protocol import BLOCK, RefusedError

KEEPALIVE_S = 15.0  # the agent gives up a client that sends nothing for 90 s

Listener = Callable[[Any], None]


class LocalAgent:
    """The agent in a process of its own: it cleans up when this process ends, in whatever way.

    Args:
        python: Command of Python, and its arguments.
        program: The agent (`agent.program`).
        root: Folder of the releases.

    Raises:
        RefusedError: Python cannot be started, or is too old.
    """

    def __init__(self, python: Sequence[str], program: bytes, root: str) -> None:
        try:
            process = subprocess.Popen([*python, "-c", START], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise RefusedError(
                f"cannot run {python[0]}: {error.strerror}",
                "make the update again with --python COMMAND of a Python 3.8 on the device",
                "python",
            ) from error
        self._process = process
        self._in: IO[bytes] = process.stdin  # type: ignore[assignment]
        self._out: IO[bytes] = process.stdout  # type: ignore[assignment]
        self._sending = threading.Lock()
        self._send(program + json.dumps({"root": root}).encode() + b"\n")
        self._answer(None)
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def call(
        self, do: str, *, on_event: Listener | None = None, payload: bytes = b"", **arguments: Any
    ) -> Any:
        """Call a command of the agent (see `agent.commands`) and return its answer.

        Raises:
            RefusedError: The agent answers with an error, or ended.
        """
        if payload:
            arguments["payload"] = len(payload)
        self._send(json.dumps({"do": do, **arguments}).encode() + b"\n" + payload)
        return self._answer(on_event)

    def upload(self, digest: str, size: int, stream: IO[bytes]) -> None:
        """Send a file.

        Args:
            digest: Its SHA-256.
            size: Its bytes.
            stream: Its content.

        Raises:
            RefusedError: The content is shorter or another one, or the disk is full.
        """
        request = json.dumps({"do": "upload", "digest": digest, "size": size, "offset": 0}).encode() + b"\n"
        with self._sending:  # no blank line inside the file
            self._write(request)
            left = size
            while left:
                block = stream.read(min(BLOCK, left))
                if not block:
                    self._process.kill()
                    raise RefusedError(
                        f"a file of the bundle ends {left} bytes early", "make the update again", "corrupt"
                    )
                self._write(block)
                left -= len(block)
        self._answer(None)

    def close(self) -> None:
        """Close the pipe; the agent removes what is staged, and ends."""
        with suppress(OSError):
            self._in.close()
        self._process.wait()
        self._out.close()

    def _keep_alive(self) -> None:
        with suppress(OSError, ValueError):  # the agent ended; the pipe is closed
            while True:
                time.sleep(KEEPALIVE_S)
                with self._sending:
                    self._in.write(b"\n")
                    self._in.flush()

    def _send(self, data: bytes) -> None:
        with self._sending:
            self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self._in.write(data)
            self._in.flush()
        except OSError:
            self._answer(None)  # raises the agent's last error
            raise self._ended() from None

    def _answer(self, on_event: Listener | None) -> Any:
        for line in self._out:
            try:
                message = json.loads(line.decode())
            except ValueError:  # blank, or output of a wrapper around Python
                continue
            if not isinstance(message, dict):
                continue
            if "error" in message:
                raise RefusedError(message["error"], message["hint"], message["code"])
            if "ok" in message:
                return message["ok"]
            if on_event is not None:
                on_event(message["event"])
        raise self._ended()

    def _ended(self) -> RefusedError:
        return RefusedError(
            f"the agent ended with exit code {self._process.wait()}",
            "read the log of the updater, and `dmesg`, on the device",
            "lost",
        )
