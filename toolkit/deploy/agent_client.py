"""The client's end of a connection to a device."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import agent
from edgeship.toolkit.deploy.inventory import Entry
from edgeship.toolkit.deploy.transport import command_line, explain

BLOCK = 1 << 18  # bytes written at once
PIPE = 1 << 20  # bytes on their way to ssh: fewer turns of writing and waiting
SIGN_OF_LIFE_S = 15.0  # the agent counts a client that is silent for six of these as gone
ANSWER_S = 180.0  # longer than any command takes that has no limit of its own

Listener = Callable[[dict[str, Any]], None]


class RefusedError(DeviceError):
    """The device said no; `code` tells programs why (locked, disk, corrupt, signature, health, time)."""

    def __init__(self, message: str, *, hint: str, code: str = "refused") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (str(self), self.hint, self.code)


class Session:
    """An agent at work on a device, until the connection ends."""

    def __init__(self, entry: Entry, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.entry = entry
        self._process, self._log, self._buffer = process, log, b""
        self._in: IO[bytes] = process.stdin  # type: ignore[assignment]
        self._out: IO[bytes] = process.stdout  # type: ignore[assignment]

    def call(
        self,
        do: str,
        *,
        on_event: Listener | None = None,
        answer_s: float = ANSWER_S,
        payload: bytes = b"",
        **arguments: Any,
    ) -> dict[str, Any]:
        """Have the agent do something and wait for its answer.

        Args:
            do: A name in `agent.commands.COMMANDS`.
            on_event: Told everything the agent reports on the way.
            answer_s: Seconds without a line from the agent after which it is given up.
            payload: Bytes that follow the request.
            arguments: Arguments of the command.

        Raises:
            RefusedError: The agent refuses.
            DeviceError: The connection was lost.
        """
        if payload:
            arguments["payload"] = len(payload)
        self._write(json.dumps({"do": do, **arguments}).encode() + b"\n" + payload)
        return self._answer(on_event, answer_s)

    def upload(
        self, digest: str, size: int, offset: int, stream: IO[bytes], on_bytes: Callable[[int], None]
    ) -> None:
        """Send bytes offset..size of a file, whose SHA-256 is `digest`.

        Raises:
            RefusedError: The disk is full, or what arrived is not what was sent.
            DeviceError: The connection was lost; the device keeps what arrived.
        """
        self._write(
            json.dumps({"do": "upload", "digest": digest, "size": size, "offset": offset}).encode() + b"\n"
        )
        stream.seek(offset, os.SEEK_CUR)
        left = size - offset
        while left and (block := stream.read(min(BLOCK, left))):
            self._write(block)
            left -= len(block)
            on_bytes(len(block))
        self._answer(None, ANSWER_S)

    def abort(self) -> None:
        """Cut the connection; from any thread."""
        self._process.kill()

    def _write(self, data: bytes) -> None:
        try:
            self._in.write(data)
            self._in.flush()
        except BrokenPipeError:
            self._answer(None, 5.0)  # the agent said why before it left, or the connection is lost
            raise self._lost() from None

    def _answer(self, on_event: Listener | None, answer_s: float) -> dict[str, Any]:
        for line in self._lines(answer_s):
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a login script that prints
            if not isinstance(message, dict):
                continue
            if "error" in message:
                raise RefusedError(
                    f"{self.entry.name}: {message['error']}", hint=message["hint"], code=message["code"]
                )
            if "ok" in message:
                answer: dict[str, Any] = message["ok"]
                return answer
            if on_event is not None:
                on_event(message["event"])
        raise self._lost()

    def _lines(self, answer_s: float) -> Iterator[bytes]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            heard = time.monotonic()
            while True:
                line, newline, rest = self._buffer.partition(b"\n")
                if newline:
                    self._buffer = rest
                    yield line
                    continue
                if selector.select(SIGN_OF_LIFE_S):
                    block = os.read(self._out.fileno(), BLOCK)
                    if not block:
                        return
                    self._buffer += block
                    heard = time.monotonic()
                elif time.monotonic() > heard + answer_s:
                    self.abort()
                    return
                else:
                    try:
                        self._in.write(b"\n")
                        self._in.flush()
                    except BrokenPipeError:
                        return

    def _lost(self) -> DeviceError:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        return explain(self.entry, code, self._log.read().decode(errors="replace"))


@contextmanager
def connect(entry: Entry) -> Iterator[Session]:
    """Open a connection to a device and start the agent there.

    Raises:
        DeviceError: The device cannot be reached, or has no Python.
    """
    program = agent.source()
    command = command_line(entry, [entry.python, "-c", agent.BOOT, str(len(program))])
    # The log is a file: a shared connection that ssh leaves in the background would hold a pipe open.
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, pipesize=PIPE
            )
        except OSError as error:
            raise DeviceError(
                f"{entry.name}: cannot run {command[0]}: {error.strerror}",
                hint="install python3, or set python in the inventory"
                if entry.local
                else "install OpenSSH's client",
            ) from error
        session = Session(entry, process, log)
        try:
            hello = json.dumps({"root": entry.root}).encode() + b"\n"
            session._write(program + hello)
            session._answer(None, ANSWER_S)
            yield session
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)
            try:
                process.wait(10)  # the agent leaves when its input ends
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _close(pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # what could not be sent before is tried again
        pipe.close()


def _rebuild(message: str, hint: str, code: str) -> RefusedError:
    return RefusedError(message, hint=hint, code=code)
