"""Time and memory of a block, for what must stay small."""

import contextlib
import gc
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Used:
    """Seconds of the processor, and MB of resident memory at the peak over what there was before."""

    seconds: float = 0.0
    megabytes: float = 0.0


def _status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


@contextlib.contextmanager
def peak(collect=True):
    """Measure a block, after a garbage collection; without Linux's counters the memory reads 0."""
    used = Used()
    if collect:
        gc.collect()
    counted = Path("/proc/self/clear_refs").exists()
    if counted:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
    begun = time.process_time()
    try:
        yield used
    finally:
        used.seconds = time.process_time() - begun
        if counted:
            used.megabytes = _status("VmHWM") - before
