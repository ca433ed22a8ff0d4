"""Faults of the field, on real devices over loopback.

Each time the old release stays live, nothing is half-installed, and the next deployment succeeds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import select
import subprocess
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import QUICK, Server, live, make_key, need, processes, quiet

from edgeship.toolkit.core.artifact import sha256_file
from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import agent, layout, release
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy.agent import subprocesses
from edgeship.toolkit.deploy.agent.subprocesses import run_program
from edgeship.toolkit.deploy.agent_client import RefusedError, connect
from edgeship.toolkit.deploy.rollout import RolloutOptions, rollout

BIG = 8 << 20  # bytes: more than fits into the buffers on the way


@contextlib.contextmanager
def reader(server: Server) -> Iterator[list[str]]:
    """An application that looks at the live release all the time; every look must find a complete one."""
    observed: list[str] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            record = (server.root / "current/release.json").read_bytes()
            observed.append("whole" if record.endswith(b"}") else f"torn: {record!r}")
            time.sleep(0.0005)

    def guarded() -> None:
        try:
            look()
        except OSError as error:
            observed.append(repr(error))

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield observed
    finally:
        stop.set()
        thread.join()
    assert len(observed) > 100 and set(observed) == {"whole"}


def still(server: Server, name: str) -> None:
    """The release is live, and nothing else has begun to exist."""
    assert live(server) == name
    assert not list((server.root / "releases").glob(".*"))


def soon(condition: Any, seconds: float = 30.0) -> bool:
    """Return True if the condition becomes true well before the agent's silence limit."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def settled(device, bundle) -> tuple[Server, Any, str]:
    """A device with a live release."""
    server, entry = device
    return server, entry, release.deploy(entry, bundle(), QUICK, quiet).release


@pytest.mark.parametrize("percent", [10, 90])
@pytest.mark.parametrize("fault", ["connection cut", "server killed"])
def test_upload_is_cut_and_goes_on_where_it_stopped(settled, bundle, percent, fault):
    server, entry, first = settled
    second = bundle(version=2, size=2 * BIG)
    planned = release.deploy(entry, second, dataclasses.replace(QUICK, dry_run=True), quiet).uploaded_bytes

    def cut(state: str, detail: str) -> None:
        if state == "uploading" and int(detail.split()[0]) >= percent and server.process:
            if fault == "connection cut":
                server.cut()
            else:
                server.stop()

    with reader(server):
        with pytest.raises(DeviceError, match="connection was lost") as caught:
            release.deploy(entry, second, QUICK, cut)
        assert "deploy again" in caught.value.hint
        still(server, first)
        if fault == "server killed":
            with pytest.raises(DeviceError, match="nothing listens"):
                release.status(entry)
            server.start()
        assert soon(lambda: release.status(entry)["locked_by"] is None)
        again = release.deploy(entry, second, QUICK, quiet)
    assert again.state == "live" and live(server) == again.release
    if percent == 90:  # received data is not sent again, except a few MiB in flight
        assert again.uploaded_bytes < planned / 2


@pytest.mark.parametrize("fault", ["connection cut", "server killed"])
def test_connection_is_lost_during_the_build(settled, bundle, fault):
    server, entry, first = settled
    hanging = bundle(version=2, build="hang")

    def cut(state: str, detail: str) -> None:
        if (state, detail) == ("building", "0 s"):
            if fault == "connection cut":
                server.cut()
            else:
                server.stop()

    with pytest.raises(DeviceError, match="connection was lost"):
        release.deploy(entry, hanging, QUICK, cut)
    assert soon(lambda: not processes(f"{server.root}/releases/.staging"))  # the build is killed
    if fault == "server killed":
        server.start()
    assert soon(lambda: release.status(entry)["locked_by"] is None)
    if fault == "connection cut":
        still(server, first)  # the agent cleaned up itself
    assert release.deploy(entry, bundle(version=2), QUICK, quiet).release == live(server)
    assert not list((server.root / "releases").glob(".*"))


