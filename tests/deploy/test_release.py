"""One device, a real sshd on loopback with a scripted runner: the order of things, and the ways back."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import QUICK, live, processes, quiet

from edgeship.toolkit.cli import report
from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import release
from edgeship.toolkit.deploy.agent_client import RefusedError, connect
from edgeship.toolkit.deploy.inventory import Device


def test_a_release_is_uploaded_proved_and_live(device, bundle):
    server, entry = device
    states: list[str] = []
    first = bundle()
    outcome = release.deploy(entry, first, QUICK, lambda state, _: states.append(state))
    assert list(dict.fromkeys(states)) == [
        "connecting", "probing", "uploading", "checking", "building", "self-test", "accuracy", "latency",
        "switching",
    ]  # fmt: skip
    assert outcome.state == "live" and outcome.before is None and outcome.release == live(server)
    assert outcome.release.startswith(f"{first.id}.")
    record = json.loads((server.root / "current/release.json").read_text())
    assert record == outcome.record
    assert record["accuracy"]["measured_on"] == "device device" and record["accuracy"]["gap_pp"] == 0
    assert record["latency_ms"]["p50"] == 2.0 and record["fake"] is True
    assert record["latency_ms"]["threads"] == 1
    assert record["facts"]["arch"]
    assert not (server.root / "current/graphs/onnxruntime.onnx").exists()  # another target's


def test_the_same_release_again_does_nothing_quickly(device, bundle):
    server, entry = device
    first_s = release.deploy(entry, bundle(), QUICK, quiet).seconds
    before, states = (server.root / "state.json").read_text(), []
    took_s = []
    for _ in range(3):  # the best of three: what else the machine does is none of it
        same = bundle()  # a second bundle with equal bytes
        again = release.deploy(entry, same, QUICK, lambda state, _: states.append(state))
        took_s.append(again.seconds)
    assert min(took_s) < first_s and set(states) == {"connecting", "probing"}
    assert (again.state, again.uploaded_bytes) == ("unchanged", 0) and again.record[
        "variant"
    ] == "openvino-int8"
    assert (server.root / "state.json").read_text() == before


def test_upgrade_rollback_and_forward_again_upload_only_what_is_new(device, bundle):
    server, entry = device
    first = release.deploy(entry, bundle(version=1), QUICK, quiet)
    second = release.deploy(entry, bundle(version=2), QUICK, quiet)
    assert second.before == first.release and live(server) == second.release
    assert second.uploaded_bytes < first.uploaded_bytes  # the runner and the golden inputs are there
    back = release.rollback(entry, None, QUICK, quiet)
    assert (back.release, back.before) == (first.release, second.release) and live(server) == first.release
    forward = release.deploy(entry, bundle(version=2), QUICK, quiet)
    assert (forward.state, forward.uploaded_bytes) == ("live", 0) and live(server) == second.release
    status = release.status(entry)
    assert [entry["why"] for entry in status["history"]] == ["deploy", "deploy", "rollback", "deploy"]
    assert status["previous"] == first.release and status["pending"] is None and status["locked_by"] is None


def test_rollback_by_name_and_its_errors(device, bundle):
    server, entry = device
    with pytest.raises(DeviceError, match="no release to go back to"):
        release.rollback(entry, None, QUICK, quiet)
    names = [release.deploy(entry, bundle(version=v), QUICK, quiet).release for v in (1, 2, 3)]
    assert release.rollback(entry, names[0][:-3], QUICK, quiet).release == names[0] == live(server)
    assert release.rollback(entry, names[0], QUICK, quiet).state == "unchanged"
    with pytest.raises(DeviceError, match="several releases begin with 'scripted'"):
        release.rollback(entry, "scripted", QUICK, quiet)
    with pytest.raises(DeviceError, match=r"no good release begins with '../../etc'"):
        release.rollback(entry, "../../etc", QUICK, quiet)


def test_dry_run_changes_nothing(device, bundle):
    server, entry = device
    planned = release.deploy(entry, bundle(), dataclasses.replace(QUICK, dry_run=True), quiet)
    assert planned.state == "planned" and planned.uploaded_bytes > 4096
    assert any("upload" in step for step in planned.steps) and planned.steps[-1] == "check health: self-test"
    assert not server.root.exists()


def test_prune_keeps_the_live_one_and_the_way_back(device, bundle):
    server, entry = device
    deployed = [release.deploy(entry, bundle(version=v), QUICK, quiet).release for v in (1, 2, 3, 4)]
    release.rollback(entry, deployed[0], QUICK, quiet)
    would = release.prune(entry, 1, dataclasses.replace(QUICK, dry_run=True))
    assert (
        would["removed"] == [deployed[2], deployed[1]] and (server.root / "releases" / deployed[1]).exists()
    )
    assert release.prune(entry, 1, QUICK) == would and would["freed_bytes"] >= 2 * 4096
    status = release.status(entry)
    assert set(status["releases"]) == {deployed[0], deployed[3]} and status["previous"] == deployed[3]
    held = {path.name for path in (server.root / "objects").iterdir()}
    used = {
        entry["sha256"]
        for name in status["releases"]
        for path, entry in json.loads((server.root / "releases" / name / "manifest.json").read_text())[
            "files"
        ].items()
        if (server.root / "releases" / name / path).exists()
    }
    assert used < held and len(held) == len(used) + 2  # and two manifests
    assert release.deploy(entry, bundle(version=2), QUICK, quiet).state == "live"


def test_records_of_the_device_tell_which_is_live(device, bundle):
    _, entry = device
    deployed = [release.deploy(entry, bundle(version=v, ms=v), QUICK, quiet).release for v in (1, 2)]
    records = release.records(release.status(entry))
    assert [(r["release"], r["live"], r["latency_ms"]["p50"]) for r in records] == [
        (deployed[1], True, 2), (deployed[0], False, 1),
    ]  # fmt: skip


def test_the_report_of_a_device_shows_what_it_measured(device, bundle, tmp_path, monkeypatch):
    _, entry = device
    deployed = release.deploy(entry, bundle(version=1, ms=7), QUICK, quiet).release
    monkeypatch.setattr(
        "edgeship.toolkit.cli._devices.selected_devices", lambda inventory, names, tags: [entry]
    )
    shown = CliRunner().invoke(report.command, ["--device", entry.name, "--format", "json"])
    assert shown.exit_code == 0, shown.output
    (record,) = json.loads(shown.stdout)
    assert (record["release"], record["latency_ms"]["p50"], record["live"]) == (deployed, 7, True)
    table = CliRunner().invoke(report.command, ["--device", entry.name], env={"COLUMNS": "240"})
    assert deployed in table.stdout and "7 ms (batch 1, 1 thread)" in table.stdout and "live" in table.stdout


def test_another_environment_is_another_release(device, bundle):
    server, entry = device
    first = release.deploy(entry, bundle(), QUICK, quiet).release
    second = release.deploy(dataclasses.replace(entry, target="onnxruntime"), bundle(), QUICK, quiet).release
    assert first.split(".")[0] == second.split(".")[0] and first != second == live(server)


def test_health_command_of_the_user_runs_in_the_release(device, bundle):
    server, entry = device
    health = "test -f release.json && echo $EDGESHIP_RELEASE >> $EDGESHIP_ROOT/seen"
    deployed = release.deploy(dataclasses.replace(entry, health=health), bundle(), QUICK, quiet)
    assert (server.root / "seen").read_text().split() == [deployed.release]


def test_refusals_before_anything_is_sent(device, bundle, tmp_path):
    server, entry = device
    with pytest.raises(DeviceError, match="no graph for the target tensorrt"):
        release.deploy(dataclasses.replace(entry, target="tensorrt"), bundle(), QUICK, quiet)
    with pytest.raises(DeviceError, match="cannot run /nowhere/python"):
        release.deploy(dataclasses.replace(entry, python="/nowhere/python"), bundle(), QUICK, quiet)
    assert not server.root.exists()


HOSTILE = """it's a "folder" $(touch {0}) `touch {0}` ; touch {0} & | > * ~ \\ %h é"""


