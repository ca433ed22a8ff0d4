"""Thread hazards of OpenVINO's bindings."""

import os
import subprocess
import sys

import pytest

FIRST_USE = """
import sys, threading
from edgeship.toolkit.core.openvino import core, sdk
sys.setswitchinterval(1e-6)
core()
start = threading.Barrier(4)
def ask():
    start.wait()
    sdk().Type.f32.to_dtype()
threads = [threading.Thread(target=ask) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_that_ask_for_a_type_at_once_come_back():
    """Without what `core` does first, five of six such processes hung (OpenVINO 2026.4)."""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", FIRST_USE], check=True, timeout=300)


@pytest.mark.parametrize(
    "first",
    [
        "from edgeship.toolkit.core.openvino import core; core()",
        "from edgeship.targets.runner import backends; backends.load('openvino')",
    ],
)
def test_nothing_is_sent_over_the_network(first):
    """OpenVINO's telemetry forks a process that once hung for ever, and kept a runner's output open."""
    listing = "print(sorted(name for name in sys.modules if name.startswith('openvino_telemetry.')))"
    variables = {name: value for name, value in os.environ.items() if name != "CI"}  # it is silent in CI
    command = [sys.executable, "-c", f"import sys; {first}; {listing}"]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True, env=variables)
    assert done.stdout.strip() == "[]"
