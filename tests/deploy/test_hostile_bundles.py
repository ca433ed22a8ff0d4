"""Bundles that anyone may have made: refused with a message, quickly, and nothing leaves its folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import scripted

from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import DataError, ToolkitError
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import layout

DEEP = 3000
BAD_VALUES = (..., None, 5, "x\x1b[2J", [], {}, float("nan"), -1, 10**30)
FIELDS = ("schema", "name", "targets", "targets.openvino", "targets.openvino.variant",
          "targets.openvino.precision", "targets.openvino.simulated", "targets.openvino.simulated.top1",
          "gates", "files", "files.#", "files.#.sha256", "files.#.size_bytes", "files.#.targets", "threads",
          "release", "release.version", "release.expires")  # fmt: skip
PATHS = (
    "../../../escape",
    "/tmp/escape",
    "a/../../b",
    ".hidden",
    "a//b",
    "a\x00b",
    "é" * 300,
    "CON\n",
    "a\\b",
    "",
)


def content(path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as archive:
        return [(member, archive.extractfile(member).read() if member.isreg() else b"") for member in archive]


def write(path, members, mode="w") -> None:
    with tarfile.open(path, mode, format=tarfile.PAX_FORMAT) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))


def with_manifest(members, change):
    """Return members with a changed manifest; `change` returns the new one, or its bytes."""
    (_, raw), *rest = members
    value = change(json.loads(raw))
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    new = tarfile.TarInfo(layout.MANIFEST)
    new.size = len(data)
    return [(new, data), *rest]


def put(path, value):
    def change(manifest):
        manifest.setdefault("release", {"version": 1, "expires": None})
        *parents, last = path.replace("#", next(iter(manifest["files"])).replace(".", "\0")).split(".")
        place = manifest
        for parent in parents:
            place = place[parent.replace("\0", ".")]
        last = last.replace("\0", ".")
        place.pop(last, None) if value is ... else place.__setitem__(last, value)
        return manifest

    return change


def rename(name):
    def change(manifest):
        first = next(iter(manifest["files"]))
        manifest["files"][name] = manifest["files"].pop(first)
        return manifest

    return change


def added(name, size=0, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = size
    for field, value in fields.items():
        setattr(member, field, value)
    return [(member, data)]


def kinds(members):
    """Yield name and the bytes of each hostile bundle: (name, function that writes it)."""
    for field in FIELDS:
        for value in BAD_VALUES:
            yield (
                f"{field}={value!r:.12}",
                lambda path, f=field, v=value: write(path, with_manifest(members, put(f, v))),
            )
    for name in PATHS:
        yield f"file {name[:20]!r}", lambda path, n=name: write(path, with_manifest(members, rename(n)))
    texts = {
        "nested": b'{"schema": ' + b"[" * 100_000,
        "deep": b'{"schema": 1, "provenance": ' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}",
        "list": b"[]", "empty": b"", "no text": b"\xff\xfe\x00",
        "digits": b'{"schema": ' + b"9" * 100_000 + b"}",
        "surrogate": b'{"schema": 1, "name": "\\ud800"}', "large": b" " * (9 << 20) + b"{}",
    }  # fmt: skip
    for name, text in texts.items():
        yield f"manifest {name}", lambda path, t=text: write(path, with_manifest(members, lambda _: t))
    link = {"type": tarfile.LNKTYPE}
    symbolic = {"type": tarfile.SYMTYPE}
    extra = {
        "symlink out": added("graphs", **symbolic, linkname="/etc"),
        "link out": added("x", **link, linkname="../../etc/passwd"),
        "link to itself": added("x", **link, linkname="x"),
        "links in a circle": added("a", **symbolic, linkname="b") + added("b", **symbolic, linkname="a"),
        "device": added("x", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        "fifo": added("x", type=tarfile.FIFOTYPE), "folder": added("x", type=tarfile.DIRTYPE),
        "odd type": added("x", type=b"Z"), "twice": added(layout.MANIFEST),
        "absolute": added("/tmp/escape"), "parent": added("../escape"),
        "many members": [each for number in range(10_001) for each in added(f"m{number}")],
        "negative size": added("x", pax_headers={"size": "-512"}),
        "huge size": added("x", pax_headers={"size": "9" * 30}),
        "sparse": added("x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                                          "GNU.sparse.name": "x", "GNU.sparse.realsize": str(2**60)}),
        "large signature": added(layout.SIGNATURE, size=1 << 17, data=bytes(1 << 17)),
        "long name": added("n" * 100_000), "no text in the name": added("\udcff\udcfe"),
    }  # fmt: skip
    for name, more in extra.items():
        yield f"member {name}", lambda path, m=more: write(path, [*members, *m])
    yield "no manifest", lambda path: write(path, members[1:])
    yield "files missing", lambda path: write(path, members[:1])
    yield (
        "manifest is a link",
        lambda path: write(
            path, [*members[1:], *added(layout.MANIFEST, **link, linkname=members[1][0].name)]
        ),
    )
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    raw = whole.getvalue()
    for share in (0.0001, 0.1, 0.5, 0.9):
        yield f"cut at {share}", lambda path, s=share: path.write_bytes(raw[: int(len(raw) * s)])
    yield "compressed", lambda path: path.write_bytes(gzip.compress(raw))
    yield "bomb", lambda path: path.write_bytes(gzip.compress(bytes(64 << 20)))
    yield "headers in headers", lambda path: path.write_bytes(
        tarfile.TarInfo("x").create_pax_header(
            {"name": "././@LongLink", "mode": 0, "uid": 0, "gid": 0, "size": 0, "mtime": 0, "chksum": 0,
             "type": b"x", "linkname": "", "uname": "", "gname": "", "devmajor": 0, "devminor": 0,
             "prefix": ""},
            "utf-8")[:512] * 3000
    )  # fmt: skip
    for place in range(0, 512, 37):
        yield (
            f"header byte {place}",
            lambda path, p=place: path.write_bytes(raw[:p] + bytes([raw[p] ^ 0xFF]) + raw[p + 1 :]),
        )


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    return content(scripted(tmp_path_factory.mktemp("b") / "b.tar").path)


def test_hostile_bundles(members, tmp_path):
    count = refused = 0
    for name, make in kinds(members):
        path = tmp_path / "hostile.tar"
        make(path)
        started = time.monotonic()
        try:
            bundles.load(path)
        except DataError as error:
            refused += 1
            assert str(error).isprintable() and error.hint, name
        assert time.monotonic() - started < 10, name
        path.unlink()
        count += 1
    assert count >= 72 and refused > 0.8 * count, (count, refused)
    assert not Path("/tmp/escape").exists() and not list(tmp_path.parent.rglob("escape"))
    assert list(tmp_path.iterdir()) == []


def test_bundles_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, "/dev/zero"):
        with pytest.raises(DataError, match="no bundle"):
            bundles.load(Path(path))


def test_a_file_larger_than_its_entry_is_refused(members, tmp_path):
    def shrink(manifest):
        next(iter(manifest["files"].values()))["size_bytes"] -= 1
        return manifest

    write(tmp_path / "b.tar", with_manifest(members, shrink))
    with pytest.raises(DataError, match="differs from the manifest"):
        bundles.load(tmp_path / "b.tar")


@pytest.mark.slow
def test_hostile_bundles_by_the_command(members, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    inventory = tmp_path / "config/edgeship/devices.toml"
    inventory.parent.mkdir(parents=True)
    root = tmp_path / "root"
    inventory.write_text(f'[devices.d]\nhost = "local"\ntarget = "openvino"\nroot = "{root}"\n')
    for name, make in kinds(members):
        path = tmp_path / "hostile.tar"
        make(path)
        started = time.monotonic()
        for words in (("deploy", path, "--device", "d", "--dry-run"), ("predict", path, path)):
            done = CliRunner().invoke(app.app, [str(word) for word in words], obj={"debug": False})
            assert isinstance(done.exception, (ToolkitError, SystemExit, type(None))), (
                name,
                repr(done.exception),
            )
        assert time.monotonic() - started < 20, name
    assert not root.exists()
