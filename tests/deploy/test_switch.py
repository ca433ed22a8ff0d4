"""A switch with a full disk, a failing file system or a kill at every step: the answer is what is live."""

from __future__ import annotations

import errno
import io
import itertools
import os
import pathlib
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from edgeship.toolkit.deploy.agent import releases as releases_module
from edgeship.toolkit.deploy.agent.protocol import RefusedError
from edgeship.toolkit.deploy.agent.releases import Releases

CALLS = ("symlink", "replace", "unlink", "fsync", "fork")  # of os; and opening and writing files
PATHLIB = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10: what paths call, bound when imported
ALLOCATE = {"open", "write", "fsync of a file"}  # what a full disk refuses


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Make fsync free: no power is cut here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


class Stream:
    """File whose first write is a step; a fault leaves half of it."""

    def __init__(self, stream, step):
        self._stream, self._step = stream, step

    def write(self, text):
        try:
            self._step("write")
        except OSError:
            self._stream.write(text[: len(text) // 2])
            raise
        return self._stream.write(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def __getattr__(self, name):
        return getattr(self._stream, name)


@contextmanager
def stepping(step):
    """Call `step(name)` before every change of the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            real = getattr(os, name)

            def call(*arguments, name=name, real=real, **named):
                shown = name
                if name == "fsync" and not Path(f"/proc/self/fd/{arguments[0]}").readlink().is_dir():
                    shown = "fsync of a file"
                step(shown)
                return real(*arguments, **named)

            patch.setattr(os, name, call)
            if hasattr(PATHLIB, name):
                patch.setattr(PATHLIB, name, staticmethod(call))
        real_open = io.open

        def opened(file, mode="r", *arguments, **named):
            if "w" not in mode:
                return real_open(file, mode, *arguments, **named)
            step("open")
            return Stream(real_open(file, mode, *arguments, **named), step)

        patch.setattr(io, "open", opened)
        if PATHLIB is not None:
            patch.setattr(PATHLIB, "open", staticmethod(opened))
        yield


def device(folder: Path, live: str | None = "r1") -> Releases:
    """Return a root with the releases r1 and r2."""
    (folder / "releases").mkdir(parents=True)
    releases = Releases(folder)
    for name in ("r1", "r2"):
        staging = releases.staging(name)
        staging.mkdir()
        releases.commit(name, {})
    if live:
        assert releases.activate(live, lambda: None, "me", "deploy") is None
    releases.recover()
    return releases


def counted(folder, live, verdict):
    """Return the number of steps of a switch without faults."""
    names = []
    releases = device(folder, live)
    with stepping(names.append):
        releases.activate("r2", lambda: verdict, "me", "deploy")
    return len(names)


def activate(releases, name, verdict=None):
    """Return the failure of a switch, which is its answer to the host."""
    try:
        return releases.activate(name, lambda: verdict, "me", "deploy")
    except (OSError, RefusedError) as error:
        return repr(error)


def check_truth(releases, failure, live):
    status = releases.describe()
    assert status["pending"] is None, failure
    assert status["current"] == (live if failure else "r2"), failure
    assert status["current"] not in status["bad"], failure


@pytest.mark.parametrize("live", ["r1", None])
@pytest.mark.parametrize("verdict", [None, "sick"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_a_fault_at_every_step(tmp_path, live, verdict, code, lasting):
    steps = counted(tmp_path / "none", live, verdict)
    assert steps > 12
    for at in range(1, steps + 1):
        releases = device(tmp_path / str(at), live)
        counter = itertools.count(1)

        def fault(name, at=at, counter=counter):
            number = next(counter)
            full = lasting and number > at and (name in ALLOCATE or code == errno.EIO)
            if number == at or full:
                raise OSError(code, os.strerror(code), name)

        with stepping(fault):
            failure = activate(releases, "r2", verdict)
            stuck = releases.pending() is not None
        if stuck:  # only where nothing can be renamed any more, and then the answer says so
            assert lasting and code == errno.EIO and "r2 stays live, although" in failure
            assert releases.recover() == "r2"
        check_truth(releases, failure, live)
        assert releases.recover() is None  # the device is mended
        assert activate(releases, "r2") is None and activate(releases, "r1") is None
        assert releases.previous() == "r2" and releases.describe()["bad"] == {}


def test_a_full_disk_refuses_no_way_back(tmp_path):
    releases = device(tmp_path)
    assert activate(releases, "r2") is None

    def full(name):
        if name in ALLOCATE:
            raise OSError(errno.ENOSPC, "full")

    with stepping(full):
        assert activate(Releases(tmp_path), "r1") is None
        assert Releases(tmp_path).recover() is None
        assert Releases(tmp_path).prune(1, dry_run=False)["removed"] == []  # r2 was live last on record
    releases = Releases(tmp_path)
    assert releases.current() == "r1" and len(releases.describe()["history"]) == 2
    releases.recover()
    assert [entry["why"] for entry in releases.describe()["history"]] == [
        "deploy",
        "deploy",
        "recorded later",
    ]


def in_a_child(work):
    """Run a function in a child process; return its exit code after all its processes have ended."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        with suppress(BaseException):
            os._exit(work())
        os._exit(99)
    os.close(writer)
    assert os.read(reader, 1) == b""  # the guard holds it open as well
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


KILLED = {"agent": ("agent",), "guard": ("guard",), "both": ("guard", "agent")}


@pytest.mark.parametrize("whom", KILLED)
@pytest.mark.parametrize("verdict", [None, "sick"])
@pytest.mark.parametrize("live", ["r1", None])
def test_a_kill_at_every_step(tmp_path, monkeypatch, whom, verdict, live):
    steps = counted(tmp_path / "none", live, verdict)
    for at in range(1, steps + 1):
        releases = device(tmp_path / str(at), live)
        pids = {}
        real_fork = os.fork

        def forked(pids=pids, real_fork=real_fork):
            pids["guard"] = real_fork()
            return pids["guard"]

        def work(releases=releases, at=at, pids=pids, forked=forked):
            os.fork = forked
            counter = itertools.count(1)

            def kill(_):
                if next(counter) == at:
                    for each in KILLED[whom]:
                        pid = os.getpid() if each == "agent" else pids.get(each)
                        with suppress(ProcessLookupError):  # the guard has ended
                            _ = pid and os.kill(pid, signal.SIGKILL)

            with stepping(kill):
                return 0 if activate(releases, "r2", verdict) is None else 1

        code = in_a_child(work)
        assert code in ({0, 1} if whom == "guard" else {-9}), code
        trial = releases.pending()
        assert trial is None or whom == "both"  # the guard has switched back
        if code >= 0:  # the agent lives, and its answer is true
            assert code == (verdict is not None)
            check_truth(releases, code or None, live)
        assert releases.recover() == (trial and "r2")
        status = releases.describe()
        assert status["pending"] is None and status["current"] in {live, "r2"}
        assert verdict is None or status["current"] == live
        assert status["current"] not in status["bad"]
        assert activate(releases, "r2") is None


def test_a_guard_that_is_killed_in_its_work_leaves_the_truth(tmp_path, monkeypatch):
    for at in range(1, 9):
        releases = device(tmp_path / str(at))
        agent = os.getpid()

        def work(releases=releases, at=at):
            me = os.getpid()
            counter = itertools.count(1)

            def kill(_):
                if os.getpid() != me and next(counter) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            def die():
                os.kill(me, signal.SIGKILL)

            with stepping(kill):
                releases.activate("r2", die, "me", "deploy")
            return 0

        assert in_a_child(work) == -9 and os.getpid() == agent
        trial = releases.pending()
        assert releases.current() == ("r2" if trial else "r1")
        assert releases.recover() == (trial and "r2")
        assert releases.current() == "r1" and activate(releases, "r2") is None


def test_the_link_says_what_is_on_trial(tmp_path):
    releases = device(tmp_path)
    observed = []

    def look():
        observed.append((str((tmp_path / "current").readlink()), releases.pending(), releases.current()))
        assert (tmp_path / "current/release.json").exists()

    releases.activate("r2", look, "me", "deploy")
    assert observed == [("releases/r1/../r2", {"from": "r1", "to": "r2"}, "r2")]
    assert str((tmp_path / "current").readlink()) == "releases/r2"
    for odd in ("releases", "elsewhere/r2", "releases/a/b/r2", "/releases/r2", "releases/.."):
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to(odd)
        assert releases.current() is None and releases.pending() is None
    (tmp_path / "state.json").write_text('{"history": [3, {}], "bad": 7}')
    assert releases.describe()["history"] == [] and releases.describe()["bad"] == {}


def test_records_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(releases_module, "HISTORY", 3)
    releases = device(tmp_path)
    for name in ("r2", "r1", "r2", "r1"):
        assert activate(releases, name) is None
    assert [entry["release"] for entry in releases.describe()["history"]] == ["r1", "r2", "r1"]
    activate(releases, "r2", "sick")
    assert releases.describe()["bad"] == {"r2": "sick"}
    releases.prune(1, dry_run=False)
