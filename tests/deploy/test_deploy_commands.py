"""The commands, as a user types them, against a real sshd on loopback."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from loopback import live, make_key
from runner import jetson_tree

from edgeship.targets.runner import sysfs
from edgeship.toolkit.cli import app, device
from edgeship.toolkit.core.errors import DeviceError, ToolkitError


@pytest.fixture
def edgeship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a command line; the result has the exception."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def call(*arguments: object) -> Result:
        context = {"debug": False}
        return CliRunner().invoke(app.app, [str(a) for a in arguments], obj=context)

    return call


def add(edgeship, entry) -> None:
    done = edgeship(
        "device", "add", entry.name, "--host", entry.host, "--port", entry.port, "--user", entry.user,
        "--target", entry.target, "--root", entry.root, "--python", entry.python,
        "--ssh-config", entry.ssh_config, *(word for tag in entry.tags for word in ("--tag", tag)),
    )  # fmt: skip
    assert done.exit_code == 0, done.output


def test_a_device_from_adding_to_removing(edgeship, park, bundle, tmp_path):
    server = park.server("one")
    add(edgeship, park.entry(server, "one", tags=("lab",)))
    listed = edgeship("device", "list")
    assert "one" in listed.stdout and "lab" in listed.stdout
    assert json.loads(edgeship("device", "list", "--json").stdout)[0]["port"] == server.port

    probed = edgeship("device", "probe", "one")
    assert (
        "openvino" in probed.stdout
        and "2026.0-stub: fp32, int8" in probed.stdout
        and "live release" in probed.stdout
    )
    assert json.loads(edgeship("device", "probe", "one", "--json").stdout)["backends"]["openvino"]["fake"]
    assert "nothing installed" in edgeship("status").stdout

    first, second = bundle(), bundle(version=2, power_mw=5000.0)
    planned = edgeship("deploy", first.path, "--device", "one", "--dry-run")
    assert "one: upload" in planned.stdout and not server.root.exists()
    done = edgeship("deploy", first.path, "--device", "one", "--time", "0.1")
    assert done.exit_code == 0 and "live" in done.stdout and "fake" in done.stdout
    assert "one: uploading" in done.stderr and "uploading" not in done.stdout
    assert "unchanged" in edgeship("deploy", first.path, "--tag", "lab").stdout
    report = tmp_path / "fleet"
    done = edgeship("deploy", second.path, "--tag", "lab", "--report", report)
    assert f"{report}/fleet.md" in done.stdout and "5.00 W" in (report / "fleet.md").read_text()
    assert json.loads((report / "fleet.json").read_text())["counts"] == {"live": 1}

    status = edgeship("status", "--device", "one").stdout
    assert status.count("one ") == 2 and " live " in status and " previous " in status and "(fake)" in status
    assert status.count("2 ms (batch 1, 1 thread)") == 2
    back = edgeship("rollback", "--device", "one")
    assert back.stdout.startswith(f"one: {live(server)} is live, before: ") and first.id in back.stdout
    assert first.id == json.loads(edgeship("status", "--json").stdout)["one"]["current"].split(".")[0]

    assert "no frames watched yet" in edgeship("watch", "--tag", "lab").stdout
    seen = {
        "frames": 1200,
        "evidence": 3.5,
        "frames_to_false_alarm": 1e6,
        "alarm": None,
        "updated": 7,
        "sums": [1],
    }
    (server.root / "monitor.json").write_text(json.dumps(seen))
    for command in (("watch", "--device", "one"), ("status",), ("report", "--device", "one")):
        assert "1,200 frames watched, no alarm" in edgeship(*command).stdout
    fresh = Path("/dev/shm") / f"edgeship-{secrets.token_hex(8)}.json"
    (server.root / "monitor.json").write_text(json.dumps({**seen, "memory": fresh.name}))
    try:
        fresh.write_text(json.dumps({**seen, "frames": 1500}))  # newer than the one on the disk
        assert "1,500 frames watched" in edgeship("status").stdout
        (server.root / "monitor.json").write_text(json.dumps({**seen, "memory": f"../shm/{fresh.name}"}))
        assert "1,200 frames watched" in edgeship("status").stdout
    finally:
        fresh.unlink()
    alarm = {"frame": 1100, "time": 7, "cause": "bgr", "title": "red and blue\x1b are exchanged"}
    (server.root / "monitor.json").write_text(json.dumps({**seen, "alarm": alarm}))
    alarmed = edgeship("watch", "--json")
    assert alarmed.exception.exit_code == 3 and "red and blue" in str(alarmed.exception)
    assert json.loads(alarmed.stdout)["one"]["monitor"]["alarm"]["cause"] == "bgr"
    assert "\x1b" not in edgeship("watch").stdout and "ALARM" in edgeship("status").stdout
    for damaged in ("", "[]", '{"frames": -1}', json.dumps({**seen, "evidence": float("nan")})):
        (server.root / "monitor.json").write_text(damaged)
        assert "no frames watched yet" in edgeship("watch", "--device", "one").stdout
    (server.root / "monitor.json").unlink()

    pruned = edgeship("prune-releases", "--device", "one", "--keep", "1", "--dry-run")
    assert "would remove no release" in pruned.stdout  # the rollback target stays

    make_key(tmp_path / "key")
    signers = tmp_path / "signers"
    signers.write_text(f"me {(tmp_path / 'key.pub').read_text()}")
    assert edgeship("device", "trust", "one", signers).exit_code == 0
    refused = edgeship("deploy", bundle(version=3).path, "--device", "one")
    assert isinstance(refused.exception, DeviceError) and "not signed" in str(refused.exception)
    assert "failed" in refused.stdout

    assert edgeship("device", "remove", "one").exit_code == 0
    assert "no devices yet" in edgeship("device", "list").stderr


def test_what_probe_tells_of_a_jetson(tmp_path):
    """From a file tree laid from public records: a fake, not a device."""
    tree = sysfs.Tree(str(jetson_tree.lay(tmp_path, jetson_tree.ORIN_NANO)))
    status = {"hostname": "orin", "root": "/srv", "free_bytes": 2**33, "current": None}
    absent = {"available": False, "cause": "it is not there"}
    probed = {"facts": sysfs.gather(tree, "/"), "status": status, "backends": {"tensorrt": absent}}
    rows = dict(device._facts(probed))
    assert rows["JetPack"] == "6.2 (L4T 36.4.3)"
    assert rows["GPU"] == "SM 8.7, no DLA cores, up to 1020 MHz, not locked"
    assert (rows["CUDA"], rows["power mode"]) == ("12.6.68", "15W")
    assert (rows["power"], rows["temperature"]) == ("5.40 W (VDD_IN)", "48 C (gpu-thermal)")
    assert rows["tensorrt"] == "no: it is not there"
    nano = sysfs.gather(sysfs.Tree(str(jetson_tree.lay(tmp_path / "nano", jetson_tree.NANO))), "/")
    rows = dict(device._facts({**probed, "facts": nano}))
    assert rows["GPU"] == "SM 5.3, no INT8, no DLA cores, up to 922 MHz, locked"


def test_one_of_two_devices_fails(edgeship, park, bundle):
    good, dead = park.server("good"), park.server("dead")
    for server in (good, dead):
        add(edgeship, park.entry(server, server.folder.name, tags=("all",)))
    dead.stop()
    done = edgeship("deploy", bundle().path, "--tag", "all", "--max-failures", "1", "--parallel", "1")
    assert isinstance(done.exception, DeviceError) and "1 of 2 devices failed; dead: " in str(done.exception)
    assert live(good) and "unreachable" in edgeship("status").stdout
    pruned = edgeship("prune-releases", "--device", "dead", "--tag", "all")
    assert "good: removed no release" in pruned.stdout and "dead: failed" in pruned.stderr
    assert isinstance(pruned.exception, DeviceError) and "1 of 2 devices failed" in str(pruned.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("deploy", "BUNDLE", "--device", "absent"), "no device named 'absent'"),
        (("deploy", "BUNDLE"), "no device is chosen"),
        (("status",), "no device is chosen"),
        (("rollback", "--tag", "x"), "no device has the tag 'x'"),
        (("device", "add", "a", "--host", "h", "--target", "openvin"), "no target named 'openvin'"),
        (("device", "add", "a;b", "--host", "h", "--target", "openvino"), "'a;b' cannot be a name"),
        (("device", "add", "a", "--host", "-oProxyCommand=x", "--target", "openvino"), "cannot be a host"),
        (("deploy", "/dev/null", "--device", "x"), "no device named 'x'"),
    ],
)
def test_what_a_user_gets_wrong(edgeship, bundle, arguments, message):
    done = edgeship(*(bundle().path if word == "BUNDLE" else word for word in arguments))
    assert isinstance(done.exception, ToolkitError) and message in str(done.exception) and done.exception.hint


def test_this_machine_by_the_command_line(edgeship, tmp_path):
    assert (
        edgeship(
            "device", "add", "here", "--host", "local", "--target", "openvino", "--root", tmp_path
        ).exit_code
        == 0
    )
    probed = edgeship("device", "probe", "here").stdout
    assert "openvino" in probed and "processor" in probed and str(tmp_path) in probed
