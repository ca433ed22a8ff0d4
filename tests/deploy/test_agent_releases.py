"""Order of disk writes of the agent's releases: contents before names, for power cuts."""

import os
from pathlib import Path

import pytest

from edgeship.toolkit.deploy.agent.releases import Releases


@pytest.fixture
def disk(monkeypatch):
    """Return disk operations in order: ("sync", path) and ("rename", path, path)."""
    events = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor):
        events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def note_rename(path, target):
        events.append(("rename", str(path), str(target)))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_rename)
    return events


@pytest.fixture
def releases(tmp_path):
    root = (tmp_path / "root").resolve()
    (root / "releases").mkdir(parents=True)
    return Releases(root)


def stage(releases, name="r1"):
    staging = releases.staging(name)
    (staging / "engine").mkdir(parents=True)
    (staging / "engine/model.plan").write_bytes(b"engine")
    (staging / "labels.txt").write_bytes(b"labels")
    return staging


def test_every_file_is_on_the_disk_before_the_release_has_its_name(releases, disk):
    staging = stage(releases)
    releases.commit("r1", {"measured": 1})
    switch = disk.index(("rename", str(staging), str(releases.folder("r1"))))
    synced = {event[1] for event in disk[:switch] if event[0] == "sync"}
    names = {path.relative_to(releases.folder("r1")) for path in releases.folder("r1").rglob("*")}
    files = {staging / name for name in names if (releases.folder("r1") / name).is_file()}
    assert len(files) == 3 and {str(file) for file in files} - {str(staging / "release.json")} <= synced
    assert ("sync", str(releases.root / "releases")) in disk[switch:]


def test_the_switch_is_on_the_disk_before_the_health_check_starts(releases, disk):
    stage(releases)
    releases.commit("r1", {})
    at_check = []

    def check():
        at_check.extend(disk)

    assert releases.activate("r1", check, "me", "deploy") is None
    links = [
        event for event in at_check if event[0] == "rename" and event[2] == str(releases.root / "current")
    ]
    assert links == [("rename", str(releases.root / ".current-trial"), str(releases.root / "current"))]
    assert ("sync", str(releases.root)) in at_check[at_check.index(links[0]) :]
    commits = [event[1] for event in disk[len(at_check) :] if event[0] == "rename"]
    assert commits[0] == str(releases.root / ".current-proven")  # the first change after the check
