"""Install a bundle on this device, or go back: the same steps and gates as `edgeship deploy`.

    installer install BUNDLE [--journal FILE]   make the bundle's release live
    installer withdraw [--journal FILE]         go back from this update's bundle, where it is live
    installer rollback --journal FILE           undo what the command that wrote the journal has done

In an update that withdraws a bundle, `install` does that. Each command may be repeated. Exit codes: 0 done,
1 refused or failed (the release before is live), 2 wrong usage.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Callable, Sequence  # noqa: UP035 (Python 3.8)

from edgeship.toolkit.deploy import checks, layout
from edgeship.toolkit.deploy.agent.commands import ROLLBACK
from edgeship.toolkit.deploy.agent.object_store import read_json, write_json
from edgeship.toolkit.deploy.agent.protocol import RefusedError
from edgeship.toolkit.deploy.updaters.device.local_agent import LocalAgent

WAIT_S = 60.0  # for another deployment on the device
LIMIT_S = 3600.0  # of each step; the build is the longest
HEALTH_S = 300.0
PROBE_S = 120.0
TIMING_S = 3.0  # of timed inferences
SMALL_BYTES = 8 << 20  # of manifest and signature

_AGAIN = "make the update again: `edgeship bundle RUN --for UPDATER`"

Fetch = Callable[[str], bytes]  # content of a file of the installer


class Packed:
    """Bundle in a tar file."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        raw = self._small(layout.MANIFEST)
        try:
            self.manifest = json.loads(raw.decode())
        except ValueError as error:
            raise RefusedError(f"the bundle's {layout.MANIFEST} is no JSON", _AGAIN, "bundle") from error
        _check(self.manifest)
        self.own = {layout.MANIFEST: raw}
        if layout.SIGNATURE in archive.getnames():
            self.own[layout.SIGNATURE] = self._small(layout.SIGNATURE)
        self.digests = {path: hashlib.sha256(data).hexdigest() for path, data in self.own.items()}
        self.id = layout.bundle_id(self.manifest["name"], self.digests[layout.MANIFEST])

    def paths(self, target: str, *, typed: bool) -> list[str]:
        """Return the files that a device of a target needs, without manifest and signature."""
        needed = {path: file["targets"] for path, file in self.manifest["files"].items()}
        return layout.files_for(needed, target, typed=typed)

    def digest(self, path: str) -> str:
        """Return the SHA-256 of a file."""
        return self.digests.get(path) or str(self.manifest["files"][path]["sha256"])

    def file(self, path: str) -> tuple[int, IO[bytes]]:
        """Return size and content of a file."""
        if path in self.own:
            return len(self.own[path]), io.BytesIO(self.own[path])
        return self.manifest["files"][path]["size_bytes"], self._stream(path)

    def _small(self, path: str) -> bytes:
        with self._stream(path) as stream:
            return stream.read(SMALL_BYTES)

    def _stream(self, path: str) -> IO[bytes]:
        stream = self._archive.extractfile(path) if path in self._archive.getnames() else None
        if stream is None:
            raise RefusedError(f"the bundle has no file {path}", _AGAIN, "bundle")
        return stream


