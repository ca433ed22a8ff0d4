"""Archives with false sizes, paths outside their folder, or damage."""

import io
import stat
import tarfile
import zipfile
import zlib
from functools import cache

import numpy as np
import pytest
from measured import peak

from edgeship.calibration import file_sources
from edgeship.calibration.datasets import open_dataset
from edgeship.toolkit.core.errors import DataError


def zip_with(path, name, data=b"x", mode=0):
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, data)
    return path


def tar_with(path, name, kind=tarfile.REGTYPE, target=""):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, 1 if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize(
    "name", ["/etc/a.jpg", "../a.jpg", "cat/../../a.jpg", "..\\a.jpg", "C:/a.jpg", "\\a.jpg"]
)
@pytest.mark.parametrize("pack", [zip_with, tar_with])
def test_members_outside_are_refused(tmp_path, name, pack):
    path = pack(tmp_path / ("a.zip" if pack is zip_with else "a.tar"), name)
    with pytest.raises(DataError, match="lies outside the archive's folder") as caught:
        open_dataset(path)
    assert "do not trust" in caught.value.hint


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_in_a_tar_are_refused(tmp_path, kind):
    with pytest.raises(DataError, match=r"member 'cat/a\.jpg' is a link"):
        open_dataset(tar_with(tmp_path / "a.tar", "cat/a.jpg", kind, "/etc/passwd"))


def test_links_in_a_zip_are_refused(tmp_path):
    path = zip_with(tmp_path / "a.zip", "cat/a.jpg", b"/etc/passwd", stat.S_IFLNK | 0o777)
    with pytest.raises(DataError, match="is a link"):
        open_dataset(path)


def test_a_bomb_is_refused_before_it_unpacks(tmp_path, monkeypatch):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", b"\0" * 5000)
    monkeypatch.setattr(file_sources, "MAX_FILE_BYTES", 4999)
    with pytest.raises(DataError, match="more than any image may"):
        open_dataset(path).read(0)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jpg", b"1")
        archive.writestr("a.jpg", b"2")
    with pytest.raises(DataError, match=r"holds 'a.jpg' twice"):
        open_dataset(tmp_path / "a.zip")


def test_encrypted_member(tmp_path):
    path = zip_with(tmp_path / "a.zip", "a.jpg")
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag in the member's own header
    data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    path.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        open_dataset(path).read(0)


def test_changed_byte_in_a_zip_is_noticed(tmp_path):
    path = zip_with(tmp_path / "a.zip", "a.jpg", b"content")
    path.write_bytes(path.read_bytes().replace(b"content", b"cOntent"))
    with pytest.raises(DataError, match=r"cannot read a.jpg in .*CRC"):
        open_dataset(path).read(0)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
@pytest.mark.parametrize("content", [b"", b"no archive at all" * 100, b"\x1f\x8b" + b"\0" * 50])
def test_what_is_no_archive_says_so(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}"):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_tar_that_was_cut_off(tmp_path, class_folder, mode, part):
    whole = tmp_path / "whole.tar"
    with tarfile.open(whole, mode) as archive:
        archive.add(class_folder({"a": 4, "b": 4}), ".")
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * part)])
    with pytest.raises(DataError, match=r"cut\.tar") as caught:
        dataset = open_dataset(cut)
        for index in range(len(dataset)):
            dataset.read(index)
        assert len(dataset) == 8
    assert "copy it again" in caught.value.hint


def test_a_full_temporary_disk(tmp_path, class_folder, monkeypatch):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(class_folder({"a": 1, "b": 1}), ".")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_sources.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match="No space left") as caught:
        open_dataset(path)
    assert "TMPDIR" in caught.value.hint


@cache
def zeros(count):
    """Return a deflate stream of so many MB of zeros as (bytes, CRC, length)."""
    packer, crc, block = zlib.compressobj(9, zlib.DEFLATED, -15), 0, bytes(1 << 20)
    data = b""
    for _ in range(count):
        data += packer.compress(block)
        crc = zlib.crc32(block, crc)
    return data + packer.flush(), crc, count << 20


@pytest.mark.parametrize("claimed", [300 << 20, 4 << 30, 100])
def test_a_small_zip_of_gigabytes(tmp_path, claimed):
    """Check that an expanding member raises, with true and false sizes in the directory."""
    data, crc, length = zeros(64)
    path = zip_with(tmp_path / "a.zip", "cat/a.jpg", b"")
    with zipfile.ZipFile(path, "w") as archive, archive.open("cat/a.jpg", "w") as stream:
        stream.write(data)
    raw = bytearray(path.read_bytes())
    assert len(raw) < 4 << 20
    for signature, method, sizes in ((b"PK\x03\x04", 8, 14), (b"PK\x01\x02", 10, 16)):
        place = raw.index(signature)
        raw[place + method : place + method + 2] = (8).to_bytes(2, "little")
        fields = (crc, len(data), min(claimed, (1 << 32) - 2))
        raw[place + sizes : place + sizes + 12] = b"".join(field.to_bytes(4, "little") for field in fields)
    path.write_bytes(raw)
    with peak() as used, pytest.raises(DataError) as caught:
        open_dataset(path).image(0)
    assert used.seconds < 2 and used.megabytes < 40 and caught.value.hint
    assert length > 100


@pytest.mark.parametrize("name", ["a.tar.gz", "a.npz"])
def test_other_small_files_of_gigabytes(tmp_path, name, monkeypatch):
    monkeypatch.setattr(file_sources, "_FREE_BYTES", 1 << 20)
    path = tmp_path / name
    if name == "a.npz":
        np.savez_compressed(path, x=np.zeros((300, 64, 64, 3), np.uint8))
    else:
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("cat/a.jpg")
            info.size = 64 << 20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    with peak() as used, pytest.raises(DataError, match=r"unpacks to .* 100 times"):
        open_dataset(path)
    assert used.seconds < 2 and used.megabytes < 100


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_without_a_bound_are_refused(tmp_path, method, jpeg):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        archive.writestr("cat/a.jpg", jpeg(0))
    with pytest.raises(DataError, match="compression method"):
        open_dataset(tmp_path / "a.zip").read(0)


def test_a_tar_whose_header_claims_gigabytes(tmp_path):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    with peak() as used, pytest.raises(DataError, match=r"a\.tar"):
        open_dataset(tmp_path / "a.tar")
    assert used.megabytes < 50


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "a.jpg").open("wb") as stream:
        stream.truncate(4 << 30)  # sparse
    with peak() as used, pytest.raises(DataError, match="4096 MiB"):
        open_dataset(tmp_path / "data").read(0)
    assert used.megabytes < 50