@pytest.mark.parametrize("state", ["probing", "checking", "self-test", "accuracy", "latency", "switching"])
def test_connection_is_lost_before_any_other_step(settled, bundle, state):
    server, entry, first = settled
    second = bundle(version=2)

    def cut(now: str, _: str) -> None:
        if now == state:
            server.cut()

    with reader(server):
        with pytest.raises(DeviceError, match="connection was lost"):
            release.deploy(entry, second, QUICK, cut)
        assert soon(lambda: release.status(entry)["locked_by"] is None)
        still(server, first)
        again = release.deploy(entry, second, QUICK, quiet)
    assert again.state == "live" and live(server) == again.release and again.before == first


@pytest.mark.parametrize(
    ("script", "message"),
    [
        pytest.param({"build": "fail"}, "build failed: scripted failure", id="build fails"),
        pytest.param({"build": "kill"}, "build was killed by signal 9", id="build is killed"),
        pytest.param({"build": "crash"}, "build failed: .*scripted crash", id="runner crashes"),
        pytest.param({"build": "hang"}, "stopped after the time limit", id="build hangs"),
        pytest.param({"selftest": "negative"}, "selftest failed: lowest cosine 0.5", id="self-test mismatch"),
        pytest.param({"evaluate": "kill"}, "evaluate was killed by signal 9", id="evaluation is killed"),
        pytest.param({"time": "crash"}, "time failed: .*scripted crash", id="timing crashes"),
    ],
)
def test_a_release_that_fails_a_step_is_not_installed(settled, bundle, script, message):
    server, entry, first = settled
    with pytest.raises(RefusedError, match=f"(?s)device: .*{message}"):
        limit_s = 2.0 if "hang" in script.values() else QUICK.limit_s
        release.deploy(entry, bundle(version=2, **script), dataclasses.replace(QUICK, limit_s=limit_s), quiet)
    still(server, first)
    assert release.status(entry)["history"][-1]["release"] == first


def test_health_check_fails_and_the_old_release_is_back(settled, bundle):
    server, entry, first = settled
    # Fails on the new release and notes every release it was called for.
    note = "echo $EDGESHIP_RELEASE >> $EDGESHIP_ROOT/observed"
    health = f"{note}; case $EDGESHIP_RELEASE in {first}) ;; *) echo sick; exit 7;; esac"
    sick = dataclasses.replace(entry, health=health)
    with reader(server), pytest.raises(RefusedError, match="health check failed: exit code 7: sick"):
        release.deploy(sick, bundle(version=2), QUICK, quiet)
    still(server, first)
    checked = (server.root / "observed").read_text().split()
    assert len(checked) == 2 and checked[1] == first  # services restarted by the check use the old release
    status = release.status(entry)
    assert status["previous"] is None and list(status["bad"]) == [checked[0]] and status["pending"] is None
    well = release.deploy(entry, bundle(version=2), QUICK, quiet)
    assert well.state == "live" and release.status(entry)["bad"] == {}


def test_a_failed_health_check_reports_the_reasons_of_the_runner(settled, bundle):
    _, entry, _ = settled
    result = """{"event": "result", "ok": true, "reasons": ["lowest cosine 0.5 is below 0.99"]}"""
    negative = dataclasses.replace(entry, health=f"echo '{result}'; exit 3")
    with pytest.raises(RefusedError, match=r"failed: exit code 3: lowest cosine 0\.5 is below"):
        release.deploy(negative, bundle(version=2), QUICK, quiet)


def test_client_leaves_during_the_health_check(settled, bundle):
    server, entry, first = settled
    slow = dataclasses.replace(entry, health="touch $EDGESHIP_ROOT/started; sleep 60")

    def cut() -> None:
        assert soon(lambda: (server.root / "started").exists(), 120)
        server.cut()

    thread = threading.Thread(target=cut)
    thread.start()
    with reader(server), pytest.raises(DeviceError, match="connection was lost"):
        release.deploy(slow, bundle(version=2), QUICK, quiet)
    thread.join()
    assert soon(lambda: live(server) == first)
    assert release.deploy(entry, bundle(version=2), QUICK, quiet).release == live(server)


