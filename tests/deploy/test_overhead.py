"""Time of a deployment compared with scp of the same bytes."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import time

import pytest
from loopback import QUICK, need, quiet

from edgeship.toolkit.deploy import release

SIZE = 256 << 20  # bytes


def bringing_s(entry, shipped) -> float:
    """Seconds of a deployment without the device's own work: from building to measuring."""
    moments: list[tuple[str, float]] = []
    release.deploy(entry, shipped, QUICK, lambda state, _: moments.append((state, time.monotonic())))
    moments.append(("end", time.monotonic()))
    own_work = {"building", "self-test", "accuracy", "latency"}
    return sum(
        after - before for (state, before), (_, after) in itertools.pairwise(moments) if state not in own_work
    )


@pytest.mark.slow
def test_deploying_costs_at_most_half_more_than_scp(park, bundle, capsys):
    need(shutil.which("scp"), "scp")
    server = park.server("device")
    entry = park.entry(server)
    release.deploy(entry, bundle(), QUICK, quiet)
    pairs = []
    for version in range(2, 7):  # in turns, so that whatever else the machine does meets both
        shipped = bundle(version=version, size=SIZE)
        target = f"{entry.user}@{entry.host}:{server.folder}/copy"
        command = ["scp", "-O", "-q", "-F", str(park.client_config), "-P", str(server.port)]
        started = time.monotonic()
        subprocess.run([*command, str(shipped.path), target], check=True)
        pairs.append((time.monotonic() - started, bringing_s(entry, shipped)))
    ratio = statistics.median(deployment / copy for copy, deployment in pairs)
    with capsys.disabled():
        times = ", ".join(f"{copy:.2f} -> {deployment:.2f} s" for copy, deployment in pairs)
        print(f"\n{SIZE >> 20} MiB, scp -> deploy: {times}; median ratio {ratio:.2f}")
    assert ratio <= 1.5
