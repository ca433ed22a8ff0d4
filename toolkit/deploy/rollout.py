"""Many devices at once: canaries first, so many at a time, and an end when too many fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass

from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.deploy.agent_client import Session, connect
from edgeship.toolkit.deploy.inventory import Entry
from edgeship.toolkit.deploy.release import Connect, Outcome

Tell = Callable[[str, str, str], None]  # device, state, detail
Work = Callable[[Entry, Callable[[str, str], None], Connect], Outcome]

STOPPED = "the rollout was stopped before its turn"
CUT = "its connection was cut by the interruption; what was live still is"


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    """How a rollout goes through the fleet.

    Attributes:
        parallel: Devices worked on at once.
        canaries: Devices that go first, alone; if one of them fails, nothing else is touched.
        max_failures: Share of all devices that may fail before the rest is left alone.
    """

    parallel: int = 8
    canaries: int = 0
    max_failures: float = 0.1


class Connections:
    """The open connections of a rollout, so that an interruption can cut them."""

    def __init__(self) -> None:
        self.were_cut = False
        self._open: set[Session] = set()
        self._lock = threading.Lock()

    @contextmanager
    def connect(self, entry: Entry) -> Iterator[Session]:
        """As `session.connect`."""
        with connect(entry) as session:
            with self._lock:
                self._open.add(session)
                if self.were_cut:
                    session.abort()
            try:
                yield session
            finally:
                with self._lock:
                    self._open.discard(session)

    def cut(self) -> None:
        """End all that are open, and all that will be."""
        with self._lock:
            self.were_cut = True
            for session in self._open:
                session.abort()


def rollout(entries: Sequence[Entry], work: Work, options: RolloutOptions, tell: Tell) -> list[Outcome]:
    """Do the work on every device.

    Running it again goes on where it was interrupted: devices that have the release answer "unchanged".

    Args:
        entries: The devices; the first `options.canaries` are the canaries.
        work: What to do with one device; it may raise ToolkitError.
        options: How to go through them.
        tell: Told the state of each device, from several threads.

    Returns:
        One outcome for each device, in their order. After Ctrl-C those at work are "interrupted", and the
        rest "skipped"; what was live on them still is.
    """
    outcomes: dict[str, Outcome] = {}
    connections = Connections()

    def one(entry: Entry) -> Outcome:
        try:
            outcome = work(entry, lambda state, detail: tell(entry.name, state, detail), connections.connect)
        except ToolkitError as error:
            outcome = Outcome(entry.name, "failed", error=str(error), hint=error.hint)
            if connections.were_cut:
                outcome = Outcome(entry.name, "interrupted", error=CUT, hint="deploy again")
        tell(entry.name, outcome.state, outcome.error)
        return outcome

    def failed() -> int:
        return sum(outcome.state == "failed" for outcome in outcomes.values())

    canaries, rest = entries[: options.canaries], entries[options.canaries :]
    with ThreadPoolExecutor(options.parallel) as pool:
        running: set[Future[Outcome]] = set()
        try:
            for group, allowed in ((canaries, 0), (rest, int(options.max_failures * len(entries)))):
                waiting = list(reversed(group))
                while running or (waiting and failed() <= allowed):
                    while waiting and len(running) < options.parallel and failed() <= allowed:
                        running.add(pool.submit(one, waiting.pop()))
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    outcomes |= {outcome.device: outcome for outcome in (each.result() for each in done)}
                if failed() > allowed:
                    break
        except KeyboardInterrupt:
            connections.cut()
            outcomes |= {outcome.device: outcome for outcome in (each.result() for each in running)}
    for entry in entries:
        if entry.name not in outcomes:
            outcomes[entry.name] = Outcome(entry.name, "skipped", error=STOPPED, hint="deploy again")
            tell(entry.name, "skipped", STOPPED)
    return [outcomes[entry.name] for entry in entries]