class Installer:
    """Steps on this device.

    Args:
        settings: `updater`, `bundle` (`layout.bundle_id`), and of `updaters.Settings` `target`, `root`,
            `python`, `health`, `keep` and `withdraw`.
        fetch: Returns a file of the installer: agent.program, the runner.
    """

    def __init__(self, settings: dict[str, Any], fetch: Fetch) -> None:
        _check_owner(Path(settings["root"]))
        self._settings, self._fetch = settings, fetch
        self._python: list[str] = settings["python"]
        self._device = platform.node()
        self._agent = LocalAgent(self._python, fetch("agent.program"), settings["root"])

    def close(self) -> None:
        """End the agent."""
        self._agent.close()

    def install(self, bundle: Packed, journal: Path | None) -> str:
        """Make a bundle's release live; on any failure the release before is.

        Raises:
            RefusedError: A step failed, or a gate was missed.
        """
        agent, target = self._agent, self._settings["target"]
        probed = self._probe(target)
        checks.check_compatible(self._device, target, bundle.manifest["targets"], probed)
        release = layout.release_name(bundle.id, target, probed)
        self._lock()
        status = agent.call("status")
        _write(journal, release, status["current"])
        if checks.is_live(status, release):
            return f"{release} is live already"
        installed = checks.is_installed(status, release)
        record = status["releases"][release] if installed else self._build(bundle, release, probed)
        signature = bundle.own.get(layout.SIGNATURE, b"").decode() if installed else ""
        self._activate(release, record, "deploy", signature)
        if self._settings["keep"]:
            agent.call("prune", keep=self._settings["keep"], dry_run=False)
        return f"{release} is live; before: {status['current'] or 'none'}"

    def withdraw(self, journal: Path | None) -> str:
        """Make the release before this update's bundle live, if that bundle's is.

        Raises:
            RefusedError: There is none before, or its health check failed.
        """
        self._lock()
        status = self._agent.call("status")
        current, to = status["current"], status["previous"]
        live = (status["releases"].get(current) or {}).get("bundle")
        if live != self._settings["bundle"]:
            _write(journal, current, current)
            return f"nothing to withdraw: {current or 'no release'} is live"
        if to is None:
            raise RefusedError(f"there is no release before {current}", "`edgeship status`")
        _write(journal, to, current)
        self._activate(to, status["releases"][to], ROLLBACK)
        return f"{to} is live again; before: {current}"

    def rollback(self, journal: Path) -> str:
        """Undo a command: make the release live that was live before it.

        Raises:
            RefusedError: The health check of that release failed.
        """
        written = read_json(journal)
        if written is None:
            return "nothing to undo: the update did not get to the switch"
        self._lock()
        status, to = self._agent.call("status"), written["before"]
        if status["current"] != written["release"] or to == written["release"]:
            return f"nothing to undo: {status['current'] or 'no release'} is live"
        if to is None:
            self._agent.call("deactivate")
            return "no release is live, as before the update"
        self._activate(to, status["releases"][to], ROLLBACK)
        return f"{to} is live again"

    def _lock(self) -> None:
        self._agent.call("lock", wait_s=WAIT_S, who=self._who)

    @property
    def _who(self) -> str:
        return f"{self._settings['updater']}@{self._device}"

    def _probe(self, target: str) -> Any:
        _show("probing")
        archive = self._fetch(layout.RUNNER)
        return self._step(["{payload}", "probe", "--backend", target], PROBE_S, archive)

    def _step(self, arguments: Sequence[str], limit_s: float = LIMIT_S, payload: bytes = b"") -> Any:
        result: dict[str, Any] = {}

        def listen(event: Any) -> None:
            if event.get("event") == "result":
                result.update(event)

        answer = self._agent.call(
            "run",
            on_event=listen,
            payload=payload,
            argv=[checks.runner_python(self._python), *arguments],
            limit_s=limit_s,
        )
        return checks.outcome(self._device, arguments[1], answer["exit"], answer["log"], result)

    def _upload(self, bundle: Packed, paths: Sequence[str]) -> None:
        _show("unpacking")
        files = {bundle.digest(path): path for path in paths}
        present = self._agent.call("have", digests=list(files))["whole"]
        for digest, path in files.items():
            if digest not in present:
                self._agent.upload(digest, *bundle.file(path))

    def _build(self, bundle: Packed, release: str, probed: Any) -> Any:
        """Unpack, stage, verify and commit a release; return its record."""
        paths = bundle.paths(
            self._settings["target"], typed=checks.typed_only(self._settings["target"], probed)
        )
        for last in (False, False, True):  # damaged copies of the manifest, then of other files
            self._upload(bundle, [*bundle.own, *paths])
            try:
                staged = self._agent.call(
                    "stage",
                    release=release,
                    manifest=bundle.digests[layout.MANIFEST],
                    signature=bundle.digests.get(layout.SIGNATURE),
                    paths=paths,
                )
                break
            except RefusedError as error:
                if error.code != "damaged" or last:
                    raise
        record = checks.verify(
            lambda arguments, _: self._step(arguments),
            bundle.manifest,
            staged["folder"],
            probed,
            device=self._device,
            bundle=bundle.id,
            signed=layout.SIGNATURE in bundle.own,
            target=self._settings["target"],
            timing_s=TIMING_S,
            on_state=lambda state, _: _show(state),
        )
        self._agent.call("commit", release=release, record=record)
        return record

    def _activate(self, release: str, record: Any, why: str, signature: str = "") -> None:
        _show("switching")
        self._agent.call(
            "activate",
            release=release,
            health=checks.health_check(self._settings["health"], self._python, record),
            limit_s=HEALTH_S,
            who=self._who,
            why=why,
            signature=signature,
        )