SWITCH = {  # point of the failure -> line of the agent before which it happens
    "before the links are made": "        trial = self._link(",
    "before the switch": "            self._rename(trial)",
    "before the switch is on the disk": "        sync_folder(self.root)\n\n    def _switch_back",
    "after the switch": "            failure = check()",
    "after the check": "                proven.replace(self._current)",
    "after the commit": "        if failure is None:\n            with suppress(OSError):",
}


@pytest.mark.parametrize("where", SWITCH)
@pytest.mark.parametrize("power", ["killed", "power cut"])
def test_kill_9_in_the_middle_of_the_switch(settled, bundle, monkeypatch, where, power):
    server, entry, first = settled
    line = SWITCH[where]
    indent = " " * (len(line) - len(line.lstrip()))
    original = agent.source

    def fatal() -> bytes:
        text = original().decode()
        for change in [(line, f"{indent}os.kill(os.getpid(), 9)\n{line}")] + [
            (
                "        pid = os.fork()",
                "        pid = os.fork()\n        if pid == 0:\n            os._exit(0)",
            )
        ] * (power == "power cut"):  # a power cut takes the guard as well
            before, after = (repr(part)[1:-1].replace("\\'", "'").replace('"', '\\"') for part in change)
            assert text.count(before) == 1, change
            text = text.replace(before, after)
        return text.encode()

    second = bundle(version=2)
    with reader(server):
        monkeypatch.setattr(agent, "source", fatal)
        if where == "after the commit":  # the agent could not answer; the host asks again
            assert release.deploy(entry, second, QUICK, quiet).state == "live"
        else:
            with pytest.raises(DeviceError, match=f"connection was lost .*; {first} is live"):
                release.deploy(entry, second, QUICK, quiet)
            assert live(server) == first
        monkeypatch.setattr(agent, "source", original)
        assert release.status(entry)["pending"] is None
        again = release.deploy(entry, second, QUICK, quiet)
    assert again.state == ("unchanged" if where == "after the commit" else "live")
    assert live(server) == again.release
    status = release.status(entry)
    assert status["pending"] is None and status["bad"] == {} and status["previous"] == first


def test_a_device_that_is_gone_after_the_switch_is_unknown(settled, bundle, monkeypatch):
    server, entry, _ = settled
    monkeypatch.setattr(release, "CONFIRM_S", 0.0)

    def cut(state: str, _: str) -> None:
        if state == "switching":
            server.stop()

    (outcome,) = rollout(
        [entry],
        lambda entry, on_state, connect: release.deploy(entry, bundle(version=2), QUICK, on_state, connect),
        RolloutOptions(),
        lambda _, state, detail: cut(state, detail),
    )
    assert outcome.state == "unknown" and "is live is unknown" in outcome.error
    server.start()
    assert soon(lambda: release.status(entry)["locked_by"] is None)


def test_two_deployments_to_one_device_at_once(settled, bundle):
    server, entry, first = settled
    second, third = bundle(version=2), bundle(version=3)
    building, go_on = threading.Event(), threading.Event()
    outcomes: list[Any] = []

    def hold(state: str, _: str) -> None:
        if state == "building":
            building.set()
            assert go_on.wait(120)

    thread = threading.Thread(target=lambda: outcomes.append(release.deploy(entry, second, QUICK, hold)))
    thread.start()
    assert building.wait(120)
    with pytest.raises(RefusedError, match=r"another deployment .*: .+@.+, since 20") as caught:
        release.deploy(entry, third, QUICK, quiet)
    assert caught.value.code == "locked" and "--wait" in caught.value.hint
    assert release.status(entry)["locked_by"]
    patient = dataclasses.replace(QUICK, wait_s=30.0)
    states: list[str] = []

    def listen(state: str, detail: str) -> None:
        states.append(state)
        if state == "waiting":
            go_on.set()

    same = release.deploy(entry, second, patient, listen)  # waits, then has nothing to do
    thread.join()
    assert (
        "waiting" in states
        and same.state == "unchanged"
        and same.release == outcomes[0].release == live(server)
    )
    assert release.status(entry)["previous"] == first


