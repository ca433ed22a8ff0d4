"""Paths: home folders, places that cannot be written, links."""

import os
import socket
from pathlib import Path

import pytest

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.paths import leads_outside, refusal, siblings, user_path


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/a") == tmp_path / "a" and user_path("a~") == Path("a~")
    with pytest.raises(DataError, match="no home folder"):
        user_path("~no-such-user-7/a")
    (tmp_path / "~backup.onnx").touch()
    assert user_path("~backup.onnx") == Path("~backup.onnx")


def test_what_may_be_written(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link", "new", "new/inner", "."):
        assert refusal(tmp_path / name) == "", name
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "link"]  # the trial leaves nothing


def test_what_may_not_be_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nothing").symlink_to(tmp_path / "absent")
    (tmp_path / "file").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))
        for path, reason in [
            (Path("/dev/null"), "a device"),
            (tmp_path / "pipe", "a pipe"),
            (tmp_path / "socket", "a socket"),
            (tmp_path / "nothing", "a link to nothing"),
            (tmp_path / "file" / "a", "is a file"),
            (tmp_path / ("n" * 300), "too long"),
            (Path("/proc/edgeship"), "No such file"),
        ]:
            assert reason in refusal(path), path


def test_links_inside_a_folder(tmp_path):
    out, other = tmp_path / "out", tmp_path / "other"
    (out / "real").mkdir(parents=True)
    other.mkdir()
    (out / "linked").symlink_to(other)
    assert leads_outside(Path("linked/a/b"), out) and not leads_outside(Path("real/a"), out)
    assert not leads_outside(Path("linked"), out)  # replaced itself, not what it points to


def test_names_for_a_hint(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / ".hidden").touch()
    assert siblings(tmp_path / "b") == ["a"] and siblings(tmp_path / "a" / "b") == []
