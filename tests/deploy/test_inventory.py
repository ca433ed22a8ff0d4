"""The inventory and the command line it becomes: no name in it reaches a shell or an option parser."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import inventory
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.transport import command_line, explain

FULL = Device(
    "nano-1", "10.0.0.5", "tensorrt", user="nvidia", port=2222, key="~/.ssh/id", jump="me@gate:22,gate2",
    tags=("lab", "jetson"), root="/data/é \"x\"", health="curl -f localhost",
    python="/usr/bin/python3", ssh_config="cfg",
)  # fmt: skip


def test_what_is_added_is_read_back_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "new/devices.toml"
    inventory.add(path, Device("a", "local", "openvino"))
    path.write_text(path.read_text().replace("[devices", "# a comment of mine\n[devices", 1))
    inventory.add(path, FULL)
    inventory.add(path, Device("dotted.name", "host", "openvino"))
    assert list(inventory.load(path).values()) == [
        Device("a", "local", "openvino"), FULL, Device("dotted.name", "host", "openvino"),
    ]  # fmt: skip
    assert "# a comment of mine" in path.read_text()
    inventory.remove(path, "nano-1")
    assert list(inventory.load(path)) == ["a", "dotted.name"] and "# a comment of mine" in path.read_text()
    with pytest.raises(DeviceError, match="no device named 'nano-1'"):
        inventory.remove(path, "nano-1")
    with pytest.raises(DeviceError, match="has a device 'a' already"):
        inventory.add(path, Device("a", "elsewhere", "openvino"))


def test_defaults_hold_for_every_device(tmp_path: Path) -> None:
    path = tmp_path / "devices.toml"
    path.write_text('[defaults]\nuser = "nvidia"\ntarget = "tensorrt"\n[devices.a]\nhost = "x"\n'
                    '[devices.b]\nhost = "y"\nuser = "root"\n')  # fmt: skip
    loaded = inventory.load(path)
    assert (loaded["a"].user, loaded["b"].user, loaded["b"].target) == ("nvidia", "root", "tensorrt")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"host": "-oProxyCommand=touch /tmp/x"}, "cannot be a host"),
        ({"host": "a b"}, "cannot be a host"),
        ({"host": "x\ny"}, "cannot be a host"),
        ({"host": ""}, "has no host"),
        ({"user": "-l"}, "cannot be a user"),
        ({"user": "a;b"}, "cannot be a user"),
        ({"jump": "$(touch /tmp/x)"}, "cannot be a jump"),
        ({"jump": "-F/tmp/x"}, "cannot be a jump"),
        ({"target": "../x"}, "cannot be a target"),
        ({"target": "tensort"}, "no target named 'tensort'"),
        ({"tags": ["a b"]}, "cannot be a tag"),
        ({"tags": "lab"}, "of the wrong kind"),
        ({"port": "22"}, "of the wrong kind"),
        ({"port": True}, "of the wrong kind"),
        ({"port": 70000}, "no port 70000"),
        ({"root": "/a\nb"}, "has a line break"),
        ({"key": "~nosuchuser/.ssh/id"}, "key = '~nosuchuser/.ssh/id'"),
        ({"password": "x"}, "no field 'password'"),
    ],
)
def test_entries_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        inventory.parse("a", {"host": "x", "target": "openvino", **fields})


values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=2),
    max_leaves=5,
)
keys = st.sampled_from([field.name for field in dataclasses.fields(Device)]) | st.text(max_size=6)


@given(fields=st.dictionaries(keys, values, max_size=5))
def test_garbage_is_refused_or_an_entry_that_ssh_can_take(fields: dict[str, object]) -> None:
    try:
        entry = inventory.parse("a", {"host": "x", "target": "openvino", **fields})
    except DeviceError as error:
        assert error.hint
    else:
        assert all(isinstance(word, str) for word in command_line(entry, ["true"]))


@given(data=st.binary(max_size=60))
def test_a_file_of_garbage_is_no_inventory(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.toml"
    path.write_bytes(data)
    try:
        assert inventory.load(path) == {}
    except DeviceError as error:
        assert error.hint


@pytest.mark.parametrize("name", ["", "../x", "-x", "a b", "a;b", "$(x)", "x" * 64, "ä"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(DeviceError, match="cannot be a name"):
        inventory.parse(name, {"host": "x", "target": "openvino"})


@pytest.mark.parametrize(
    "text",
    [
        "[devices",
        "devices = 3",
        "defaults = 3\n[devices.a]\nhost='x'\ntarget='openvino'",
        "[device.a]\nhost='x'",
        "[devices.a]\ntarget='openvino'",
    ],
)
def test_files_that_are_no_inventory(tmp_path: Path, text: str) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(DeviceError) as caught:
        inventory.load(path)
    assert caught.value.hint


def test_choosing() -> None:
    entries = {
        n: Device(n, "x", "openvino", tags=t) for n, t in (("a", ("lab",)), ("b", ("shop",)), ("c", ("lab",)))
    }
    assert [e.name for e in inventory.choose(entries, ["b"], ["lab"])] == ["a", "b", "c"]
    assert [e.name for e in inventory.choose(entries, [], ["lab"])] == ["a", "c"]
    with pytest.raises(DeviceError, match="no device named 'bb'") as caught:
        inventory.choose(entries, ["bb"], [])
    assert "did you mean 'b'" in caught.value.hint or "known" in caught.value.hint
    with pytest.raises(DeviceError, match="no device has the tag 'labs'"):
        inventory.choose(entries, [], ["labs"])
    with pytest.raises(DeviceError, match="no device is chosen"):
        inventory.choose(entries, [], [])


def test_the_command_line_checks_host_keys_and_quotes_every_word(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    hostile = ["py thon", "-c", "x; $(touch /tmp/x) `y` 'q' \"r\" \n"]
    line = command_line(FULL, hostile)
    assert line[0] == "ssh" and line[-3:-1] == ["--", "10.0.0.5"]
    assert shlex.split(line[-1]) == hostile  # what the device's shell makes of it
    options = dict(part.split("=", 1) for part in line if "=" in part and " " not in part)
    assert options["StrictHostKeyChecking"] == "yes" and options["BatchMode"] == "yes"
    assert options["ControlMaster"] == "auto" and options["ConnectTimeout"] == "8"
    assert [line[line.index(flag) + 1] for flag in ("-p", "-l", "-J", "-F")] == [
        "2222",
        "nvidia",
        "me@gate:22,gate2",
        "cfg",
    ]
    assert line[line.index("-i") + 1] == str(Path("~/.ssh/id").expanduser())
    assert command_line(Device("here", "local", "openvino"), hostile) == hostile
    bare = command_line(Device("b", "alias", "openvino"), ["true"])
    assert not {"-p", "-l", "-J", "-F", "-i"} & set(bare)  # ssh's own configuration decides


def test_sockets_are_in_a_private_folder(monkeypatch) -> None:
    with tempfile.TemporaryDirectory(prefix="es-") as base:  # short: longer ones are passed over
        monkeypatch.setenv("XDG_RUNTIME_DIR", base)
        command_line(FULL, ["true"])
        folder = Path(base, "edgeship")
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
        with pytest.raises(DeviceError, match="not yours alone"):
            command_line(FULL, ["true"])


@pytest.mark.parametrize(
    ("code", "log", "message"),
    [
        (255, "ssh: Could not resolve hostname nano: Name or service not known", "no address is known"),
        (255, "nvidia@10.0.0.5: Permission denied (publickey).", "accepts none of the keys"),
        (255, "ssh: connect to host 10.0.0.5 port 22: Connection timed out", "does not answer"),
        (255, "client_loop: send disconnect: Broken pipe", "connection was lost \\(client_loop"),
        (1, "Traceback\nMemoryError", "connection was lost \\(MemoryError\\)"),
    ],
)
def test_ssh_errors_become_errors_with_a_hint(code: int, log: str, message: str) -> None:
    error = explain(FULL, code, log)
    with pytest.raises(DeviceError, match=f"nano-1: .*{message}"):
        raise error
    assert error.hint
