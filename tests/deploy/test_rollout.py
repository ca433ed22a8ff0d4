"""Order and stop of a rollout, and the fleet report."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from loopback import QUICK, live

from edgeship.toolkit.core import signals
from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import checks, fleet_report, release
from edgeship.toolkit.deploy import rollout as rollout_module
from edgeship.toolkit.deploy.inventory import Device
from edgeship.toolkit.deploy.release import DeployOutcome
from edgeship.toolkit.deploy.rollout import RolloutOptions, rollout

FLEET = [Device(f"d{n}", "x", "openvino") for n in range(20)]


class Work:
    """Work that needs a moment per device, until `together` are at it, and fails for those in `bad`."""

    def __init__(self, bad=(), together=1):
        self.bad, self.order, self.now, self.most = set(bad), [], 0, 0
        self.together, self.all_there = together, threading.Event()
        self.lock = threading.Lock()

    def __call__(self, entry, on_state, connect):
        with self.lock:
            self.order.append(entry.name)
            self.now += 1
            self.most = max(self.most, self.now)
        if self.most >= self.together:
            self.all_there.set()
        self.all_there.wait(60)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        if entry.name in self.bad:
            raise DeviceError(f"{entry.name}: broken", hint="mend it")
        return DeployOutcome(entry.name, "live")


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def silent(*_):
    """Ignore states."""


def test_so_many_at_once_and_every_device_once():
    work = Work(together=5)
    outcomes = rollout(FLEET, work, RolloutOptions(parallel=5), silent)
    assert states(outcomes) == ["live"] * 20 and sorted(work.order) == sorted(e.name for e in FLEET)
    assert work.most == 5 and [o.device for o in outcomes] == [e.name for e in FLEET]


def test_canaries_go_first_and_alone():
    work = Work()
    rollout(FLEET, work, RolloutOptions(parallel=8, canaries=3), silent)
    assert set(work.order[:3]) == {"d0", "d1", "d2"} and len(work.order) == 20
    work = Work(bad=["d1"])
    outcomes = rollout(FLEET, work, RolloutOptions(parallel=8, canaries=3, max_failures=1.0), silent)
    assert states(outcomes) == ["live", "failed", "live"] + ["skipped"] * 17 and len(work.order) == 3
    assert outcomes[1].error == "d1: broken" and outcomes[1].hint == "mend it"


def test_too_many_failures_stop_it():
    outcomes = rollout(FLEET, Work(bad=["d0", "d1"]), RolloutOptions(parallel=1, max_failures=0.1), silent)
    assert states(outcomes) == ["failed"] * 2 + ["live"] * 18  # 2 of 20 are allowed
    outcomes = rollout(
        FLEET, Work(bad=["d0", "d1", "d2"]), RolloutOptions(parallel=1, max_failures=0.1), silent
    )
    assert states(outcomes) == ["failed"] * 3 + ["skipped"] * 17


def test_an_interruption_ends_connections_and_the_next_run_goes_on(park, bundle, tmp_path):
    servers = [park.server(f"d{n}") for n in range(3)]
    entries = [park.entry(server, f"d{n}") for n, server in enumerate(servers)]
    hanging, good = bundle(build="hang"), bundle(version=2)
    interrupted: list[str] = []
    release.deploy(entries[0], good, QUICK, silent)

    def interrupt(device, state, detail):
        if (device, state, detail) == ("d1", "building", "0 s") and not interrupted:
            interrupted.append(device)  # a second signal would end the test's own process
            os.kill(os.getpid(), signal.SIGINT)

    def hang(entry, on_state, connect):
        return release.deploy(entry, hanging, QUICK, on_state, connect)

    def finish(entry, on_state, connect):
        return release.deploy(entry, good, dataclasses.replace(QUICK, wait_s=10.0), on_state, connect)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # another test may have left another
    try:
        outcomes = rollout(entries[1:], hang, RolloutOptions(parallel=1), interrupt)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    assert states(outcomes) == ["interrupted", "skipped"]
    outcomes = rollout(entries, finish, RolloutOptions(), silent)
    assert states(outcomes) == ["unchanged", "live", "live"]
    assert len({live(server) for server in servers}) == 1


def record(ms=2.0, top1=0.9, power_mw=None, cpu="x", threads=None):
    return {
        "target": "openvino", "variant": "openvino-int8", "fake": False,
        "facts": {"jetson": None, "cpu": {"name": cpu}}, "power_mw": power_mw, "marks": ["spread is 9 %"],
        "problems": [
            {"code": "power-mode", "cause": "power mode 15W caps the clocks", "cure": "nvpmodel"},
            {"code": "clocks-free", "cause": "not of interest here", "cure": "x"},
        ],
        "build": {"backend": "openvino", "version": "2026.0"},
        "accuracy": {"top1": top1, "gap_pp": 0.25}, "latency_ms": {"p50": ms, "batch": 1, "threads": threads},
    }  # fmt: skip


def outcome(name, **figures):
    return DeployOutcome(name, "live", "r-1", record=record(**figures))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("release unlocked lock")])
def test_an_interrupt_that_loses_a_future_keeps_the_outcome_of_its_device(monkeypatch, error):
    class Interrupted(ThreadPoolExecutor):
        def submit(self, *arguments):
            super().submit(*arguments)
            raise error

    monkeypatch.setattr(rollout_module, "ThreadPoolExecutor", Interrupted)
    monkeypatch.setattr(signals, "_received", [signal.SIGINT])
    outcomes = rollout(FLEET[:3], Work(), RolloutOptions(), silent)
    assert states(outcomes) == ["live", "skipped", "skipped"]


def test_outliers_are_found_among_their_kind():
    fast = [outcome(f"f{n}", ms=2.0 + 0.01 * n) for n in range(6)]
    slow_kind = [outcome(f"s{n}", ms=9.0 + 0.01 * n, cpu="slow") for n in range(4)]  # slow, but like its kind
    throttled = outcome("hot", ms=3.1, power_mw=None)
    report = fleet_report.outliers([*fast, *slow_kind, throttled])
    assert [(o["device"], o["figure"], o["value"]) for o in report] == [("hot", "latency p50", 3.1)]
    assert fleet_report.outliers([outcome("a"), outcome("b", ms=9.0)]) == []  # two are not enough
    equal = [outcome(f"e{n}") for n in range(5)]
    assert (
        fleet_report.outliers([*equal, outcome("n", ms=2.1)]) == []
    )  # 5 % is no outlier, however equal the rest
    assert fleet_report.outliers([*equal, outcome("t", ms=1.0, threads=4)]) == []  # not of the same kind
    hungry = [outcome(f"p{n}", power_mw=5000.0 + n) for n in range(5)] + [outcome("hungry", power_mw=9000.0)]
    assert [(o["device"], o["figure"]) for o in fleet_report.outliers(hungry)] == [("hungry", "power")]
    wrong = [outcome(f"a{n}") for n in range(5)] + [outcome("wrong", top1=0.5)]
    assert [(o["device"], o["figure"], o["value"]) for o in fleet_report.outliers(wrong)] == [
        ("wrong", "top-1", 50.0)
    ]


def test_a_latency_has_batch_and_threads():
    assert checks.latency(record(threads=1)) == "2 ms (batch 1, 1 thread)"
    assert checks.latency(record(threads=4)) == "2 ms (batch 1, 4 threads)"
    older = record()
    del older["latency_ms"]["threads"]
    assert checks.latency(older) == "2 ms (batch 1)"
    (row,) = fleet_report.table(fleet_report.report([outcome("a", threads=2)], "net-1", parallel=1))
    assert "2 ms (batch 1, 2 threads)" in row


def test_the_report_of_a_fleet(tmp_path):
    failed = DeployOutcome("b|c", "failed", error="b: it | broke", hint="mend it")
    report = fleet_report.report([outcome("a", power_mw=4321.0), failed], "net-1", parallel=2)
    path = fleet_report.write(report, tmp_path)
    assert json.loads((tmp_path / "fleet.json").read_text()) == report and report["schema"] == 1
    assert report["counts"] == {"live": 1, "failed": 1} and report["fake"] is False
    text = path.read_text()
    assert (
        "| a | live | r-1 | openvino 2026.0 | 90.00 % (-0.25 pp) | 2 ms (batch 1) | 4.32 W | "
        "power mode 15W caps the clocks; spread is 9 % |" in text
    )
    assert "| b\\|c | failed |" in text and "- b|c: b: it | broke (mend it)" in text
    assert "fake" not in text


@pytest.mark.timeout(900)
def test_twenty_devices_in_one_command(park, bundle):
    servers = [park.server(f"d{n:02}") for n in range(20)]
    entries = [park.entry(server, server.folder.name) for server in servers]
    shipped, events, lock, active, most = bundle(), [], threading.Lock(), set(), [0]

    def record_state(device, state, detail):
        with lock:
            events.append((device, state))
            (active.add if state not in {"live", "unchanged"} else active.discard)(device)
            most[0] = max(most[0], len(active))

    def work(entry, on_state, connect):
        return release.deploy(entry, shipped, QUICK, on_state, connect)

    outcomes = rollout(entries, work, RolloutOptions(parallel=4, canaries=1), record_state)
    assert states(outcomes) == ["live"] * 20 and most[0] == 4
    assert next(device for device, state in events if state == "switching") == "d00"
    report = fleet_report.report(outcomes, shipped.id, parallel=4)
    assert report["counts"] == {"live": 20} and report["fake"] and not report["outliers"]
    assert {row[2] for row in fleet_report.table(report)} == {live(server) for server in servers} and len(
        fleet_report.table(report)
    ) == 20
    started = time.monotonic()
    again = rollout(entries, work, RolloutOptions(parallel=4), record_state)
    assert states(again) == ["unchanged"] * 20 and sum(o.uploaded_bytes for o in again) == 0
    assert time.monotonic() - started < 200
    assert (
        fleet_report.report(again, shipped.id, parallel=4)["devices"][7]["record"]
        == report["devices"][7]["record"]
    )
