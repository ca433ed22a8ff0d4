"""Output paths: inputs and networks of other commands are not overwritten."""

import shutil

import pytest
from qdq_graphs import FLOAT, OPENVINO, residual_net, save

from edgeship.toolkit.cli import app
from edgeship.toolkit.models import weights
from edgeship.toolkit.models.resnet import architecture, build


@pytest.fixture
def refused(capsys):
    def refused(*arguments, text="would be overwritten"):
        with pytest.raises(SystemExit) as left:
            app.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        assert (left.value.code, out) == (2, "") and text in err and "another" in err and "--out" in err

    return refused


@pytest.fixture
def checkpoint(tmp_path):
    return weights.save(build(architecture("resnet20", width=4), seed=0), tmp_path / "net")


@pytest.mark.parametrize(
    "command", ["quantize", "quantize its images", "audit --fix", "audit --fix by a link"]
)
def test_an_input_is_no_output(refused, tmp_path, command):
    path = save(residual_net(OPENVINO if "audit" in command else FLOAT), tmp_path / "net.onnx")
    photos = tmp_path / "photos.zip"
    photos.write_bytes(b"photos")
    (tmp_path / "link.onnx").symlink_to(path)
    before = path.read_bytes()
    if "audit" in command:
        refused(
            "audit", path, "--fix", "--out", tmp_path / ("link.onnx" if "link" in command else "net.onnx")
        )
    else:
        written = photos if "images" in command else path
        refused("quantize", path, photos, "--target", "openvino", "--out", written)
    assert path.read_bytes() == before and photos.read_bytes() == b"photos"


def test_a_key_is_no_bundle(refused, tmp_path):
    (tmp_path / "key").write_text("secret")
    refused("bundle", tmp_path, "--sign", tmp_path / "key", "--out", tmp_path / "key")


@pytest.mark.parametrize("source", ["net", "net/model.safetensors"])
def test_a_network_is_not_pruned_onto_itself(refused, checkpoint, tmp_path, source):
    before = checkpoint.read_bytes()
    refused("prune", tmp_path / source, "digits:train", "--keep-ratio", "0.5", "--out", tmp_path / "net")
    shutil.move(tmp_path / "net", tmp_path / "keep-0.5")
    moved = tmp_path / source.replace("net", "keep-0.5")
    refused("prune", moved, "digits:train", "--widths", "0.5,0.9", "--out", tmp_path)
    assert (tmp_path / "keep-0.5" / "model.safetensors").read_bytes() == before


def test_a_network_of_another_command_stays(refused, checkpoint, tmp_path):
    other = weights.save(build(architecture("resnet20", width=8), seed=0), tmp_path / "other")
    before = other.read_bytes()
    refused("prune", checkpoint, "digits:train", "--keep-ratio", "0.5", "--out", other.parent)
    refused("train", "digits:train", "--model", "resnet20", "--out", other.parent)
    (other.parent / "widths.json").unlink()
    refused("train", "digits:train", "--model", "resnet20", "--out", other.parent)
    assert other.read_bytes() == before


def test_training_leaves_a_checkpoint_of_that_name_alone_and_can_be_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGESHIP_STORE", str(tmp_path / "store"))
    (tmp_path / "checkpoint.pt").write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(SystemExit) as left:
            app.main(
                [
                    "train",
                    "digits:test",
                    "--model",
                    "resnet20",
                    "--size",
                    "8",
                    "--epochs",
                    "1",
                    "--out",
                    str(tmp_path),
                ]
            )
        assert not left.value.code
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"mine"
    assert (tmp_path / "history.json").is_file()
