"""Import SDKs in separate processes, which may crash or hang."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from typing import Any, Callable, Dict, Tuple, Union

from . import failures
from .failures import Failure

_BLOCK = 1 << 16

Work = Callable[[], Any]
Outcome = Union[Any, Failure]
Child = Tuple[int, int]  # process, the end of a pipe that its answer is read from


def run_isolated(work: Dict[str, Work], limit_s: float) -> Dict[str, Outcome]:
    """Run functions in parallel processes; return the result or the failure of each.

    The processes are forks: nothing is started or unpacked twice. Threads do not survive a fork, so no SDK
    may have been imported before.

    Args:
        work: Name -> function with a JSON result.
        limit_s: Time limit in seconds.
    """
    children: Dict[str, Child] = {}
    found: Dict[str, Outcome] = {}
    give_up_s = time.monotonic() + limit_s
    try:
        for name, function in work.items():
            children[name] = _start(function)
        outputs = _read({name: pipe for name, (_, pipe) in children.items()}, give_up_s)
        for name, data in outputs.items():
            found[name] = _outcome(name, data, os.waitpid(children[name][0], 0)[1])
    finally:
        for name, (process, pipe) in children.items():
            os.close(pipe)
            if name not in found:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
    hanging = {
        name: Failure(
            "hangs", f"{name} did not answer within {limit_s:g} s", f"importing {name} hangs",
            "see whether the disk or the driver hangs (dmesg); reboot, then reinstall it",
        )
        for name in work
        if name not in found
    }  # fmt: skip
    return {**found, **hanging}


def _start(function: Work) -> Child:
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # core files may fill the disk
            data = json.dumps(_result(function)).encode()
            while data:
                data = data[os.write(writing, data) :]
        finally:
            os._exit(0)  # nothing of an SDK that may be broken runs at the end
    os.close(writing)
    return process, reading


def _result(function: Work) -> Dict[str, Any]:
    try:
        return {"value": function()}
    except BaseException as error:  # also a module that calls sys.exit
        failure = failures.from_error(error)
        return {"failure": [failure.code, str(failure), failure.cause, failure.cure]}


def _read(pipes: Dict[str, int], give_up_s: float) -> Dict[str, bytes]:
    """All that comes through each pipe until its other end closes; pipes that stay open are left out."""
    parts: Dict[str, bytes] = dict.fromkeys(pipes, b"")
    whole: Dict[str, bytes] = {}
    while len(whole) < len(pipes):
        left_s = max(0.0, give_up_s - time.monotonic())
        ready = select.select([pipe for name, pipe in pipes.items() if name not in whole], [], [], left_s)[0]
        if not ready:
            break
        for name, pipe in pipes.items():
            if pipe in ready:
                block = os.read(pipe, _BLOCK)
                parts[name] += block
                if not block:
                    whole[name] = parts[name]
    return whole


def _outcome(name: str, data: bytes, status: int) -> Outcome:
    if data and status == 0:
        record = json.loads(data.decode())
        return record["value"] if "value" in record else Failure(*record["failure"])
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    ended = f"signal {number}" if number else f"exit code {os.WEXITSTATUS(status)}"
    message = f"importing {name} ended its process: {ended}"
    known = failures.translate_exit(-number)
    if known is None:
        return Failure("crashed", message, message, f"reinstall {name}")
    return Failure(known.code, message, f"{message}: {known.cause}", known.cure)