def test_corrupt_files_are_detected(settled, bundle):
    server, entry, first = settled
    second = bundle(version=2, size=BIG)
    data = second.files[layout.EVALUATION]
    # A damaged partial file of an earlier attempt: the file is sent again in full.
    (server.root / "objects" / f"{data.sha256}.part").write_bytes(bytes(1000))
    assert release.deploy(entry, second, QUICK, quiet).state == "live"
    first = live(server)
    # Files damaged on the device's disk are detected before anything runs, and replaced.
    third = bundle(version=3)
    common = [f.sha256 for f in third.files.values() if (server.root / "objects" / f.sha256).exists()]
    assert len(common) >= 3
    (server.root / "objects" / third.manifest_file.sha256).write_bytes(b"rotten")
    for digest in common:
        (server.root / "objects" / digest).write_bytes(b"rotten")
    assert release.deploy(entry, third, QUICK, quiet).release == live(server) != first
    for digest in common:
        assert sha256_file(server.root / "objects" / digest) == digest


def test_corruption_on_the_way(settled, bundle, monkeypatch):
    server, entry, first = settled
    second = bundle(version=2, size=BIG)
    before = second.path.read_bytes()
    middle = before.index(second.read(layout.EVALUATION)[:64]) + BIG // 2
    second.path.write_bytes(before[:middle] + b"corrupt" + before[middle + 7 :])
    with pytest.raises(RefusedError, match="corrupted on the way"):
        release.deploy(entry, second, QUICK, quiet)
    still(server, first)
    second.path.write_bytes(before)
    assert release.deploy(entry, second, QUICK, quiet).release == live(server)


def test_host_keys_are_checked(park, bundle, tmp_path):
    server = park.server("device")
    entry = park.entry(server)
    known_hosts = park.folder / "known_hosts"
    valid = known_hosts.read_text()
    known_hosts.write_text("")
    with pytest.raises(DeviceError, match=r"host key of 127.0.0.1 is not known"):
        release.deploy(entry, bundle(), QUICK, quiet)
    make_key(tmp_path / "other")
    known_hosts.write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'other.pub').read_text()}")
    park.client_config.write_text(
        park.client_config.read_text() + " StrictHostKeyChecking no\n"
    )  # has no effect
    with pytest.raises(DeviceError, match=r"host key of 127.0.0.1 has changed") as caught:
        release.deploy(entry, bundle(), QUICK, quiet)
    assert "ssh-keygen -R" in caught.value.hint
    assert not server.root.exists()
    known_hosts.write_text(valid)
    assert release.deploy(entry, bundle(), QUICK, quiet).state == "live"


