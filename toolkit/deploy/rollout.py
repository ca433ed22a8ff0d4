"""Roll out to many devices: canaries first, limited parallelism, stop after too many failures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from edgeship.toolkit.core import signals
from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.deploy.agent_client import AgentSession, connect
from edgeship.toolkit.deploy.bundle import Bundle
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.release import Connect, DeployOptions, DeployOutcome, UnknownStateError, deploy

OnState = Callable[[str, str, str], None]  # device, state, detail
Work = Callable[[Device, Callable[[str, str], None], Connect], DeployOutcome]

STOPPED = "not started: the rollout was stopped"
CUT = "connection closed by the interruption; the live release is unchanged"


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """Options of a rollout.

    Attributes:
        parallel: Devices processed at once.
        canaries: Devices that are deployed first; if one fails, the others are skipped.
        max_failures: Share of all devices that may fail; beyond it the rest is skipped.
    """

    parallel: int = 8
    canaries: int = 0
    max_failures: float = 0.1


class Connections:
    """Open connections of a rollout, to close them on an interruption."""

    def __init__(self) -> None:
        self.closed = False
        self._open: set[AgentSession] = set()
        self._lock = threading.Lock()

    @contextmanager
    def connect(self, entry: Device) -> Iterator[AgentSession]:
        """See `agent_client.connect`."""
        with connect(entry) as session:
            with self._lock:
                self._open.add(session)
                if self.closed:
                    session.abort()
            try:
                yield session
            finally:
                with self._lock:
                    self._open.discard(session)

    def close(self) -> None:
        """Close all connections, and those opened later."""
        with self._lock:
            self.closed = True
            for session in self._open:
                session.abort()


def deploy_all(
    entries: Sequence[Device],
    bundle: Bundle,
    on_state: OnState,
    options: DeployOptions | None = None,
    order: RolloutOptions | None = None,
) -> list[DeployOutcome]:
    """Deploy a bundle to every device (see `rollout`)."""
    limits = options or DeployOptions()
    return rollout(
        entries,
        lambda entry, report_state, connect: deploy(entry, bundle, limits, report_state, connect),
        order or RolloutOptions(),
        on_state,
    )


def rollout(
    entries: Sequence[Device], work: Work, options: RolloutOptions, on_state: OnState
) -> list[DeployOutcome]:
    """Process every device.

    A second run resumes an interrupted one: devices that have the release are "unchanged".

    Args:
        entries: The devices; the first `options.canaries` are the canaries.
        work: Function for one device; it may raise ToolkitError.
        options: Parallelism, canaries and failure limit.
        on_state: Called with each state of a device, from several threads.

    Returns:
        One outcome for each device, in order. After Ctrl-C running devices are "interrupted" and the rest is
        "skipped"; their live releases are unchanged.
    """
    outcomes: dict[str, DeployOutcome] = {}
    connections = Connections()

    def one(entry: Device) -> None:
        try:
            outcome = work(
                entry, lambda state, detail: on_state(entry.name, state, detail), connections.connect
            )
        except ToolkitError as error:
            unknown = isinstance(error, UnknownStateError)
            state = "unknown" if unknown else "failed"
            outcome = DeployOutcome(entry.name, state, error=str(error), hint=error.hint)
            if connections.closed and not unknown:
                outcome = DeployOutcome(entry.name, "interrupted", error=CUT, hint="deploy again")
        except Exception as error:  # the other devices go on, and the report is written
            logging.getLogger(__name__).debug("%s: unexpected error", entry.name, exc_info=True)
            message = f"{entry.name}: unexpected {type(error).__name__}: {error}"
            outcome = DeployOutcome(
                entry.name, "failed", error=message, hint="report it: a fault of edgeship"
            )
        outcomes[entry.name] = outcome  # here: an interrupt may lose the future of a device that has started
        on_state(entry.name, outcome.state, outcome.error)

    def failed() -> int:
        return sum(outcome.state in {"failed", "unknown"} for outcome in list(outcomes.values()))

    canaries, rest = entries[: options.canaries], entries[options.canaries :]
    with ThreadPoolExecutor(options.parallel) as pool:
        running: set[Future[None]] = set()
        try:
            with signals.interrupts():
                for group, allowed in ((canaries, 0), (rest, int(options.max_failures * len(entries)))):
                    waiting = list(reversed(group))
                    while running or (waiting and failed() <= allowed):
                        while waiting and len(running) < options.parallel and failed() <= allowed:
                            running.add(pool.submit(one, waiting.pop()))
                        running = wait(running, return_when=FIRST_COMPLETED).not_done
                    if failed() > allowed:
                        break
        except KeyboardInterrupt:
            connections.close()
    for entry in entries:
        if entry.name not in outcomes:
            outcomes[entry.name] = DeployOutcome(entry.name, "skipped", error=STOPPED, hint="deploy again")
            on_state(entry.name, "skipped", STOPPED)
    return [outcomes[entry.name] for entry in entries]