@pytest.mark.parametrize("local", [False, True], ids=["by ssh", "this machine"])
def test_no_name_or_path_reaches_a_shell(device, bundle, tmp_path, local):
    _, entry = device
    touched = tmp_path / "touched"
    folder = tmp_path / HOSTILE.format("touched")
    folder.mkdir()
    python = folder / "py thon"
    shutil.copy(entry.python, python)
    odd = dataclasses.replace(
        entry,
        host="local" if local else entry.host,
        root=str(folder / "root"),
        python=shlex.quote(str(python)),
    )
    assert release.deploy(odd, bundle(), QUICK, quiet).state == "live"
    release.deploy(odd, bundle(version=2), QUICK, quiet)
    assert release.rollback(odd, None, QUICK, quiet).state == "live"
    assert not touched.exists() and not list(tmp_path.rglob("touched"))
    assert (folder / "root/current/release.json").exists()


def test_a_device_that_was_only_probed_is_unchanged(tmp_path):
    entry = Device("here", "local", "openvino", root=str(tmp_path / "root"), python=sys.executable)
    probed = release.facts(entry)
    assert probed["facts"]["arch"] and probed["status"]["releases"] == {} and not (tmp_path / "root").exists()


READER = """
import pathlib, sys
link, reads = pathlib.Path(sys.argv[1], "current"), 0
print("ready", flush=True)
while not pathlib.Path(sys.argv[1], "stop").exists():
    for _ in range(50):
        assert (link / "release.json").read_text().endswith("}"), "torn"
        reads += 1
print(reads)
"""


