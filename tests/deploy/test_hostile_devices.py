"""Devices that answer anything: the fault names device and field, nothing hangs, the others go on."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from hostile_device import ESCAPES, KINDS, of, put
from runner import jetson_tree

from edgeship.targets.runner import sysfs
from edgeship.toolkit.cli import app
from edgeship.toolkit.core.errors import DeviceError, ToolkitError
from edgeship.toolkit.deploy import agent_client, answer_types, answers, release
from edgeship.toolkit.deploy.inventory import Device

HOSTILE = Path(__file__).parent.with_name("hostile_device.py")
HARMLESS = {  # kinds that are no lie about a gate: the deployment may go on
    "probe: text with escapes", "stderr without end", "status: blank lines without end",
    "stage: blank lines without end", "evaluate: blank lines without end",
}  # fmt: skip


@pytest.fixture
def python(tmp_path):
    """A Python that starts fast, with SDKs that are stubs."""
    wrapper = tmp_path / "python"
    stubs = Path(__file__).with_name("stub_sdk")
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={stubs} exec {sys.executable} -S "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.fixture
def edgeship(tmp_path, monkeypatch, python):
    """Return a function that runs a command line on devices of the inventory."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    inventory = tmp_path / "config/edgeship/devices.toml"
    inventory.parent.mkdir(parents=True)

    def call(kind: str, honest: int, *arguments: object):
        lines = []
        for number in range(honest + 1):
            words = [python] if number else [sys.executable, "-S", str(HOSTILE), kind, python]
            lines += [
                f"[devices.d{number}]", 'host = "local"', 'target = "openvino"', 'tags = ["all"]',
                f"root = {json.dumps(str(tmp_path / f'root{number}'))}",
                f"python = {json.dumps(shlex.join(words))}",
            ]  # fmt: skip
        inventory.write_text("\n".join(lines))
        started = time.monotonic()
        result = CliRunner().invoke(app.app, [str(a) for a in arguments], obj={"debug": False})
        result.seconds = time.monotonic() - started
        return result

    return call


def clean(result) -> bool:
    """Return True if a command ended as commands end, and printed no control characters."""
    assert result.exception is None or isinstance(result.exception, (ToolkitError, SystemExit)), repr(
        result.exception
    )
    texts = (result.output, str(result.exception), getattr(result.exception, "hint", ""))
    return all(char.isprintable() or char == "\n" for text in texts for char in text)


def check_kind(kind, edgeship, bundle, tmp_path, fleet, slower=1):
    name = KINDS[kind][0]
    for arguments in (
        ("status", "--device", "d0"),
        ("device", "probe", "d0"),
        ("device", "probe", "d0", "--json"),
    ):
        shown = edgeship(kind, 0, *arguments)
        assert clean(shown) and shown.seconds < 10 * slower, (arguments, shown.seconds)
        assert "d0" in str(shown.exception) or shown.exit_code == 0
    report = tmp_path / "fleet"
    words = ("deploy", bundle.path, "--tag", "all", "--duration", 0.05, "--max-failures", 1, "--out", report)
    done = edgeship(kind, 3 if fleet else 0, *words)
    assert clean(done)
    devices = json.loads((report / "fleet.json").read_text())["devices"]
    assert [each["state"] for each in devices[1:]] == ["live"] * (3 if fleet else 0)
    assert done.seconds < (25 if fleet else 16) * slower  # a deployment itself takes some seconds
    live = tmp_path / "root0/current"
    if devices[0]["state"] != "live":
        assert "d0: " in devices[0]["error"] and devices[0]["hint"]
        assert not live.exists()  # its gates were not passed
    else:
        assert kind in HARMLESS or name in {"status", "have"}, kind
    return devices[0]


SOME = [
    "run.exit=Ellipsis", "evaluate.top1=nan", "evaluate.top1=None", "status.releases=[]",
    "stage: silent", "status: line without end", "evaluate: noise without end", "stage: error with escapes",
]  # fmt: skip


