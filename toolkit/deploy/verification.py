"""Verify a release on its device over a connection; what the device answers is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from edgeship import targets
from edgeship.toolkit.deploy import answer_types, answers, checks
from edgeship.toolkit.deploy.agent import protocol
from edgeship.toolkit.deploy.agent_client import AgentSession, RefusedError
from edgeship.toolkit.deploy.bundle import Bundle
from edgeship.toolkit.deploy.checks import OnState
from edgeship.toolkit.deploy.inventory import Device


def probe(session: AgentSession, target: str | None = None) -> dict[str, Any]:
    """Return facts, backends and problems of a device from the runner (see its `cli`); writes nothing there.

    Args:
        session: The connection.
        target: Backend to probe (importing the others takes most of the time); None: all.

    Raises:
        DeviceError: The runner failed on the device.
    """
    only = ["--backend", target] if target else []
    archive = targets.runner_archive([target] if target else targets.names())
    with _as_device_error():
        return _run_runner(session, ["{payload}", "probe", *only], limit_s=120.0, payload=archive)


def check_compatible(entry: Device, bundle: Bundle, probed: Mapping[str, Any]) -> None:
    """Raise if a device cannot run a bundle, before anything is sent.

    Raises:
        DeviceError: The bundle has no graph for the device's target, or the device cannot run it.
    """
    with _as_device_error():
        checks.check_compatible(entry.name, entry.target, bundle.manifest["targets"], probed)


def verify(
    session: AgentSession,
    entry: Device,
    bundle: Bundle,
    folder: str,
    probed: Mapping[str, Any],
    *,
    limit_s: float,
    timing_s: float,
    on_state: OnState,
) -> dict[str, Any]:
    """Build, test and measure a staged release on its device.

    Args:
        session: The connection, holding the lock.
        entry: The device.
        bundle: The staged bundle.
        folder: Staging folder on the device.
        probed: Result of `probe`.
        limit_s: Time limit of each step in seconds.
        timing_s: Seconds of timed inferences.
        on_state: Called with every step and its progress.

    Returns:
        The release's record: measurements, device, build.

    Raises:
        DeviceError: A step failed, or a gate was missed.
    """
    with _as_device_error():
        return checks.verify(
            lambda arguments, on_progress: _run_runner(session, arguments, limit_s, on_progress),
            bundle.manifest,
            folder,
            probed,
            device=entry.name,
            bundle=bundle.id,
            signed=bundle.signature_file is not None,
            target=entry.target,
            timing_s=timing_s,
            on_state=on_state,
        )


@contextmanager
def _as_device_error() -> Iterator[None]:
    """Convert a refusal of the checks to the host's error."""
    try:
        yield
    except protocol.RefusedError as error:
        raise RefusedError(str(error), hint=error.hint, code=error.code) from error


def _run_runner(
    session: AgentSession,
    arguments: Sequence[str],
    limit_s: float,
    on_progress: Callable[[str], None] = lambda _: None,
    payload: bytes = b"",
) -> dict[str, Any]:
    """Run the runner on a device and return its result.

    Raises:
        DeviceError: The connection was lost, the time limit exceeded, or the answer is not as in `answers`.
        protocol.RefusedError: The runner failed or was killed, or a check failed.
    """
    name, command = session.entry.name, arguments[1]
    result: dict[str, Any] = {}

    def listen(event: dict[str, Any]) -> None:
        if event.get("event") == "result":
            result.update(event)
        elif event.get("event") == "progress":
            answers.check(name, command, event, answer_types.Progress)
            on_progress(checks.progress(event))

    answer = session.call(
        "run",
        on_event=listen,
        within_s=limit_s + 60.0,
        payload=payload,
        argv=[checks.runner_python(session.entry.python_words), *arguments],
        limit_s=limit_s,
    )
    if answer["exit"] == checks.NEGATIVE:
        answers.check(name, command, result.get("reasons") or [], list[str])
    elif not result.get("ok"):
        answers.check(name, command, result.get("error") or {"message": ""}, answer_types.Fault)
    elif answer["exit"] >= 0:
        answers.check(name, command, result, answer_types.RESULTS[command])
    outcome: dict[str, Any] = checks.outcome(name, command, answer["exit"], answer["log"], result)
    return outcome
