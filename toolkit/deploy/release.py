"""Deploy a release to one device, verify it there, make it live, roll back."""

from __future__ import annotations

import getpass
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy.agent_client import AgentSession, RefusedError, connect
from edgeship.toolkit.deploy.bundle import Bundle, BundleFile
from edgeship.toolkit.deploy.checks import OnState, health_check, is_installed, is_live, typed_only
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.layout import MANIFEST, SIGNATURE, release_name
from edgeship.toolkit.deploy.verification import check_compatible, probe, verify

Connect = Callable[[Device], AbstractContextManager[AgentSession]]

HEALTH_S = 300.0
LOCK_S = 60.0  # to remove what an interrupted deployment left
CONFIRM_S = 20.0  # for the device to answer after a connection was lost in a switch
SWITCH_S = 100.0  # for the agent there to notice the loss and switch back
SPARE_BYTES = 32 << 20  # free space needed besides the files: engine, logs


class UnknownStateError(DeviceError):
    """The connection was lost in a switch, and the device does not answer."""


@dataclass(frozen=True, slots=True)
class DeployOptions:
    """Time limits of a deployment.

    Attributes:
        wait_s: Seconds to wait for another deployment on the device.
        limit_s: Time limit of each step on the device in seconds; the build is the longest.
        timing_s: Seconds of timed inferences.
        dry_run: Return the steps without changing the device.
    """

    wait_s: float = 60.0
    limit_s: float = 3600.0
    timing_s: float = 3.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class DeployOutcome:
    """Result for one device.

    Attributes:
        device: Name of the device.
        state: "live" (switched), "unchanged", "planned" (dry run), "failed", "unknown" (connection lost in
            the switch), "interrupted" or "skipped".
        release: Requested release.
        before: Release that was live before; it still is unless `state` is "live".
        uploaded_bytes: Bytes sent, or to send in a dry run.
        seconds: Time since the connection started.
        record: Measurements of the release on the device.
        steps: Steps of a dry run.
        error: Error message; empty without one.
        hint: One command or setting that helps.
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
    entry: Device, bundle: Bundle, options: DeployOptions, on_state: OnState, connect: Connect = connect
) -> DeployOutcome:
    """Make a bundle's release live on a device; on any failure the live release is unchanged.

    Args:
        entry: The device.
        bundle: Bundle to deploy.
        options: Time limits, dry run.
        on_state: Called with every state and a detail.
        connect: Function that opens the connection.

    Raises:
        DeviceError: The device cannot be reached, a step failed there, or a gate was missed.
    """
    started = time.monotonic()
    on_state("connecting", "")
    with connect(entry) as session:
        on_state("probing", "")
        probed = probe(session, entry.target)
        check_compatible(entry, bundle, probed)
        release = release_name(bundle.id, entry.target, probed)
        status = session.call("status")
        if not options.dry_run and not is_live(status, release):
            _lock(session, options, on_state)
            status = session.call("status")  # the earlier deployment may have installed this release
        before = status["current"]
        if is_live(status, release):
            seconds = time.monotonic() - started
            return DeployOutcome(
                entry.name, "unchanged", release, before, 0, seconds, status["releases"][release]
            )

        installed = is_installed(status, release)
        files = bundle.files_for(entry.target, typed=typed_only(entry.target, probed))
        missing = [] if installed else _missing(session, files)
        size = sum(left for _, left in missing)
        _refuse_full(entry, status, size)
        if options.dry_run:
            steps = _steps(entry, release, before, missing, installed)
            return DeployOutcome(
                entry.name, "planned", release, before, size, time.monotonic() - started, steps=steps
            )
        if installed:
            record = status["releases"][release]
        else:
            _upload(session, bundle, missing, size, on_state)
            record = _install(
                session, entry, bundle, release, probed=probed, options=options, on_state=on_state
            )
        on_state("switching", "")
        signed = bundle.signature_file if installed else None
        signature = "" if signed is None else bundle.read(signed.path).decode()
        _activate(session, entry, release, record, "deploy", signature)
    return DeployOutcome(entry.name, "live", release, before, size, time.monotonic() - started, record)


def rollback(
    entry: Device, to: str | None, options: DeployOptions, on_state: OnState, connect: Connect = connect
) -> DeployOutcome:
    """Make an installed release live again.

    Args:
        entry: The device.
        to: Name of the release, or its prefix; None: the last good one before the live one.
        options: Time limits.
        on_state: Called with every state and a detail.
        connect: Function that opens the connection.

    Raises:
        DeviceError: There is no such release, or its health check fails.
    """
    started = time.monotonic()
    on_state("connecting", "")
    with connect(entry) as session:
        _lock(session, options, on_state)
        status = session.call("status")
        release = status["previous"] if to is None else _named(entry, status, to)
        if release is None:
            raise DeviceError(
                f"{entry.name} has no release to go back to",
                hint=f"`edgeship status --device {entry.name}`",
            )
        before, record = status["current"], status["releases"][release]
        if release == before:
            return DeployOutcome(
                entry.name, "unchanged", release, before, 0, time.monotonic() - started, record
            )
        on_state("switching", "")
        _activate(session, entry, release, record, "rollback")
    return DeployOutcome(entry.name, "live", release, before, 0, time.monotonic() - started, record)


def status(entry: Device, connect: Connect = connect) -> dict[str, Any]:
    """Return installed and live releases of a device (see `agent.commands.Agent.status`).

    Raises:
        DeviceError: The device cannot be reached.
    """
    with connect(entry) as session:
        return session.call("status")


def records(status: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the records of all releases in a status, the live one first, with keys `live` and `release`."""
    current, releases = status["current"], status["releases"]
    return [
        {**releases[name], "release": name, "live": name == current}
        for name in sorted(releases, key=lambda name: name != current)
        if releases[name] is not None
    ]


