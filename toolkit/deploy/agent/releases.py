"""Install releases on the device and switch the live one atomically.

<root>/releases/<name>/          bundle files (hard links to objects), engine, release.json
<root>/releases/.staging-<name>/ release under test, not installed yet
<root>/current                   link to the live release: releases/<name> once its health check has passed,
                                 until then releases/<earlier>/../<name>, or releases/./<name> without one
<root>/state.json                history of switches, releases marked bad: written after a switch
<root>/.reserve-<n>              room for links and records when the disk is full

The link is the only record that decides: one rename makes a release live on trial, one commits it or switches
back. A switch makes its links first; later steps allocate nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, TypeVar  # noqa: UP035 (Python 3.8)

from edgeship.toolkit.deploy.agent.object_store import read_json, sync_folder, write_json
from edgeship.toolkit.deploy.agent.protocol import RefusedError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}\Z")
KEYED = re.compile(r"[0-9a-f]{32}")  # prefix of the names of uploads and built engines
CUT_OFF = "interrupted before its health check passed"
HISTORY = 200  # switches to remember
RESERVES, RESERVE_BYTES = 4, 16 << 10  # three links and a record
TRIES = 3  # of switching back

T = TypeVar("T")


class Releases:
    """Releases below a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._current = root / "current"

    def folder(self, name: str) -> Path:
        """Return the folder of a release."""
        if not NAME.match(name):
            raise RefusedError(f"{name!r} is not a release name", "`edgeship status`")
        return self.root / "releases" / name

    def staging(self, name: str) -> Path:
        """Return the folder of a release under test."""
        return self.folder(name).with_name(f".staging-{name}")

    def installed(self) -> list[Path]:
        """Return the folders of all releases."""
        folder = self.root / "releases"
        return sorted(p for p in folder.iterdir() if NAME.match(p.name)) if folder.exists() else []

    def current(self) -> str | None:
        """Return the name of the live release."""
        name = self._target()[-1]
        return name if NAME.match(name) and (self.root / "releases" / name).exists() else None

    def pending(self) -> dict[str, str | None] | None:
        """Return a release that is live on trial and the one before: {"from", "to"}; None without one."""
        _, *earlier, name = self._target()
        return {"from": earlier[0] if len(earlier) == 2 else None, "to": name} if earlier else None

    def previous(self) -> str | None:
        """Return the release to roll back to: the last one that was live before and is not marked bad."""
        state, current = self._state(), self.current()
        installed = {folder.name for folder in self.installed()}
        for entry in reversed(state["history"]):
            name: str = entry["release"]
            if name != current and name in installed and name not in state["bad"]:
                return name
        return None

    def describe(self) -> dict[str, Any]:
        """Return live, previous and pending release, the records of all releases, and the history."""
        return {
            "current": self.current(),
            "previous": self.previous(),
            "pending": self.pending(),
            "releases": {f.name: read_json(f / "release.json") for f in self.installed()},
            **self._state(),
        }

    def commit(self, name: str, record: dict[str, Any]) -> None:
        """Install a staged release with its record."""
        staging, folder = self.staging(name), self.folder(name)
        if self.current() == name:
            raise RefusedError(f"{name} is live already", "`edgeship status`")
        write_json(staging / "release.json", record)
        for path in staging.rglob("*"):
            if path.is_file():
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
        shutil.rmtree(str(folder), ignore_errors=True)  # a bad or abandoned release of the same name
        staging.replace(folder)
        sync_folder(folder.parent)

    def activate(self, name: str, check: Callable[[], str | None], who: str, why: str) -> str | None:
        """Switch `current` to a release; switch back if the health check fails.

        If this process is killed before the check ends, a guard process switches back at once; after a power
        cut, the next `recover` does.

        Args:
            name: Name of the release.
            check: Health check; returns the failure, or None.
            who: User, for the history.
            why: Command, for the history.

        Returns:
            The failure; None if the release is live.

        Raises:
            RefusedError: The switch cannot be prepared (nothing has changed), or the file system refuses to
                switch back: the release is live on trial.
        """
        before = self.current()
        trial = self._link("trial", f"releases/{before}/../{name}" if before else f"releases/./{name}")
        proven = self._link("proven", f"releases/{name}")
        self._link("back", f"releases/{before}" if before else "")
        disarm = self._start_guard()
        failure: str | None = CUT_OFF
        try:
            self._rename(trial)
            failure = check()
            if failure is None:
                proven.replace(self._current)  # the commit
        except OSError as error:
            failure = f"{error.strerror or error}: {error.filename}"
        finally:
            if failure is not None:
                self._switch_back()
                self._record(bad={name: failure})
            disarm()
        if failure is None:
            with suppress(OSError):
                sync_folder(self.root)
            self._record(bad={name: None}, entry={"release": name, "at": now(), "who": who, "why": why})
        return failure

    def deactivate(self) -> None:
        """Remove the link `current`: no release is live."""
        with suppress(FileNotFoundError):
            self._current.unlink()
        sync_folder(self.root)

    def recover(self) -> str | None:
        """Roll back an interrupted activation; return the release that was rolled back, or None.

        Also records a switch for whose record there was no room, and reserves room again.
        """
        self.clear_staging()
        trial, state, current = self.pending(), self._state(), self.current()
        if trial is not None:
            back = f"releases/{trial['from']}" if trial["from"] else ""
            if self._read_link(self.root / ".current-back") != back:
                self._link("back", back)
            self._switch_back()
            self._record(bad={str(trial["to"]): CUT_OFF})
        elif current and (not state["history"] or state["history"][-1]["release"] != current):
            self._record(
                bad={current: None},
                entry={"release": current, "at": now(), "who": "unknown", "why": "recorded later"},
            )
        with suppress(OSError):
            self._reserve()
        return None if trial is None else trial["to"]

    def times(self) -> list[str]:
        """Return the UTC times of the switches."""
        return [str(entry.get("at", "")) for entry in self._state()["history"]]

    def clear_staging(self) -> None:
        """Remove staged releases."""
        for folder in (self.root / "releases").glob(".staging-*"):
            shutil.rmtree(str(folder), ignore_errors=True)

    def prune(self, keep: int, dry_run: bool) -> dict[str, Any]:
        """Remove all but the last `keep` releases, the live one and the one to roll back to.

        Also removes uploaded files and built engines that no remaining release uses.
        """
        order = [entry["release"] for entry in reversed(self._state()["history"])]
        folders = sorted(
            self.installed(), key=lambda f: order.index(f.name) if f.name in order else len(order)
        )
        retained = {folder.name for folder in folders[:keep]} | {self.current(), self.previous()}
        removed = [folder for folder in folders if folder.name not in retained]
        files = [path for folder in removed for path in folder.rglob("*") if path.is_file()]
        links = Counter(path.stat().st_ino for path in files)
        for name in ("objects", "engines"):  # only its own link is left: no release uses it
            stored = (path for path in (self.root / name).rglob("*") if KEYED.match(path.name))
            files += [p for p in stored if p.stat().st_nlink - links[p.stat().st_ino] == 1]
        sizes = {path.stat().st_ino: path.stat().st_size for path in files}
        if not dry_run:
            for path in files:
                path.unlink()
            for folder in removed:
                shutil.rmtree(str(folder))
        return {"removed": [folder.name for folder in removed], "freed_bytes": sum(sizes.values())}

    def _target(self) -> list[str]:
        """Return the components of the link `current`: releases, [., or earlier release and ..,] release."""
        parts = self._read_link(self._current).split("/")
        if parts[0] != "releases" or len(parts) < 2 or parts[1:-1] not in ([], ["."], [parts[1], ".."]):
            return ["", ""]
        return parts

    @staticmethod
    def _read_link(path: Path) -> str:
        try:
            return os.readlink(str(path))  # noqa: PTH115 (Python 3.8)
        except OSError:
            return ""

    def _state(self) -> dict[str, Any]:
        """Return the history, and the releases marked bad; the one that is live has passed its check."""
        state = read_json(self.root / "state.json")
        state = state if isinstance(state, dict) else {}
        history, bad = state.get("history"), state.get("bad")
        bad = dict(bad) if isinstance(bad, dict) else {}
        if self.pending() is None:
            bad.pop(self.current(), None)
        entries = history if isinstance(history, list) else []
        return {"history": [e for e in entries if isinstance(e, dict) and "release" in e], "bad": bad}

    def _record(self, bad: dict[str, str | None], entry: dict[str, str] | None = None) -> None:
        """Mark releases as bad or good, and append to the history, if there is room; no switch needs it."""
        state = self._state()
        installed = {folder.name for folder in self.installed()}
        marks = {**state["bad"], **bad}
        state["bad"] = {name: why for name, why in marks.items() if why is not None and name in installed}
        state["history"] = [*state["history"], *([entry] if entry else [])][-HISTORY:]
        with suppress(OSError):
            self.with_room(lambda: write_json(self.root / "state.json", state))

    def _reserve(self) -> None:
        for number in range(RESERVES):
            path = self.root / f".reserve-{number}"
            if not path.exists():
                try:
                    path.write_bytes(os.urandom(RESERVE_BYTES))  # zeros may take no room
                except OSError:
                    path.unlink()
                    raise

    def with_room(self, make: Callable[[], T]) -> T:
        """Call a function that makes a file; after a failure give it the reserved room."""
        try:
            return make()
        except OSError:
            for path in self.root.glob(".reserve-*"):
                path.unlink()
            return make()

    def _link(self, name: str, target: str) -> Path:
        """Make a link for a later switch; without a target there is none."""
        path = self.root / f".current-{name}"
        with suppress(FileNotFoundError):
            path.unlink()
        if target:
            self.with_room(lambda: path.symlink_to(target))
        return path

    def _rename(self, link: Path) -> None:
        """Point `current` to another release by a rename: a reader gets the old or the new one."""
        link.replace(self._current)
        sync_folder(self.root)

    def _switch_back(self) -> None:
        """Make the release before a trial live again."""
        back = self.root / ".current-back"
        for tries in range(TRIES):
            try:
                if self.pending() is not None:
                    if back.is_symlink():
                        back.replace(self._current)
                    else:
                        self._current.unlink()
                break
            except OSError as error:
                if tries == TRIES - 1:
                    raise RefusedError(
                        f"cannot switch back: {error.strerror or error}; {self.current()} stays live, "
                        "although its health check has not passed",
                        "check the device's file system (`dmesg`); a deployment or rollback tries again",
                        "stuck",
                    ) from error
        with suppress(OSError):
            sync_folder(self.root)

    def _start_guard(self) -> Callable[[], None]:
        """Start the process that switches back if this one dies; the returned function ends it."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:  # the guard; it inherits the lock, so no deployment starts before it ends
            try:
                os.setsid()
                os.close(writer)
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
                if not os.read(reader, 1):
                    trial = self.pending()
                    if trial is not None:
                        self._switch_back()
                        self._record(bad={str(trial["to"]): CUT_OFF})
            finally:
                os._exit(0)
        os.close(reader)

        def disarm() -> None:
            with suppress(OSError):  # the guard was killed
                os.write(writer, b".")
            os.close(writer)
            os.waitpid(pid, 0)

        return disarm


def now() -> str:
    """Return the time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
