"""The installer of an update, run alone as a program: the gates of `edgeship deploy`, without a host."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from loopback import QUICK, make_key, need, quiet, stub_python

from edgeship.toolkit.deploy import agent, layout, release
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy.agent.protocol import RefusedError
from edgeship.toolkit.deploy.agent_client import connect
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.manifest import Terms
from edgeship.toolkit.deploy.updaters import installer
from edgeship.toolkit.deploy.updaters.device import local_agent


@dataclass
class Board:
    """A device that only its updater reaches."""

    folder: Path
    python: Path

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def entry(self) -> Device:
        return Device("board", "local", "openvino", root=str(self.root), python=str(self.python))

    def run(self, *arguments, program=sys.executable, **settings):
        """Run the installer with these settings; return exit code and output."""
        given = {"updater": "test", "root": str(self.root), "python": [str(self.python)]}
        given |= {"health": "", "keep": 0, "bundle": "", "withdraw": False, **settings}
        file = self.folder / installer.FILE
        file.write_bytes(installer.make("openvino", given))
        command = [program, "-I", str(file), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout + done.stderr

    def install(self, bundle, *arguments, **settings):
        return self.run("install", bundle.path, *arguments, **settings)

    @property
    def live(self) -> str | None:
        """The bundle whose release is live; it must be complete."""
        link = self.root / "current"
        if not link.is_symlink():
            return None
        assert (link / "engine/model").read_text() == "engine"
        return json.loads((link / "release.json").read_text())["bundle"]

    def status(self):
        return release.status(self.entry)


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path, stub_python(tmp_path / "python"))


def test_installed_as_deployed_then_the_next_one_and_back(board, bundle):
    first, second = bundle(), bundle(version=2)
    code, output = board.install(first)
    assert code == 0, output
    states = ["probing", "unpacking", "building", "self-test", "accuracy", "latency", "switching"]
    assert [line.partition(": ")[2] for line in output.splitlines()[:-1]] == states
    assert board.live == first.id
    record = next(iter(board.status()["releases"].values()))
    assert record["target"] == "openvino" and record["accuracy"]["gap_pp"] == 0
    outcome = release.deploy(board.entry, first, QUICK, quiet)  # a host finds the very release
    assert outcome.state == "unchanged"
    code, output = board.install(first)
    assert code == 0 and "live already" in output and "building" not in output
    assert board.install(second)[0] == 0 and board.live == second.id
    for _ in range(2):  # again: there is nothing more to withdraw
        code, output = board.run("withdraw", bundle=second.id)
        assert code == 0 and board.live == first.id, output
    assert "nothing to withdraw" in output
    assert [(each["why"], each["who"].partition("@")[0]) for each in board.status()["history"]] == [
        ("deploy", "test"), ("deploy", "test"), ("rollback", "test"),
    ]  # fmt: skip
    code, output = board.install(second)  # installed: only the switch
    assert code == 0 and board.live == second.id and "building" not in output


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"selftest": "negative"}, "lowest cosine 0.5 is below 0.99"),
        ({"build": "fail"}, "scripted failure"),
        ({"build": "kill"}, "killed by signal 9"),
        ({"top1": 0.8}, "10.00 pp below the simulation"),
        ({"ms": 9.0, "gates": {"max_latency_ms": 5.0}}, "9 ms (batch 1"),
    ],
)
def test_a_missed_gate_keeps_the_release_before(board, bundle, fault, named):
    first = bundle()
    assert board.install(first)[0] == 0
    code, output = board.install(bundle(version=2, **fault), "--mark", "<< error ")
    assert (code, board.live) == (1, first.id)
    assert named in output and output.count("<< error ") == 1 and "Traceback" not in output
    assert len(board.status()["releases"]) == 1


def test_a_failed_health_command_switches_back(board, bundle):
    first, second = bundle(), bundle(version=2)
    board.install(first)
    code, output = board.install(second, health="exit 7")
    assert (code, board.live) == (1, first.id) and "health check failed: exit code 7" in output
    assert board.install(second, health="test -e manifest.json")[0] == 0 and board.live == second.id


def rewrite(bundle, change):
    """Write the tar file of a bundle again; `change` gets names and contents."""
    with tarfile.open(bundle.path) as archive:
        members = [(each.name, archive.extractfile(each).read()) for each in archive.getmembers()]
    with tarfile.open(bundle.path, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in change(members):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def without(path):
    return lambda members: [each for each in members if each[0] != path]


def flipped(path):
    return lambda members: [
        (name, bytes([data[0] ^ 1]) + data[1:] if name == path else data) for name, data in members
    ]


GRAPH = layout.graph_path("openvino")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (flipped(GRAPH), "corrupted"),
        (flipped(layout.MANIFEST), "no JSON"),
        (without(GRAPH), f"no file {GRAPH}"),
        (without(layout.MANIFEST), "no file manifest.json"),
        (lambda members: [("manifest.json", b"[]"), *members[1:]], "another form"),
        (
            lambda members: [(name, data[:-1] if name == GRAPH else data) for name, data in members],
            "ends 1 bytes early",
        ),
    ],
)
def test_a_tampered_bundle_is_refused(board, bundle, change, named):
    first, second = bundle(), bundle(version=2)
    board.install(first)
    rewrite(second, change)
    code, output = board.install(second)
    assert (code, board.live) == (1, first.id), output
    assert named in output and "Traceback" not in output
    assert len(board.status()["releases"]) == 1


@pytest.mark.parametrize("content", [b"", b"no tar file", bytes(4096)])
def test_what_is_no_bundle_is_refused(board, bundle, content):
    packed = bundle()
    packed.path.write_bytes(content)
    code, output = board.install(packed)
    assert (code, board.live) == (1, None) and "Traceback" not in output
    packed.path.unlink()
    code, output = board.install(packed)
    assert code == 1 and "No such file" in output


def test_trusted_signers_and_the_version_floor_hold(board, bundle, tmp_path):
    need(shutil.which("ssh-keygen"), "openssh-client")
    for name in ("ours", "theirs"):
        make_key(tmp_path / name)

    def signed(version, key="ours", **more):
        return bundles.sign(bundle(version=version, terms=Terms(version), **more), tmp_path / key)

    release.trust(board.entry, f"we {(tmp_path / 'ours.pub').read_text()}", QUICK)
    marker = tmp_path / "ran"
    for refused in (bundle(), signed(3, "theirs")):  # and none of their code runs
        rewrite(refused, lambda members: members)
        code, output = board.install(refused, health=f"touch {marker}")
        assert (code, board.live, marker.exists()) == (1, None, False)
        assert "sign" in output and "building" not in output
    second = signed(2)
    assert board.install(second)[0] == 0
    code, output = board.install(signed(1))
    assert (code, board.live) == (1, second.id) and "takes 2 and later" in output


def test_an_installed_release_takes_the_signature_of_its_next_update(board, bundle, tmp_path):
    need(shutil.which("ssh-keygen"), "openssh-client")
    make_key(tmp_path / "key")
    first = bundle()
    for each in (first, bundle(version=2)):
        assert board.install(each)[0] == 0
    release.trust(board.entry, f"we {(tmp_path / 'key.pub').read_text()}", QUICK)
    code, output = board.install(first)
    assert code == 1 and "not signed" in output
    code, output = board.install(bundles.sign(first, tmp_path / "key"))
    assert (code, board.live) == (0, first.id) and "building" not in output, output


@pytest.mark.parametrize(("keepalive_s", "lives"), [(0.2, True), (60.0, False)])
def test_the_agent_hears_from_the_installer_in_a_long_step(tmp_path, monkeypatch, keepalive_s, lives):
    impatient = agent.source().replace(b"SILENCE_S = 90.0", b"SILENCE_S = 3.0")
    assert impatient != agent.source()
    monkeypatch.setattr(agent, "source", lambda: impatient)
    monkeypatch.setattr(local_agent, "KEEPALIVE_S", keepalive_s)
    with closing(local_agent.LocalAgent([sys.executable], agent.program(), str(tmp_path))) as process:
        if lives:
            assert process.call("run", argv=["sleep", "6"], limit_s=60.0)["exit"] == 0
        else:
            with pytest.raises(RefusedError, match="agent ended"):
                process.call("run", argv=["sleep", "6"], limit_s=60.0)


def test_no_keepalive_gets_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(local_agent, "KEEPALIVE_S", 0.01)
    content = bytes(1000)

    class Slow(io.BytesIO):
        def read(self, size):
            time.sleep(0.05)
            return super().read(min(size, 200))

    with closing(local_agent.LocalAgent([sys.executable], agent.program(), str(tmp_path))) as process:
        process.call("lock", wait_s=0.0, who="test")
        digest = hashlib.sha256(content).hexdigest()
        process.upload(digest, len(content), Slow(content))
        assert process.call("have", digests=[digest])["whole"] == [digest]


def test_a_journal_undoes_that_update_alone(board, bundle, tmp_path):
    first, second, journal = bundle(), bundle(version=2), tmp_path / "journal"
    assert board.run("rollback", "--journal", journal) == (
        0, "edgeship: nothing to undo: the update did not get to the switch\n",
    )  # fmt: skip
    board.install(first, "--journal", journal)
    code, output = board.run("rollback", "--journal", journal)  # of the first release: none is live
    assert (code, board.live) == (0, None), output
    assert board.status()["current"] is None
    board.install(first, "--journal", journal)
    board.install(second)  # by someone else, meanwhile
    code, output = board.run("rollback", "--journal", journal)
    assert (code, board.live) == (0, second.id) and "nothing to undo" in output
    board.install(second, "--journal", journal)  # live already: no switch to undo
    board.run("rollback", "--journal", journal)
    assert board.live == second.id
    board.install(first, "--journal", journal)
    assert board.run("rollback", "--journal", journal)[0] == 0 and board.live == second.id


def test_without_a_release_before_there_is_no_way_back(board, bundle):
    first = bundle()
    board.install(first)
    code, output = board.run("withdraw", bundle=first.id)
    assert (code, board.live) == (1, first.id) and "no release before" in output


def test_an_update_that_withdraws_a_bundle_can_be_undone(board, bundle, tmp_path):
    first, second, journal = bundle(), bundle(version=2), tmp_path / "journal"
    board.install(first)
    board.install(second)
    withdrawing = {"bundle": second.id, "withdraw": True}
    code, output = board.run("install", "/no/bundle", "--journal", journal, **withdrawing)
    assert (code, board.live) == (0, first.id), output
    assert board.run("rollback", "--journal", journal)[0] == 0 and board.live == second.id
    board.install(first)
    board.run("install", "/no/bundle", "--journal", journal, **withdrawing)  # it is not live: no change
    assert board.live == first.id
    board.run("rollback", "--journal", journal)
    assert board.live == first.id


def test_old_releases_are_removed_on_demand(board, bundle):
    for version in (1, 2, 3):
        board.install(bundle(version=version), keep=1)
    assert len(board.status()["releases"]) == 2  # the live one and the way back


def test_damaged_uploads_are_replaced(board, bundle):
    board.install(bundle(version=2, selftest="negative"))  # leaves its uploads
    for path in (board.root / "objects").iterdir():
        path.write_bytes(b"damaged")
    good = bundle()
    assert board.install(good)[0] == 0 and board.live == good.id


def test_another_deployment_is_waited_for(board, bundle):
    first, done = bundle(), []
    with connect(board.entry) as session:
        session.call("lock", wait_s=0.0, who="another")
        waiting = threading.Thread(target=lambda: done.append(board.install(first)))
        waiting.start()
        waiting.join(3.0)
        assert waiting.is_alive() and board.live is None
    waiting.join()
    assert done[0][0] == 0 and board.live == first.id


def test_a_device_that_cannot_run_it_is_named(board, bundle):
    board.python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # without the runtime
    code, output = board.install(bundle())
    assert (code, board.live) == (1, None) and "cannot run openvino" in output
    code, output = board.install(bundle(), python=["/no/python"])
    assert code == 1 and "cannot run /no/python" in output and "--python" in output


def test_wrong_usage(board, bundle):
    for arguments in (["install"], ["rollback"], ["withdraw", bundle().path], ["remove"]):
        assert board.run(*arguments)[0] == 2


@pytest.mark.skipif("os.geteuid() != 0")
def test_a_folder_of_another_user_is_refused(board, bundle):
    board.root.mkdir()
    shutil.chown(board.root, 65534)
    code, output = board.install(bundle())
    assert code == 1 and "belongs to user 65534" in output


def test_installed_by_python_3_8(board, bundle, python38):
    first = bundle()
    stub_python(board.python, python38)
    code, output = board.install(first, program=python38)
    assert (code, board.live) == (0, first.id), output
    assert board.status()["python"].startswith("3.8.")
    code, output = board.install(bundle(version=2, selftest="negative"), program=python38)
    assert (code, board.live) == (1, first.id) and "lowest cosine" in output


def test_the_installer_is_python_3_8():
    data = installer.make("openvino", {})
    assert data == installer.make("openvino", {})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        sources = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    for source in sources.values():
        ast.parse(source, feature_version=(3, 8))
