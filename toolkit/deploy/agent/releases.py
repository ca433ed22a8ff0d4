"""Install releases on the device and switch the live one atomically.

<root>/releases/<name>/          bundle files (hard links to objects), engine, release.json
<root>/releases/.staging-<name>/ release under test, not installed yet
<root>/current -> releases/...   live release; replaced by rename only
<root>/pending.json              exists from before a switch until its health check has passed
<root>/state.json                history of switches, releases marked bad
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable  # noqa: UP035 (Python 3.8)

from edgeship.toolkit.deploy.agent.object_store import read_json, sync_folder, write_json
from edgeship.toolkit.deploy.agent.protocol import RefusedError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}\Z")
KEYED = re.compile(r"[0-9a-f]{32}")  # prefix of the names of uploads and built engines
CUT_OFF = "interrupted before its health check passed"


class Releases:
    """Releases below a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._pending = root / "pending.json"

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
        try:
            name = Path(os.readlink(str(self.root / "current"))).name  # noqa: PTH115 (Python 3.8)
        except OSError:
            return None
        return name if (self.root / "releases" / name).exists() else None

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
            "pending": read_json(self._pending),
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
        """
        before = self.current()
        write_json(self._pending, {"from": before, "to": name})
        disarm = self._start_guard(before, name)
        failure: str | None = CUT_OFF
        try:
            self._set_current(name)
            failure = check()
        finally:
            if failure is None:
                self._pending.unlink()
            else:
                self._roll_back(before, name, failure)
            disarm()
        if failure is None:
            state = self._state()
            state["history"].append({"release": name, "at": now(), "who": who, "why": why})
            state["bad"].pop(name, None)
            write_json(self.root / "state.json", state)
        return failure

    def recover(self) -> str | None:
        """Roll back an interrupted activation; return the release that was rolled back, or None."""
        self.clear_staging()
        pending = read_json(self._pending)
        if pending is None:
            return None
        self._roll_back(pending["from"], pending["to"], CUT_OFF)
        name: str = pending["to"]
        return name

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

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = read_json(self.root / "state.json") or {"history": [], "bad": {}}
        return state

    def _roll_back(self, before: str | None, name: str, reason: str) -> None:
        """Mark a release bad and make the earlier one live; safe to repeat after a power cut."""
        state = self._state()
        state["bad"][name] = reason
        write_json(self.root / "state.json", state)
        self._set_current(before)
        if self._pending.exists():
            self._pending.unlink()

    def _set_current(self, name: str | None) -> None:
        """Point `current` to a release by a rename: a reader gets the old or the new release."""
        link, temporary = self.root / "current", self.root / ".current"
        if temporary.is_symlink():
            temporary.unlink()
        if name is not None:
            temporary.symlink_to(f"releases/{name}")
            temporary.replace(link)
        elif link.is_symlink():
            link.unlink()
        sync_folder(self.root)

    def _start_guard(self, before: str | None, name: str) -> Callable[[], None]:
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
                    self._roll_back(before, name, CUT_OFF)
            finally:
                os._exit(0)
        os.close(reader)

        def disarm() -> None:
            os.write(writer, b".")
            os.close(writer)
            os.waitpid(pid, 0)

        return disarm


def now() -> str:
    """Return the time in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