def main(fetch: Fetch, argv: Sequence[str]) -> int:
    """Run a command of the installer.

    Args:
        fetch: Returns a file of the installer.
        argv: Arguments of the command line.
    """
    parser = argparse.ArgumentParser(
        prog="installer", description="Install an edgeship bundle on this device."
    )
    parser.add_argument("command", choices=("install", "withdraw", "rollback"))
    parser.add_argument("bundle", nargs="?", type=Path, help="bundle to install: a tar file")
    parser.add_argument("--journal", type=Path, help="file for rollback: release after and before")
    parser.add_argument("--mark", default="error: ", help="text before an error's message")
    chosen = parser.parse_args(argv)
    if (chosen.command == "install") != (chosen.bundle is not None):
        parser.error("install needs a bundle, the other commands take none")
    if chosen.command == "rollback" and chosen.journal is None:
        parser.error("rollback needs --journal FILE")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    settings = json.loads(fetch("settings.json").decode())
    try:
        with closing(Installer(settings, fetch)) as installer:
            if chosen.command == "rollback":
                done = installer.rollback(chosen.journal)
            elif chosen.command == "withdraw" or settings["withdraw"]:
                done = installer.withdraw(chosen.journal)
            else:
                done = _install(installer, chosen.bundle, chosen.journal)
    except RefusedError as error:
        print(f"{chosen.mark}{error}; {error.hint}", file=sys.stderr)  # noqa: T201
        return 1
    _show(done)
    return 0


def _install(installer: Installer, path: Path, journal: Path | None) -> str:
    try:
        with tarfile.open(os.fspath(path), "r:") as archive:
            return installer.install(Packed(archive), journal)
    except (tarfile.TarError, EOFError) as error:
        raise RefusedError(f"{path} is no bundle: {error}", _AGAIN, "bundle") from error
    except OSError as error:
        raise RefusedError(f"cannot read {error.filename or path}: {error.strerror}", _AGAIN) from error


def _check_owner(root: Path) -> None:
    """Raise if the folder is another user's, who could then change programs that this user runs."""
    if root.exists() and root.stat().st_uid != os.geteuid():
        raise RefusedError(
            f"{root} belongs to user {root.stat().st_uid}, and the updater runs as user {os.geteuid()}",
            f"name another folder with --root, or `chown -R {os.geteuid()} {root}`",
            "owner",
        )


def _check(manifest: Any) -> None:
    """Raise if a manifest has not the types that these steps read; the agent checks the rest."""
    kinds: dict[str, type] = {"name": str, "targets": dict, "gates": dict, "files": dict}
    whole = isinstance(manifest, dict) and all(isinstance(manifest.get(k), kind) for k, kind in kinds.items())
    if not whole or not all(
        isinstance(file, dict)
        and isinstance(file.get("sha256"), str)
        and isinstance(file.get("size_bytes"), int)
        and isinstance(file.get("targets"), list)
        for file in manifest["files"].values()
    ):
        raise RefusedError(f"the bundle's {layout.MANIFEST} is of another form", _AGAIN, "bundle")


def _write(journal: Path | None, release: str | None, before: str | None) -> None:
    if journal is not None:
        write_json(journal, {"release": release, "before": before})


def _show(text: str) -> None:
    print(f"edgeship: {text}", flush=True)  # noqa: T201
