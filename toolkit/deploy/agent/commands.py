"""Agent commands.

When the client disconnects, the agent kills the running program, removes the staged release, releases the
lock and exits.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeship.toolkit.deploy.agent.object_store import ObjectStore, read_json
from edgeship.toolkit.deploy.agent.policy import Policy
from edgeship.toolkit.deploy.agent.protocol import Client, DisconnectedError, RefusedError, disk_refusal
from edgeship.toolkit.deploy.agent.releases import Releases, now
from edgeship.toolkit.deploy.agent.subprocesses import run_program

COMMANDS = (
    "status", "have", "lock", "upload", "stage", "run", "commit", "discard", "activate", "deactivate",
    "prune", "trust",
)  # fmt: skip
MONITOR_BYTES = 4096
ROLLBACK = "rollback"  # reason of a switch
_MEMORY, _IN_MEMORY = Path("/dev/shm"), re.compile(r"edgeship-[0-9a-f]{16}\.json\Z")  # noqa: S108 (the monitor's)
LOCK_PROBE_S = 0.2  # `status` holds the lock briefly to test it: shorter waits are not reported
_COMPONENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")  # of a path inside a bundle


class Agent:
    """Methods named in COMMANDS are the commands; commands that change state need `lock` first."""

    def __init__(self, client: Client, root: str) -> None:
        self._client = client
        self.root = Path(os.path.expanduser(root)).absolute()  # noqa: PTH111 (raises where HOME is unknown)
        self._objects = ObjectStore(self.root / "objects")
        self._releases = Releases(self.root)
        self._policy = Policy(self.root)
        self._lock_file = self.root / "lock"
        self._lock: int | None = None

    def status(self) -> dict[str, Any]:
        """Return installed and live releases, free space and the lock holder."""
        existing = next(p for p in [self.root, *self.root.parents] if p.exists())
        return {
            "root": str(self.root),
            "hostname": socket.gethostname(),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "free_bytes": shutil.disk_usage(str(existing)).free,
            "takes_signed_only": self._policy.signed_only,
            "policy": self._policy.describe(),
            "locked_by": self._locked_by(),
            "monitor": self._monitor(),
            **self._releases.describe(),
        }

    def have(self, digests: list[str]) -> dict[str, Any]:
        """Return the uploads on the device: {"whole": [digests], "part": {digest: bytes}}."""
        return self._objects.have(digests)

    def lock(self, wait_s: float, who: str) -> dict[str, Any]:
        """Lock the device until this connection ends; roll back an interrupted activation."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(str(self._lock_file), os.O_RDWR | os.O_CREAT, 0o644)
        reported_from = time.monotonic() + LOCK_PROBE_S
        give_up = reported_from + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    os.close(descriptor)
                    raise RefusedError(
                        f"another deployment is running: {self._lock_file.read_text() or 'unknown'}",
                        "deploy again later, or wait longer with --wait SECONDS",
                        "locked",
                    ) from None
                if time.monotonic() >= reported_from:
                    self._client.send({"event": {"waiting_for": self._lock_file.read_text()}})
                self._client.wait(LOCK_PROBE_S / 4)
        with suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{who}, since {now()}".encode(), 0)
        self._lock = descriptor
        return {"recovered": self._releases.recover()}

    def upload(self, digest: str, size: int, offset: int) -> dict[str, Any]:
        """Receive bytes offset..size of a file from the connection."""
        self._need_lock()
        self._objects.receive(self._client, digest, size, offset)
        return {}

    def stage(self, release: str, manifest: str, signature: str | None, paths: list[str]) -> dict[str, Any]:
        """Assemble a release from uploads; verify the signature, then the digest of every file."""
        self._need_lock()
        self._releases.clear_staging()
        folder = self._releases.staging(release)
        folder.mkdir(parents=True)
        self._link_all(
            {"manifest.json": manifest, **({} if signature is None else {"manifest.json.sig": signature})},
            folder,
        )
        if not release.rpartition(".")[0].endswith(manifest[:12]):
            raise RefusedError(f"release {release} has another manifest", "deploy again", "policy")
        self._policy.check(folder, self._releases.times())
        listed = json.loads((folder / "manifest.json").read_text())["files"]
        for path in paths:
            if path not in listed or not all(_COMPONENT.match(part) for part in path.split("/")):
                raise RefusedError(f"{path!r} is not a file of this bundle", "`edgeship bundle RUN`")
        self._link_all({path: listed[path]["sha256"] for path in paths}, folder)
        return {"folder": str(folder)}

    def run(self, argv: list[str], limit_s: float, payload: int = 0) -> dict[str, Any]:
        """Run a program and forward its JSON lines; `payload` bytes become the file "{payload}" of argv."""
        with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
            if payload:
                file = Path(scratch) / "payload"
                file.write_bytes(b"".join(self._client.read_exactly(payload)))
                argv = [str(file) if part == "{payload}" else part for part in argv]
            code, log = run_program(
                self._client,
                _with_python(argv),
                limit_s,
                cwd=scratch,
                variables={},
                on_event=lambda event: self._client.send({"event": event}),
            )
        return {"exit": code, "log": log}

    def commit(self, release: str, record: dict[str, Any]) -> dict[str, Any]:
        """Install the staged release with its record."""
        self._need_lock()
        self._releases.commit(release, record)
        return {}

    def discard(self) -> dict[str, Any]:
        """Remove the staged release."""
        self._need_lock()
        self._releases.clear_staging()
        return {}

    def activate(
        self, release: str, health: list[str], limit_s: float, who: str, why: str, signature: str = ""
    ) -> dict[str, Any]:
        """Switch `current` to a release, run the health check, and switch back if the check fails.

        The health check runs in the folder of the live release, which replaces "{current}" in `health`.
        `signature` is that of the bundle of a release that is installed already.
        """
        self._need_lock()
        if not (self._releases.folder(release) / "release.json").exists():
            raise RefusedError(f"release {release} is not installed", "`edgeship status`")
        folder = self._releases.folder(release)
        if signature:
            self._policy.endorse(folder, signature)
        if why != ROLLBACK:  # which is its operator's decision, and in the history
            self._policy.check(folder, self._releases.times())
        before = self._releases.current()
        failure = self._releases.activate(release, lambda: self._health(health, limit_s, release), who, why)
        if failure is not None:
            if before is not None:  # services that the command restarts return to the old release
                with suppress(OSError):
                    self._health(health, limit_s, before)
            raise RefusedError(
                f"the health check failed: {failure}",
                f"{before or 'no release'} is live, as before; run the health command on the device",
                "health",
            )
        with suppress(OSError):
            self._releases.with_room(lambda: self._policy.raise_floor(folder))
        return {}

    def deactivate(self) -> dict[str, Any]:
        """Make no release live: the way back from the first one."""
        self._need_lock()
        self._releases.deactivate()
        return {}

    def prune(self, keep: int, dry_run: bool) -> dict[str, Any]:
        """Remove old releases."""
        self._need_lock()
        return self._releases.prune(keep, dry_run)

    def trust(self, signers: str, model: str | None, floor: int) -> dict[str, Any]:
        """Accept only bundles signed by one of these from now on (`ssh-keygen` allowed signers)."""
        self._need_lock()
        self._policy.trust(signers, model, floor)
        return {}

    def close(self) -> None:
        """Remove the staged release when the connection ends."""
        if self._lock is not None:
            self._releases.clear_staging()

    def _link_all(self, files: dict[str, str], folder: Path) -> None:
        """Link objects into a folder, by path; if any are damaged, remove all of these and raise."""
        damaged = self._objects.remove_damaged(files.values())
        if damaged:
            names = ", ".join(path for path, digest in files.items() if digest in damaged)
            raise RefusedError(
                f"the device's copies of {names} were damaged and are removed",
                "check the device's storage (`dmesg`), and deploy again",
                "damaged",
            )
        for path, digest in files.items():
            self._objects.link(digest, folder / path)

    def _monitor(self) -> dict[str, Any] | None:
        """Return the newest state that the application's monitor wrote (targets/runner/watch.py)."""
        stored = self.root / "monitor.json"
        state = read_json(stored)
        if not isinstance(state, dict):
            return None
        name = state.get("memory")
        if isinstance(name, str) and _IN_MEMORY.match(name):
            fresh = _MEMORY / name
            with suppress(OSError):
                newer = read_json(fresh) if fresh.lstat().st_uid == stored.stat().st_uid else None
                if isinstance(newer, dict) and newer.get("reference") == state.get("reference"):
                    state = newer
        keys = ("frames", "evidence", "frames_to_false_alarm", "alarm", "updated")
        known = {key: state.get(key) for key in keys}
        try:
            size = len(json.dumps(known, allow_nan=False))
        except ValueError:
            return None
        return known if size <= MONITOR_BYTES else None

    def _need_lock(self) -> None:
        assert self._lock is not None, "this command needs the lock"

    def _locked_by(self) -> str | None:
        """Return the holder of the lock if it is another connection."""
        if self._lock is not None or not self._lock_file.exists():
            return None
        descriptor = os.open(str(self._lock_file), os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._lock_file.read_text() or "unknown"
        finally:
            os.close(descriptor)
        return None

    def _health(self, argv: list[str], limit_s: float, release: str) -> str | None:
        """Run the health check; return the failure, or None."""
        current = str(self.root / "current")
        argv = _with_python([part.replace("{current}", current) for part in argv])
        variables = {"EDGESHIP_ROOT": str(self.root), "EDGESHIP_RELEASE": release}
        reasons: list[str] = []

        def listen(event: dict[str, Any]) -> None:
            reasons.extend(map(str, event.get("reasons") or ()))
            reasons.extend([str(event["error"].get("message"))] if event.get("error") else [])

        try:
            code, log = run_program(
                self._client, argv, limit_s, cwd=current, variables=variables, on_event=listen
            )
        except RefusedError as error:
            return str(error)
        shown = "; ".join(reasons) or log.strip()[-500:] or "no output"
        return None if code == 0 else f"exit code {code}: {shown}"


def main() -> int:
    """Serve one client until it disconnects."""
    client = Client()
    agent: Agent | None = None
    try:
        agent = Agent(client, client.request()["root"])
        client.send({"ok": {}})
        client.start_heartbeat()
        while True:
            request = client.request()
            do = request.pop("do")
            assert do in COMMANDS, do
            try:
                client.send({"ok": getattr(agent, do)(**request)})
            except RefusedError as error:
                client.send({"error": str(error), "hint": error.hint, "code": error.code})
                if error.fatal:
                    return 1
            except OSError as error:
                refusal = disk_refusal(error, f"during {do}")
                client.send({"error": str(refusal), "hint": refusal.hint, "code": refusal.code})
    except DisconnectedError:
        return 0
    finally:
        if agent is not None:
            agent.close()


def _with_python(argv: list[str]) -> list[str]:
    """Replace "{python}" by the Python of the agent."""
    return [sys.executable if part == "{python}" else part for part in argv]