@pytest.mark.parametrize("kind", SOME)
def test_a_hostile_device_alone(kind, edgeship, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(agent_client, "SILENCE_S", 3.0)
    device = check_kind(
        kind, edgeship, bundle(), tmp_path, fleet=False, slower=10
    )  # the hostile one goes on for 600 s
    if "top1" in kind:
        assert re.search(r"field '(event\.)?top1' is (nan|None), expected", device["error"])


@pytest.mark.slow
@pytest.mark.parametrize("fleet", [False, True], ids=["alone", "fleet of four"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_hostile_device(kind, fleet, edgeship, bundle, tmp_path):
    check_kind(kind, edgeship, bundle(), tmp_path, fleet)


@pytest.mark.slow
def test_a_login_without_an_answer_has_its_cause_within_ten_seconds(tmp_path, python):
    words = shlex.join([sys.executable, "-S", str(HOSTILE), "login: silent", python])
    started = time.monotonic()
    with pytest.raises(DeviceError, match="no answer from") as caught:
        release.status(Device("d0", "local", "openvino", root=str(tmp_path), python=words))
    assert time.monotonic() - started < 10 and "must print a version" in caught.value.hint


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """Answers of an honest device: {command: answer}."""
    folder = tmp_path_factory.mktemp("honest")
    recorded = {}
    from loopback import QUICK, quiet, scripted

    check = answers.check

    def note(device, name, value, kind):
        recorded.setdefault(name, (copy.deepcopy(value), kind))
        return check(device, name, value, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "check", note)
        entry = Device(
            "d0", "local", "openvino", root=str(folder / "root"), python=shlex.quote(sys.executable)
        )
        release.deploy(entry, scripted(folder / "b.tar"), QUICK, quiet)
        release.status(entry)
        recorded["record"] = (
            json.loads((folder / "root/current/release.json").read_text()),
            answer_types.Record,
        )
    return recorded


def fields(value, path=()):
    """Yield the paths of all fields."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from fields(item, (*path, key))


def test_every_field_of_every_answer_is_checked(honest):
    refused = 0
    for name in (
        "status",
        "have",
        "stage",
        "run",
        "probe",
        "build",
        "selftest",
        "evaluate",
        "time",
        "record",
    ):
        value, kind = honest[name]
        answers.check("d0", name, copy.deepcopy(value), kind)  # it is honest
        for path in fields(value):
            for bad in (..., None, [], {}, "x", -1e300, True, float("nan"), 10**30):
                message = {"ok": copy.deepcopy(value)}
                line = put(path, bad)(message).encode()
                try:
                    parsed = answers.parse("d0", line)
                    answers.check("d0", name, parsed["ok"], kind)
                except DeviceError as error:
                    refused += 1
                    assert str(error).startswith("d0: ") and "field '" in str(error) and error.hint
                else:
                    assert not isinstance(bad, float) or math.isfinite(bad), path
    assert refused > 300


def test_texts_are_printable_and_lines_bounded():
    parsed = answers.parse("d0", json.dumps({"ok": {ESCAPES: [ESCAPES, "é 漢"]}}).encode())
    ((key, (text, other)),) = parsed["ok"].items()
    assert text.isprintable() and key.isprintable() and other == "é 漢" and " | other: live\\x00" in text
    assert len(answers.printable_text("x" * 10**6)) < 6000
    for noise in (b"Welcome!", b"\xff{", b'{"ok": ', b"[1]", b"5", b"{}", b"[" * 10**6, b'{"other": 1}'):
        assert answers.parse("d0", noise, strict=False) is None
        with pytest.raises(DeviceError, match="d0: answer is"):
            answers.parse("d0", noise)
    for odd in (b'{"ok": {"a": {"b": 1e999}}}', b'{"ok": {"a": {"b": ' + b"9" * 400 + b"}}}"):
        with pytest.raises(DeviceError, match=r"field 'ok\.a\.b' is inf"):
            answers.parse("d0", odd)
    with pytest.raises(DeviceError, match="nested"):
        answers.parse("d0", b'{"ok": ' + b"[" * 50 + b"]" * 50 + b"}")


@pytest.mark.parametrize("files", [jetson_tree.NANO, jetson_tree.ORIN_NANO, {}], ids=["Nano", "Orin", "bare"])
def test_facts_of_honest_devices_are_taken(files, tmp_path):
    root = jetson_tree.lay(tmp_path / "root", files) if files else tmp_path
    facts = json.loads(json.dumps(sysfs.gather(sysfs.Tree(str(root)), "/")))
    assert answers.check("d0", "probe", facts, answer_types.Facts)["memory"] is not None


def test_a_damaged_record_spoils_no_status(honest):
    status, kind = copy.deepcopy(honest["status"])
    good, _ = honest["record"]
    status["releases"] = {"r-1": good, "r-2": {**good, "latency_ms": None}, "r-3": {}}
    checked = answers.check("d0", "status", status, kind)
    assert [record is None for record in checked["releases"].values()] == [False, True, True]


def test_kinds_are_of_known_commands():
    assert len(KINDS) >= 41 and {name for name, _ in KINDS.values()} <= {
        None, "status", "have", "stage", "run", "probe", "build", "selftest", "evaluate", "time", "progress",
    }  # fmt: skip
    assert of({"event": {"event": "result", "command": "time"}}) == "time" and of({"ok": 3}) is None
