"""Checkpoints of interrupted passes: a damaged one is noticed and never used."""

import pytest
import torch

from edgeship.toolkit.models.checkpoints import read_checkpoint, write_checkpoint


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "state.pt"
    write_checkpoint(path, {"weights": torch.arange(1000, dtype=torch.float32), "epoch": 3})
    return path


def test_the_content_is_read_back(path):
    content = read_checkpoint(path)
    assert content["epoch"] == 3 and torch.equal(content["weights"], torch.arange(1000.0))
    assert read_checkpoint(path.with_name("absent.pt")) is None


@pytest.mark.parametrize("position", [0, 200, 1000, 2500, 4000, -10])
def test_a_flipped_bit_never_changes_the_content(path, position, caplog):
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    content = read_checkpoint(path)
    if content is None:
        assert not path.exists() and "is damaged" in caplog.text
    else:  # a byte that neither names nor holds content
        assert content["epoch"] == 3 and torch.equal(content["weights"], torch.arange(1000.0))


@pytest.mark.parametrize("data", [b"", b"PK", b"no checkpoint", b"PK\x03\x04" + bytes(100)])
def test_other_bytes_count_as_absent(path, data):
    path.write_bytes(data)
    assert read_checkpoint(path) is None and not path.exists()


def test_a_flipped_weight_is_noticed(path):
    data = path.read_bytes()
    start = data.index(torch.arange(1000, dtype=torch.float32).numpy().tobytes())
    path.write_bytes(data[: start + 400] + bytes([data[start + 400] ^ 1]) + data[start + 401 :])
    assert read_checkpoint(path) is None
