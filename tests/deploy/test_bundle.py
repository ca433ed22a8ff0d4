"""The bundle: reproducible bytes, and every change is detected."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from loopback import make_key, scripted

from edgeship.targets import runner
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import layout
from edgeship.toolkit.deploy.bundle import Contents, Graph


def test_the_same_contents_give_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (scripted(tmp_path / f"{n}.tar", version=v) for n, v in enumerate((1, 1, 2)))
    assert first.path.read_bytes() == again.path.read_bytes() != other.path.read_bytes()
    assert first.id == again.id != other.id and first.id.startswith("scripted-")


def test_the_manifest_has_the_digest_of_every_file(tmp_path: Path) -> None:
    bundle = scripted(tmp_path / "b.tar")
    assert {"graphs/openvino.onnx", "golden/openvino/golden.json", layout.RUNNER, layout.EVALUATION} < set(
        bundle.files
    )
    for file in bundle.files.values():
        assert hashlib.sha256(bundle.read(file.path)).hexdigest() == file.sha256
        assert len(bundle.read(file.path)) == file.size_bytes
    with tarfile.open(bundle.path) as archive:
        assert set(archive.getnames()) == {layout.MANIFEST, *bundle.files}
        links = [member for member in archive if member.islnk()]
    assert links and bundle.read(links[0].name) == bundle.read(
        links[0].linkname
    )  # equal contents are stored once


def test_a_device_gets_only_what_its_target_needs(tmp_path: Path) -> None:
    bundle = scripted(tmp_path / "b.tar")
    paths = {file.path for file in bundle.files_for("openvino")}
    assert not any("onnxruntime" in path for path in paths)
    assert paths | {file.path for file in bundle.files_for("onnxruntime")} == {
        layout.MANIFEST,
        *bundle.files,
    }


def test_the_runner_is_the_real_one_unless_given(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"graph")
    graph = Graph("openvino-int8", "openvino", "int8", tmp_path / "g.onnx", np.zeros((1, 2), np.float32))
    bundle = bundles.make(
        Contents("My Net / v1!", [graph], np.zeros((1, 3, 2, 2), np.float32)), tmp_path / "b.tar"
    )
    assert bundle.read(layout.RUNNER) == runner.source()
    assert bundle.manifest["name"] == "my-net-v1"
    assert np.frombuffer(bundle.read("golden/openvino/inputs.f32"), "<f4").shape == (12,)


@pytest.mark.parametrize("name", [layout.MANIFEST, layout.RUNNER, "graphs/openvino.onnx"])
def test_a_changed_file_is_noticed(tmp_path: Path, name: str) -> None:
    bundle = scripted(tmp_path / "b.tar")
    data = bytearray(bundle.path.read_bytes())
    with tarfile.open(bundle.path) as archive:
        place = archive.getmember(name).offset_data + 5
    data[place] ^= 1
    bundle.path.write_bytes(data)
    with pytest.raises(DataError, match=r"differs from the manifest|is no bundle"):
        bundles.load(bundle.path)


@pytest.mark.parametrize("content", [b"", b"no tar at all", b"\0" * 10240])
def test_what_is_no_bundle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.tar").write_bytes(content)
    with pytest.raises(DataError, match="is no bundle") as caught:
        bundles.load(tmp_path / "b.tar")
    assert "edgeship bundle" in caught.value.hint
    with pytest.raises(DataError, match="cannot read"):
        bundles.load(tmp_path / "absent.tar")


def test_signing_keeps_the_contents_and_verifies(tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    plain = scripted(tmp_path / "plain.tar")
    signed = bundles.sign(scripted(tmp_path / "signed.tar"), tmp_path / "key")
    again = bundles.sign(scripted(tmp_path / "again.tar"), tmp_path / "key")
    assert signed.id == plain.id and signed.files == plain.files
    assert signed.path.read_bytes() == again.path.read_bytes()
    assert bundles.sign(signed, tmp_path / "key").path.read_bytes() == again.path.read_bytes()  # replaced
    (tmp_path / "allowed").write_text(f"me {(tmp_path / 'key.pub').read_text()}")
    (tmp_path / "sig").write_bytes(signed.read(layout.SIGNATURE))
    verify = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-n",
        "edgeship",
        "-I",
        "me",
        "-f",
        tmp_path / "allowed",
        "-s",
        tmp_path / "sig",
    ]
    done = subprocess.run(verify, input=signed.read(layout.MANIFEST), capture_output=True, check=True)
    assert b"Good" in done.stdout
    (tmp_path / "no-key").write_text("nothing")
    with pytest.raises(DataError, match="cannot sign with"):
        bundles.sign(plain, tmp_path / "no-key")


def test_contents_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"graph")
    graph = Graph("openvino-int8", "openvino", "int8", tmp_path / "g.onnx", np.zeros((2, 2), np.float32))
    contents = Contents("net", [graph], np.zeros((2, 3, 2, 2), np.float32))
    with pytest.raises(DataError, match="one graph for each target"):
        bundles.make(dataclasses.replace(contents, graphs=[graph, graph]), tmp_path / "b.tar")
    with pytest.raises(DataError, match="3 golden inputs, 2 logits"):
        bundles.make(
            dataclasses.replace(contents, golden_inputs=np.zeros((3, 3, 2, 2), np.float32)),
            tmp_path / "b.tar",
        )
    assert not (tmp_path / "b.tar").exists()