def facts(entry: Device, connect: Connect = connect) -> dict[str, Any]:
    """Return facts, backends and problems of a device, and its status.

    Raises:
        DeviceError: The device cannot be reached.
    """
    with connect(entry) as session:
        return {**probe(session), "status": session.call("status")}


def prune(entry: Device, keep: int, options: DeployOptions, connect: Connect = connect) -> dict[str, Any]:
    """Remove old releases: all but the last `keep`, the live one, and the rollback target.

    Returns:
        "removed": names, "freed_bytes"; with `options.dry_run` nothing is removed.

    Raises:
        DeviceError: The device cannot be reached, or is locked.
    """
    with connect(entry) as session:
        _lock(session, options, lambda *_: None)
        return session.call("prune", keep=keep, dry_run=options.dry_run)


def trust(
    entry: Device,
    signers: str,
    options: DeployOptions,
    connect: Connect = connect,
    *,
    model: str | None = None,
    floor: int = 0,
) -> None:
    """Make a device accept only what its owner allows.

    Args:
        entry: The device.
        signers: Allowed signers, ssh-keygen(1); they replace earlier ones.
        options: Time limits.
        connect: Function that opens the connection.
        model: Name of the only model it takes; None: as before.
        floor: Lowest version; it is never lowered.

    Raises:
        DeviceError: The device cannot be reached, or is locked.
    """
    with connect(entry) as session:
        _lock(session, options, lambda *_: None)
        session.call("trust", signers=signers, model=model, floor=floor)


def _named(entry: Device, status: Mapping[str, Any], to: str) -> str:
    matching: list[str] = [
        name for name in status["releases"] if name.startswith(to) and is_installed(status, name)
    ]
    if len(matching) != 1:
        raise DeviceError(
            f"{entry.name}: {'several releases begin' if matching else 'no good release begins'} with '{to}'",
            hint=f"installed: {', '.join(status['releases']) or 'none'}",
        )
    return matching[0]


def _lock(session: AgentSession, options: DeployOptions, on_state: OnState) -> None:
    session.call(
        "lock",
        on_event=lambda event: on_state("waiting", f"for {event.get('waiting_for')}"),
        within_s=options.wait_s + LOCK_S,
        wait_s=options.wait_s,
        who=_user(),
    )


def _missing(session: AgentSession, files: list[BundleFile]) -> list[tuple[BundleFile, int]]:
    """Return the files missing on the device, each once, with the bytes left to send."""
    by_digest = {file.sha256: file for file in files}
    stored = session.call("have", digests=list(by_digest))
    return [
        (file, file.size_bytes - min(stored["part"].get(digest, 0), file.size_bytes))
        for digest, file in by_digest.items()
        if digest not in stored["whole"]
    ]


