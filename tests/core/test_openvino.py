"""What OpenVINO's bindings would do to a process with threads."""

import subprocess
import sys

FIRST_USE = """
import sys, threading
from toolkit.core.openvino import core, sdk
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
        subprocess.run([sys.executable, "-c", FIRST_USE], check=True, timeout=60)
