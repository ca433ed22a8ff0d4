"""Connect to a device and call its agent."""

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
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.transport import command_line, explain, explain_start, printable

BLOCK = 1 << 18  # bytes written at once
PIPE = 1 << 20  # bytes of the pipe to ssh; large for fewer context switches
KEEPALIVE_S = 15.0  # the agent disconnects a client after six of these without a byte
ANSWER_S = 180.0  # of commands without their own time limit
FIRST_ANSWER_S = 45.0  # slow devices take seconds to start Python
PROMPT_S = 7.0  # then an unfinished line before the first answer counts as a prompt

Listener = Callable[[dict[str, Any]], None]


class RefusedError(DeviceError):
    """Error answer of a device; `code` is for programs: locked, disk, corrupt, signature, health, time."""

    def __init__(self, message: str, *, hint: str, code: str = "refused") -> None:
        super().__init__(message, hint=hint)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (str(self), self.hint, self.code)


class AgentSession:
    """Connection to the agent on a device."""

    def __init__(self, entry: Device, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.entry = entry
        self._process, self._log, self._buffer = process, log, b""
        self._started, self._noise = False, b""  # noise: output before the first answer
        self._in: IO[bytes] = process.stdin  # type: ignore[assignment]
        self._out: IO[bytes] = process.stdout  # type: ignore[assignment]

    def start(self) -> None:
        """Send the agent and wait for its first answer.

        Raises:
            DeviceError: The login or the start of Python failed.
        """
        self._write(agent.program() + json.dumps({"root": self.entry.root}).encode() + b"\n")
        self._answer(None, FIRST_ANSWER_S)
        self._started = True

    def call(
        self,
        do: str,
        *,
        on_event: Listener | None = None,
        answer_s: float = ANSWER_S,
        payload: bytes = b"",
        **arguments: Any,
    ) -> dict[str, Any]:
        """Call a command of the agent and wait for the answer.

        Args:
            do: A name in `agent.commands.COMMANDS`.
            on_event: Called with every event before the answer.
            answer_s: Maximum time in seconds without a line from the agent.
            payload: Bytes that follow the request.
            arguments: Arguments of the command.

        Raises:
            RefusedError: The agent answers with an error.
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
            RefusedError: The disk is full, or the digest of the received file is wrong.
            DeviceError: The connection was lost; the device keeps the received part.
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
        """Close the connection at once; callable from any thread."""
        self._process.kill()

    def _write(self, data: bytes) -> None:
        try:
            self._in.write(data)
            self._in.flush()
        except BrokenPipeError:
            self._answer(None, 5.0)  # raises the agent's last error, if there is one
            raise self._lost() from None

    def _answer(self, on_event: Listener | None, answer_s: float) -> dict[str, Any]:
        for line in self._lines(answer_s):
            try:
                message = json.loads(line)
            except ValueError:
                self._noise = (self._noise + line + b"\n")[-2000:]  # output of a login script
                continue
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
            last_contact = time.monotonic()
            while True:
                line, newline, rest = self._buffer.partition(b"\n")
                if newline:
                    self._buffer = rest
                    yield line
                    continue
                if selector.select(KEEPALIVE_S if self._started else PROMPT_S):
                    block = os.read(self._out.fileno(), BLOCK)
                    if not block:
                        return
                    self._buffer += block
                    last_contact = time.monotonic()
                elif not self._started and (prompt := printable(self._buffer)):
                    self.abort()
                    raise DeviceError(
                        f"{self.entry.name}: a login script waits for input: {prompt[-100:]!r}",
                        hint="end the script early where there is no terminal: `[ -t 0 ] || return`",
                    )
                elif time.monotonic() > last_contact + answer_s:
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
        log = self._log.read().decode(errors="replace")
        if self._started:
            return explain(self.entry, code, log)
        return explain_start(self.entry, code, f"{log}\n{printable(self._noise + self._buffer)}")


@contextmanager
def connect(entry: Device) -> Iterator[AgentSession]:
    """Open a connection to a device and start the agent there.

    Raises:
        DeviceError: The device cannot be reached, or has no Python.
    """
    command = command_line(entry, [*entry.python_words, "-c", agent.START])
    # The log is a file: ssh's shared connection in the background would hold a pipe open.
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
                else "install the OpenSSH client",
            ) from error
        session = AgentSession(entry, process, log)
        try:
            session.start()
            yield session
        finally:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)
            try:
                process.wait(10)  # the agent exits at the end of its input
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _close(pipe: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # close() flushes data that could not be sent before
        pipe.close()


def _rebuild(message: str, hint: str, code: str) -> RefusedError:
    return RefusedError(message, hint=hint, code=code)
