"""Connect to a device and call its agent."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import agent, answer_types, answers
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.transport import command_line, explain, explain_start, printable

BLOCK = 1 << 18  # bytes written at once
PIPE = 1 << 20  # bytes of the pipe to ssh; large for fewer context switches
KEEPALIVE_S = 15.0  # the agent disconnects a client after six of these without a byte
FIRST_ANSWER_S = 9.0  # for the login and the start of Python
PROMPT_S = 7.0  # then an unfinished line before the first answer counts as a prompt
SILENCE_S = 7.0  # of an agent, which sends a blank line every 2 s; and a tenth of the session's age
LONGEST_SILENCE_S = 60.0
QUICK_S, SLOW_S = 7.0, 900.0  # time limits of commands; the slow ones read or write much
QUICK = frozenset({"status", "have", "trust"})
NOISE_BYTES = 1 << 20  # of lines that are no answers, in a session
SESSION_BYTES, SESSION_LINES = 64 << 20, 100_000  # of all that a device sends
LOG_BYTES = 1 << 18  # of the log to keep: a Python may print the agent in it
CLOSING_S = 5.0

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

    def __init__(self, entry: Device, process: subprocess.Popen[bytes]) -> None:
        self.entry = entry
        self._process, self._buffer, self._log = process, bytearray(), b""
        self._started, self._noise = False, b""  # noise: output before the first answer
        self._noise_bytes = self._bytes = self._line_count = 0
        self._opened = self._last_contact = self._last_sent = time.monotonic()
        pipes: list[IO[bytes]] = [process.stdin, process.stdout, process.stderr]  # type: ignore[list-item]
        self._in, self._out, self._errors = pipes
        for pipe in pipes:
            os.set_blocking(pipe.fileno(), False)

    def start(self) -> None:
        """Send the agent and wait for its first answer.

        Raises:
            DeviceError: The login or the start of Python failed.
        """
        limit = self._opened + FIRST_ANSWER_S
        self._write(agent.program() + json.dumps({"root": self.entry.root}).encode() + b"\n", limit)
        self._answer("login", None, limit)
        self._started = True

    def call(
        self,
        do: str,
        *,
        on_event: Listener | None = None,
        within_s: float = 0.0,
        payload: bytes = b"",
        **arguments: Any,
    ) -> dict[str, Any]:
        """Call a command of the agent and wait for the answer.

        Args:
            do: A name in `agent.commands.COMMANDS`.
            on_event: Called with every event before the answer.
            within_s: Time limit in seconds; 0: that of the command.
            payload: Bytes that follow the request.
            arguments: Arguments of the command.

        Raises:
            RefusedError: The agent answers with an error.
            DeviceError: The connection was lost, or the answer is not as in `answers`.
        """
        if payload:
            arguments["payload"] = len(payload)
        limit = time.monotonic() + (within_s or (QUICK_S if do in QUICK else SLOW_S))
        self._write(json.dumps({"do": do, **arguments}).encode() + b"\n" + payload, limit)
        return self._answer(do, on_event, limit)

    def upload(
        self, digest: str, size: int, offset: int, stream: IO[bytes], on_bytes: Callable[[int], None]
    ) -> None:
        """Send bytes offset..size of a file, whose SHA-256 is `digest`.

        Raises:
            RefusedError: The disk is full, or the digest of the received file is wrong.
            DeviceError: The connection was lost; the device keeps the received part.
        """
        request = {"do": "upload", "digest": digest, "size": size, "offset": offset}
        self._write(json.dumps(request).encode() + b"\n")
        stream.seek(offset, os.SEEK_CUR)
        left = size - offset
        while left and (block := stream.read(min(BLOCK, left))):
            self._write(block)
            left -= len(block)
            on_bytes(len(block))
        if left:
            self.abort()
            raise DeviceError(
                f"{self.entry.name}: the bundle has {left} bytes less than when it was opened",
                hint="make the bundle again, and do not change it during a deployment",
            )
        self._answer("upload", None, time.monotonic() + SLOW_S)

    def abort(self) -> None:
        """Close the connection at once; callable from any thread."""
        self._process.kill()

    def _write(self, data: bytes, limit: float = math.inf) -> None:
        left = memoryview(data)
        try:
            while left:
                if not self._wait(limit, to_write=True):
                    raise BrokenPipeError
                with suppress(BlockingIOError):
                    left = left[os.write(self._in.fileno(), left) :]
                    self._last_contact = self._last_sent = time.monotonic()
        except BrokenPipeError:
            self._answer("request", None, time.monotonic() + 5.0)  # raises the agent's last error
            raise self._lost() from None

    def _answer(self, do: str, on_event: Listener | None, limit: float) -> dict[str, Any]:
        for line in self._lines(limit):
            message = answers.parse(self.entry.name, line, strict=self._started)
            if message is None:
                self._noise = (self._noise + line + b"\n")[-2000:]  # output of a login script
                self._noise_bytes += len(line) + 1
                if self._noise_bytes > NOISE_BYTES:
                    raise self._too_much(f"{NOISE_BYTES >> 20} MiB of lines that are no answers")
            elif "error" in message:
                answers.check(self.entry.name, do, message, answer_types.Refusal)
                raise RefusedError(
                    f"{self.entry.name}: {message['error']}", hint=message["hint"], code=message["code"]
                )
            elif "ok" in message:
                kind = answer_types.ANSWERS.get(do, dict[str, object])
                answer: dict[str, Any] = answers.check(self.entry.name, do, message["ok"], kind)
                return answer
            else:
                event = answers.check(self.entry.name, do, message.get("event"), dict[str, object])
                if on_event is not None:
                    on_event(event)
        raise self._lost()

    def _lines(self, limit: float) -> Iterator[bytes]:
        checked = 0  # bytes of the buffer without a line break
        while True:
            end = self._buffer.find(b"\n", checked)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                checked = 0
                self._line_count += 1
                if self._line_count > SESSION_LINES:
                    raise self._too_much(f"more than {SESSION_LINES} lines")
                if line.strip():
                    yield line
            elif time.monotonic() > limit:
                self.abort()
                return
            else:
                checked = len(self._buffer)
                if checked > answers.LINE_BYTES:
                    raise self._too_much(f"a line of more than {answers.LINE_BYTES >> 20} MiB")
                if not self._wait(limit):
                    return

    def _wait(self, limit: float, *, to_write: bool = False) -> bool:
        """Wait for output of the agent, or until it reads; False: the connection ended, or was too slow."""
        readers = [self._out, self._errors]
        while True:
            now = time.monotonic()
            silence_s = min(SILENCE_S + (now - self._opened) / 10, LONGEST_SILENCE_S)
            give_up = min(limit, self._last_contact + (silence_s if self._started else PROMPT_S))
            if not to_write and now > self._last_sent + KEEPALIVE_S:
                with suppress(BlockingIOError, BrokenPipeError):
                    os.write(self._in.fileno(), b"\n")
                self._last_sent = now
            wait_s = max(0.0, min(give_up - now, KEEPALIVE_S))
            readable, writable, _ = select.select(readers, [self._in] if to_write else [], [], wait_s)
            if self._errors in readable:
                block = os.read(self._errors.fileno(), LOG_BYTES)
                self._log = (self._log + block)[-LOG_BYTES:]
                if not block:
                    readers.remove(self._errors)
            if self._out in readable:
                block = os.read(self._out.fileno(), BLOCK)
                self._buffer += block
                self._bytes += len(block)
                self._last_contact = time.monotonic()
                if self._bytes > SESSION_BYTES:
                    raise self._too_much(f"{SESSION_BYTES >> 20} MiB")
                if not to_write or not block:
                    return bool(block)
                if len(self._buffer) > answers.LINE_BYTES:
                    raise self._too_much(f"{answers.LINE_BYTES >> 20} MiB before it reads")
            if writable:
                return True
            if self._out not in readable and time.monotonic() >= give_up:
                if not self._started and (prompt := printable(bytes(self._buffer[-1000:]))):
                    self.abort()
                    raise DeviceError(
                        f"{self.entry.name}: a login script waits for input: {prompt[-100:]!r}",
                        hint="end the script early where there is no terminal: `[ -t 0 ] || return`",
                    )
                if self._started or time.monotonic() >= limit:
                    self.abort()
                    return False
                self._last_contact = time.monotonic()  # no prompt: until the limit

    def _too_much(self, what: str) -> DeviceError:
        self.abort()
        return DeviceError(
            f"{self.entry.name}: the device sends {what}",
            hint="a login must print nothing: check its scripts, and that it is the device you expect",
        )

    def _lost(self) -> DeviceError:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        end = time.monotonic() + (0.3 if code == -signal.SIGKILL else 2.0)  # ssh's other processes may write
        while select.select([self._errors], [], [], max(0.0, end - time.monotonic()))[0]:
            block = os.read(self._errors.fileno(), LOG_BYTES)
            self._log = (self._log + block)[-LOG_BYTES:]
            if not block:
                break
        log = self._log.decode(errors="replace")
        if self._started and code == -signal.SIGKILL:  # by `abort`
            return DeviceError(
                f"{self.entry.name}: the connection was lost (no answer in time)",
                hint="check the network and the device's load; then deploy again: the upload resumes",
            )
        if self._started:
            return explain(self.entry, code, log)
        return explain_start(self.entry, code, f"{log}\n{printable(self._noise + bytes(self._buffer))}")


@contextmanager
def connect(entry: Device) -> Iterator[AgentSession]:
    """Open a connection to a device and start the agent there.

    Raises:
        DeviceError: The device cannot be reached, or has no Python.
    """
    command = command_line(entry, [*entry.python_words, "-c", agent.START])
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, pipesize=PIPE)
    except OSError as error:
        raise DeviceError(
            f"{entry.name}: cannot run {command[0]}: {error.strerror}",
            hint="install python3, or set python in the inventory"
            if entry.local
            else "install the OpenSSH client",
        ) from error
    session = AgentSession(entry, process)
    try:
        session.start()
        yield session
    finally:
        for end in (process.stdin, process.stdout, process.stderr):
            if end is not None:
                end.close()
        try:
            process.wait(CLOSING_S)  # the agent exits at the end of its input
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _rebuild(message: str, hint: str, code: str) -> RefusedError:
    return RefusedError(message, hint=hint, code=code)