def test_only_trusted_signatures_run(settled, bundle, tmp_path):
    server, entry, first = settled
    keys = {name: tmp_path / name for name in ("ours", "other")}
    for path in keys.values():
        make_key(path)
    release.trust(entry, f"builds@example.org {keys['ours'].with_suffix('.pub').read_text()}", QUICK)
    with pytest.raises(RefusedError, match="not signed"):
        release.deploy(entry, bundle(version=2), QUICK, quiet)
    with pytest.raises(RefusedError, match="signer"):
        release.deploy(entry, bundles.sign(bundle(version=2), keys["other"]), QUICK, quiet)
    signed = bundles.sign(bundle(version=2), keys["ours"])
    stolen = bundles.sign(bundle(version=3), keys["ours"])  # signature of another manifest
    forged = dataclasses.replace(signed, signature_file=stolen.signature_file)
    with pytest.raises((RefusedError, DeviceError)):
        release.deploy(entry, forged, QUICK, quiet)
    still(server, first)
    outcome = release.deploy(entry, signed, QUICK, quiet)
    assert live(server) == outcome.release and outcome.record["signed"] is True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 48 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)], capture_output=True
    )
    need(mounted.returncode == 0, "the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_is_full(park, bundle, small_disk):
    server = park.server("device")
    entry = park.entry(server, root=str(small_disk / "root"))
    server_on_disk = dataclasses.replace(server, folder=small_disk)
    first = release.deploy(entry, bundle(), QUICK, quiet).release
    with pytest.raises(RefusedError, match="MiB are free") as caught:  # before the upload
        release.deploy(entry, bundle(version=2, size=40 << 20), QUICK, quiet)
    assert "prune-releases" in caught.value.hint
    filler = small_disk / "filler"

    def fill(state: str, _: str) -> None:  # another program fills the disk
        if state == "uploading" and not filler.exists():
            with contextlib.suppress(OSError), filler.open("wb") as stream:
                for _ in itertools.count():
                    stream.write(bytes(1 << 20))
                    stream.flush()
                    if os.statvfs(small_disk).f_bavail * 4096 < 3 << 20:
                        break

    with reader(server_on_disk), pytest.raises(RefusedError, match="disk is full"):
        release.deploy(entry, bundle(version=2, size=BIG), QUICK, fill)
    still(server_on_disk, first)
    assert not list((small_disk / "root/objects").glob("*.part"))  # the space is freed
    filler.unlink()
    assert release.deploy(entry, bundle(version=2, size=BIG), QUICK, quiet).release == live(server_on_disk)


@pytest.mark.parametrize("full", ["blocks", "inodes"])
@pytest.mark.parametrize("then", ["exit 1", "true"])
def test_disk_fills_during_the_health_check(park, bundle, small_disk, full, then):
    server = park.server("device")
    entry = park.entry(server, root=str(small_disk / "root"))
    server_on_disk = dataclasses.replace(server, folder=small_disk)
    older, first = (release.deploy(entry, bundle(version=v), QUICK, quiet).release for v in (3, 1))
    fill = {
        "blocks": f"dd if=/dev/zero of={small_disk}/filler 2>/dev/null",
        "inodes": f"mkdir {small_disk}/f; cd {small_disk}/f; i=0; "
        "while true > $i; do i=$((i+1)); done 2>/dev/null",
    }[full]
    subprocess.run(["mount", "-o", "remount,nr_inodes=400", str(small_disk)], check=True)
    failing = dataclasses.replace(entry, health=f"{fill}; {then}")
    with reader(server_on_disk):
        if then == "true":
            assert release.deploy(failing, bundle(version=2), QUICK, quiet).release == live(server_on_disk)
        else:
            with pytest.raises(RefusedError, match="health check failed: exit code 1"):
                release.deploy(failing, bundle(version=2), QUICK, quiet)
            still(server_on_disk, first)
            assert first not in release.status(entry)["bad"]
        back = release.rollback(entry, older, QUICK, quiet)
        assert back.state == "live" and live(server_on_disk) == older
    assert release.status(entry)["pending"] is None
    release.rollback(entry, first, QUICK, quiet)
    assert release.prune(entry, 1, QUICK)["freed_bytes"] >= 0


def test_a_silent_client_loses_the_lock(settled, monkeypatch):
    _, entry, _ = settled
    impatient = agent.source().replace(b"SILENCE_S = 90.0", b"SILENCE_S = 3.0")
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(agent, "source", lambda: impatient)
            gone = stack.enter_context(connect(entry))
            gone.call("lock", wait_s=0.0, who="a laptop that was closed")
        assert soon(lambda: release.status(entry)["locked_by"] is None)


def test_what_a_program_printed_last_is_read(tmp_path, monkeypatch):
    """It ends between a look at its output, which is still empty, and one at its state."""
    looks, gate, look = [], tmp_path / "gate", select.select
    os.mkfifo(gate)

    def early(readers, writers, errors, seconds):
        found = look(readers, writers, errors, seconds if looks else 0)
        if not looks:
            gate.write_text("go\n")
            assert soon(lambda: not processes(str(gate)), 60)
        looks.append(found)
        return found

    monkeypatch.setattr(subprocesses.select, "select", early)
    client, events = types.SimpleNamespace(check_connected=lambda: None), []
    command = ["sh", "-c", f"""read go < {gate}; echo '{{"event": "result"}}'"""]
    ended = run_program(client, command, 60.0, cwd=str(tmp_path), variables={}, on_event=events.append)
    assert ended == (0, "") and events == [{"event": "result"}]