def test_a_reader_sees_no_moment_without_a_valid_release(device, bundle):
    server, entry = device
    names = [release.deploy(entry, bundle(version=v), QUICK, quiet).release for v in (1, 2)]
    command = [sys.executable, "-S", "-c", READER, str(server.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
        reader.stdout.readline()
        with connect(entry) as session:
            session.call("lock", wait_s=0.0, who="test")
            for name in names * 25:
                session.call("activate", release=name, health=["true"], limit_s=9.0, who="test", why="deploy")
        (server.root / "stop").touch()
        reads, errors = reader.communicate(timeout=300)
    assert reader.returncode == 0, errors
    assert int(reads) > 500 and len(release.status(entry)["history"]) == 52


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param(
            {"gates": {"max_latency_ms": 1.5}},
            "2 ms .batch 1, 1 thread., 1.5 ms are allowed",
            id="too slow",
        ),
        pytest.param({"top1": 0.88}, "2.00 pp below the simulation; 1.00 pp are allowed", id="less accurate"),
    ],
)
def test_gates_decide_on_what_the_device_measured(device, bundle, fault, message):
    server, entry = device
    first = release.deploy(entry, bundle(), QUICK, quiet).release
    with pytest.raises(RefusedError, match=message):
        release.deploy(entry, bundle(version=2, **fault), QUICK, quiet)
    assert live(server) == first and len(list((server.root / "releases").iterdir())) == 1


def test_nothing_of_a_bundle_is_in_the_process_list(device):
    _, entry = device
    with connect(dataclasses.replace(entry, root=f"{entry.root}/SECRET")) as session:
        session.call("status")
        lines = processes("os.fdopen(os.dup(0)")
    assert len(lines) >= 2 and not any("SECRET" in line for line in lines)  # here and there


def test_the_agent_is_python_3_8():
    import ast

    for path in Path(release.__file__).with_name("agent").glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))
