"""One device: bring a release onto it, prove it there, make it live, go back."""

from __future__ import annotations

import getpass
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy.agent_client import RefusedError, Session, connect
from edgeship.toolkit.deploy.bundle import MANIFEST, RUNNER, SIGNATURE, Bundle, BundleFile
from edgeship.toolkit.deploy.inventory import Entry
from edgeship.toolkit.deploy.verification import (
    GATES,
    Tell,
    environment,
    probe,
    prove,
    refuse_early,
    selftest,
    typed_only,
)

Connect = Callable[[Entry], AbstractContextManager[Session]]

HEALTH_S = 300.0
SPARE_BYTES = 32 << 20  # what a device needs beyond the files themselves: engine, logs, its own life


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """How patient a deployment is.

    Attributes:
        wait_s: Seconds to wait while another deployment is at work on the device.
        limit_s: Seconds that any one step on the device (most of all the build) may take.
        timing_s: Seconds of timed inferences.
        dry_run: Only say what would be done.
    """

    wait_s: float = 60.0
    limit_s: float = 3600.0
    timing_s: float = 3.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one device.

    Attributes:
        device: Its name.
        state: "live" (switched), "unchanged", "planned" (dry run), "failed", or "skipped".
        release: The release that was asked for.
        before: The release that was live before; it still is unless state is "live".
        uploaded_bytes: What went over the wire, or would.
        seconds: From the connection on.
        record: What was measured of the release, there.
        steps: What a dry run would do.
        error: Why it failed; `hint` says what helps.
        hint: See `error`.
    """

    device: str
    state: str
    release: str | None = None
    before: str | None = None
    uploaded_bytes: int = 0
    seconds: float = 0.0
    record: Mapping[str, Any] | None = None
    steps: tuple[str, ...] = ()
    error: str = ""
    hint: str = ""


def deploy(
    entry: Entry, bundle: Bundle, options: DeployOptions, tell: Tell, connect: Connect = connect
) -> Outcome:
    """Make a bundle's release live on a device; on any failure what was live stays live.

    Args:
        entry: The device.
        bundle: What to bring.
        options: How patient to be.
        tell: Told every change of state, and a detail of it.
        connect: Opens the connection.

    Raises:
        DeviceError: The device cannot be reached, refuses, or the release did not prove itself there.
    """
    started = time.monotonic()
    tell("connecting", "")
    with connect(entry) as session:
        tell("probing", "")
        probed = probe(session, entry.target)
        refuse_early(entry, bundle, probed)
        release = f"{bundle.id}.{environment(entry.target, probed)[:8]}"
        status = session.call("status")
        if not options.dry_run and not _is_live(status, release):
            _lock(session, options, tell)
            status = session.call("status")  # whoever held the lock may have brought this very release
        before = status["current"]
        if _is_live(status, release):
            seconds = time.monotonic() - started
            return Outcome(entry.name, "unchanged", release, before, 0, seconds, status["releases"][release])

        installed = _is_installed(status, release)
        files = bundle.files_for(entry.target, typed=typed_only(entry.target, probed))
        missing = [] if installed else _missing(session, files)
        size = sum(left for _, left in missing)
        _refuse_full(entry, status, size)
        if options.dry_run:
            steps = _steps(entry, release, before, missing, installed)
            return Outcome(
                entry.name, "planned", release, before, size, time.monotonic() - started, steps=steps
            )
        if installed:
            record = status["releases"][release]
        else:
            _upload(session, bundle, missing, size, tell)
            record = _install(session, entry, bundle, release, probed=probed, options=options, tell=tell)
        tell("switching", "")
        _activate(session, entry, release, record, "deploy")
    return Outcome(entry.name, "live", release, before, size, time.monotonic() - started, record)


def rollback(
    entry: Entry, to: str | None, options: DeployOptions, tell: Tell, connect: Connect = connect
) -> Outcome:
    """Make an installed release live again.

    Args:
        entry: The device.
        to: Name of the release, or its beginning; None is the last good one before the live one.
        options: How patient to be.
        tell: Told every change of state.
        connect: Opens the connection.

    Raises:
        DeviceError: There is nothing to go back to, or it does not pass its health check any more.
    """
    started = time.monotonic()
    tell("connecting", "")
    with connect(entry) as session:
        _lock(session, options, tell)
        status = session.call("status")
        release = status["previous"] if to is None else _named(entry, status, to)
        if release is None:
            raise DeviceError(
                f"{entry.name} has no release to go back to",
                hint=f"`edgeship status --device {entry.name}` shows what is installed",
            )
        before, record = status["current"], status["releases"][release]
        if release == before:
            return Outcome(entry.name, "unchanged", release, before, 0, time.monotonic() - started, record)
        tell("switching", "")
        _activate(session, entry, release, record, "rollback")
    return Outcome(entry.name, "live", release, before, 0, time.monotonic() - started, record)


def status(entry: Entry, connect: Connect = connect) -> dict[str, Any]:
    """What is installed and live on a device (see `agent.commands.Agent.status`).

    Raises:
        DeviceError: The device cannot be reached.
    """
    with connect(entry) as session:
        return session.call("status")


def records(entry: Entry, connect: Connect = connect) -> list[dict[str, Any]]:
    """What was measured of every release on a device, the live one first; each says `live` and `release`.

    Raises:
        DeviceError: The device cannot be reached.
    """
    found = status(entry, connect)
    order = sorted(found["releases"], key=lambda name: name != found["current"])
    return [
        {**found["releases"][name], "release": name, "live": name == found["current"]}
        for name in order
        if found["releases"][name] is not None
    ]


def facts(entry: Entry, connect: Connect = connect) -> dict[str, Any]:
    """Facts, backends and problems of a device, and the state of its root folder.

    Raises:
        DeviceError: The device cannot be reached.
    """
    with connect(entry) as session:
        return {**probe(session), "status": session.call("status")}


def prune(entry: Entry, keep: int, options: DeployOptions, connect: Connect = connect) -> dict[str, Any]:
    """Remove old releases: all but the last `keep`, the live one, and the one a rollback would go to.

    Returns:
        "removed": names, "freed_bytes"; with `options.dry_run` what would be.

    Raises:
        DeviceError: The device cannot be reached, or is busy.
    """
    with connect(entry) as session:
        _lock(session, options, lambda *_: None)
        return session.call("prune", keep=keep, dry_run=options.dry_run)


def trust(entry: Entry, signers: str, options: DeployOptions, connect: Connect = connect) -> None:
    """Have a device accept only bundles signed by one of `signers` (lines as ssh-keygen(1) has them).

    Raises:
        DeviceError: The device cannot be reached, or is busy.
    """
    with connect(entry) as session:
        _lock(session, options, lambda *_: None)
        session.call("trust", signers=signers)


def _is_installed(status: Mapping[str, Any], release: str) -> bool:
    known: bool = status["releases"].get(release) is not None and release not in status["bad"]
    return known


def _is_live(status: Mapping[str, Any], release: str) -> bool:
    live: bool = status["current"] == release and status["pending"] is None
    return live and _is_installed(status, release)


def _named(entry: Entry, status: Mapping[str, Any], to: str) -> str:
    found: list[str] = [
        name for name in status["releases"] if name.startswith(to) and _is_installed(status, name)
    ]
    if len(found) != 1:
        raise DeviceError(
            f"{entry.name}: {'several releases begin' if found else 'no good release begins'} with '{to}'",
            hint=f"installed: {', '.join(status['releases']) or 'none'}",
        )
    return found[0]


def _lock(session: Session, options: DeployOptions, tell: Tell) -> None:
    session.call(
        "lock",
        on_event=lambda event: tell("waiting", f"for {event['waiting_for']}"),
        answer_s=options.wait_s + 60.0,
        wait_s=options.wait_s,
        who=f"{getpass.getuser()}@{platform.node()}",
    )


def _missing(session: Session, files: list[BundleFile]) -> list[tuple[BundleFile, int]]:
    """Files the device lacks, each once, and how many bytes of it are left to send."""
    by_digest = {file.sha256: file for file in files}
    held = session.call("have", digests=list(by_digest))
    return [
        (file, file.size_bytes - min(held["part"].get(digest, 0), file.size_bytes))
        for digest, file in by_digest.items()
        if digest not in held["whole"]
    ]


def _refuse_full(entry: Entry, status: Mapping[str, Any], size: int) -> None:
    if size and size + SPARE_BYTES > status["free_bytes"]:
        raise RefusedError(
            f"{entry.name}: {status['free_bytes'] >> 20} MiB are free for {status['root']}, "
            f"{(size + SPARE_BYTES) >> 20} MiB are needed",
            hint=f"`edgeship prune-releases --device {entry.name}`",
            code="disk",
        )


def _steps(
    entry: Entry, release: str, before: str | None, missing: list[tuple[BundleFile, int]], installed: bool
) -> tuple[str, ...]:
    size = sum(left for _, left in missing)
    bring = (
        f"upload {len(missing)} files, {size} bytes",
        "check every digest, and the signature if the device asks for one",
        f"build with {entry.target}, or reuse an engine built there before",
        "self-test, accuracy, latency",
    )
    switch = f"switch from {before or 'nothing'} to {release}"
    check = f"check health: {entry.health or 'self-test'}"
    return (*(() if installed else bring), switch, check)


def _upload(
    session: Session, bundle: Bundle, missing: list[tuple[BundleFile, int]], size: int, tell: Tell
) -> None:
    done = 0

    def count(sent: int) -> None:
        nonlocal done
        done += sent
        tell("uploading", f"{100 * done // max(size, 1)} %")

    tell("uploading", "0 %")
    with bundle.open() as member:
        for file, left in missing:
            offset = file.size_bytes - left
            while True:
                with member(file.path) as stream:
                    try:
                        session.upload(file.sha256, file.size_bytes, offset, stream, count)
                        break
                    except RefusedError as error:
                        if error.code != "corrupt" or offset == 0:
                            raise
                        offset = 0  # what an earlier attempt left there was damaged


def _install(
    session: Session,
    entry: Entry,
    bundle: Bundle,
    release: str,
    *,
    probed: Mapping[str, Any],
    options: DeployOptions,
    tell: Tell,
) -> dict[str, Any]:
    """Stage, prove and commit a release whose files are on the device."""
    tell("checking", "")
    files = bundle.files_for(entry.target, typed=typed_only(entry.target, probed))
    signature = bundle.signature_file
    staged = session.call(
        "stage",
        release=release,
        manifest=bundle.manifest_file.sha256,
        signature=signature.sha256 if signature else None,
        paths=[file.path for file in files if file.path not in {MANIFEST, SIGNATURE}],
    )
    try:
        record = prove(
            session,
            entry,
            bundle,
            staged["folder"],
            probed,
            limit_s=options.limit_s,
            timing_s=options.timing_s,
            tell=tell,
        )
    except RefusedError:
        session.call("discard")
        raise
    session.call("commit", release=release, record=record)
    return record


def _activate(session: Session, entry: Entry, release: str, record: Mapping[str, Any], why: str) -> None:
    own = [entry.python, *_own_check(record["target"])]
    session.call(
        "activate",
        answer_s=2 * HEALTH_S + 60.0,
        release=release,
        health=["sh", "-c", entry.health] if entry.health else own,
        limit_s=HEALTH_S,
        who=f"{getpass.getuser()}@{platform.node()}",
        why=why,
    )


def _own_check(target: str) -> list[str]:
    return [f"{{current}}/{RUNNER}", *selftest(target, "{current}", GATES)]