def _refuse_full(entry: Device, status: Mapping[str, Any], size: int) -> None:
    if size and size + SPARE_BYTES > status["free_bytes"]:
        raise RefusedError(
            f"{entry.name}: {status['free_bytes'] >> 20} MiB are free for {status['root']}, "
            f"{(size + SPARE_BYTES) >> 20} MiB are needed",
            hint=f"`edgeship prune-releases --device {entry.name}`",
            code="disk",
        )


def _steps(
    entry: Device, release: str, before: str | None, missing: list[tuple[BundleFile, int]], installed: bool
) -> tuple[str, ...]:
    size = sum(left for _, left in missing)
    bring = (
        f"upload {len(missing)} files, {size} bytes",
        "verify every digest, and the signature if the device has trusted signers",
        f"build with {entry.target}, or reuse an engine built there before",
        "self-test, accuracy, latency",
    )
    switch = f"switch from {before or 'nothing'} to {release}"
    check = f"check health: {entry.health or 'self-test'}"
    return (*(() if installed else bring), switch, check)


def _upload(
    session: AgentSession, bundle: Bundle, missing: list[tuple[BundleFile, int]], size: int, on_state: OnState
) -> None:
    done = 0

    def count(sent: int) -> None:
        nonlocal done
        done += sent
        on_state("uploading", f"{100 * done // max(size, 1)} %")

    on_state("uploading", "0 %")
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
                        offset = 0  # the partial file of an earlier attempt was damaged


def _install(
    session: AgentSession,
    entry: Device,
    bundle: Bundle,
    release: str,
    *,
    probed: Mapping[str, Any],
    options: DeployOptions,
    on_state: OnState,
) -> dict[str, Any]:
    """Stage, verify and commit a release whose files are on the device."""
    on_state("checking", "")
    files = bundle.files_for(entry.target, typed=typed_only(entry.target, probed))
    signature = bundle.signature_file
    request: dict[str, Any] = {
        "release": release,
        "manifest": bundle.manifest_file.sha256,
        "signature": signature.sha256 if signature else None,
        "paths": [file.path for file in files if file.path not in {MANIFEST, SIGNATURE}],
    }
    for last in (False, False, True):  # damaged copies of the manifest, then of other files
        try:
            staged = session.call("stage", **request)
            break
        except RefusedError as error:
            if error.code != "damaged" or last:
                raise
        missing = _missing(session, files)
        _upload(session, bundle, missing, sum(left for _, left in missing), on_state)
    try:
        record = verify(
            session,
            entry,
            bundle,
            staged["folder"],
            probed,
            limit_s=options.limit_s,
            timing_s=options.timing_s,
            on_state=on_state,
        )
    except RefusedError:
        session.call("discard")
        raise
    session.call("commit", release=release, record=record)
    return record


def _activate(
    session: AgentSession,
    entry: Device,
    release: str,
    record: Mapping[str, Any],
    why: str,
    signature: str = "",
) -> None:
    try:
        session.call(
            "activate",
            within_s=2 * HEALTH_S + 60.0,
            release=release,
            health=health_check(entry.health, entry.python_words, record),
            limit_s=HEALTH_S,
            who=_user(),
            why=why,
            signature=signature,
        )
    except RefusedError:
        raise
    except DeviceError as error:
        _confirm(entry, release, error)


def _confirm(entry: Device, release: str, lost: DeviceError) -> None:
    """Connect again after a connection was lost in a switch; raise unless the release is live.

    Raises:
        UnknownStateError: The device cannot be reached, or is still in the switch.
        DeviceError: Another release is live.
    """
    give_up = time.monotonic() + CONFIRM_S
    while True:
        try:
            with connect(entry) as session:
                with suppress(RefusedError):  # another deployment waits for the lock as well
                    session.call("lock", within_s=SWITCH_S + LOCK_S, wait_s=SWITCH_S, who=_user())
                status = session.call("status")
            break
        except DeviceError:
            if time.monotonic() > give_up:
                raise _unknown(entry, release, lost) from lost
            time.sleep(1.0)
    if status["pending"] is not None:
        raise _unknown(entry, release, lost)
    if not is_live(status, release):
        live = status["current"] or "no release"
        raise DeviceError(f"{lost}; {live} is live", hint=lost.hint) from lost


def _unknown(entry: Device, release: str, lost: DeviceError) -> UnknownStateError:
    return UnknownStateError(
        f"{lost}; whether {release} is live is unknown",
        hint=f"`edgeship status --device {entry.name}` when it answers again",
    )


def _user() -> str:
    return f"{getpass.getuser()}@{platform.node()}"
