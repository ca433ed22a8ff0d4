"""Memory of a session, measured in a separate process.

`python -m edgeship.targets._memory TARGET ENGINE THREADS DTYPE SHAPE` imports the runtime, then loads
the engine and runs it. Its last line on stdout is JSON: {"resident_bytes", "peak_bytes"}, both without the
memory of the imported runtime.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.quant import FloatArray, PixelArray

HOW = (
    "a process of its own loads the engine and runs it three times: what is then resident, and the most that "
    "ever was, beyond the imported runtime; files that are mapped count"
)
RUNS = 3
LIMIT_S = 300.0


def measure(target: str, engine: Path, images: FloatArray | PixelArray, threads: int) -> dict[str, int]:
    """Return resident and peak bytes of a session.

    Args:
        target: Name of the target.
        engine: Compiled file.
        images: One batch; only shape and type are used.
        threads: CPU threads of the session.

    Raises:
        TargetError: The process ended without an answer, or this system has no /proc.
    """
    if not Path("/proc/self/status").is_file():
        raise TargetError("this system has no /proc/self/status", hint="memory is measured on Linux only")
    shape = ",".join(map(str, images.shape))
    command = [sys.executable, "-m", __name__, target, str(engine), str(threads), images.dtype.name, shape]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise TargetError(
            f"the measuring process gave no answer within {LIMIT_S:.0f} s",
            hint="check free memory: `free -h`",
        ) from error
    if ended.returncode != 0:
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise TargetError(f"the measuring process failed: {last}", hint="check free memory: `free -h`")
    sizes: dict[str, int] = json.loads(ended.stdout.strip().splitlines()[-1])
    return sizes


def _main(target: str, engine: str, threads: str, dtype: str, shape: str) -> None:
    import numpy as np

    from edgeship import targets

    runtime = targets.get(target)
    runtime.versions()  # imports it
    images = np.zeros([int(length) for length in shape.split(",")], dtype)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _status_bytes("VmRSS")
    with runtime.open(Path(engine), threads=int(threads)) as session:
        for _ in range(RUNS):
            session.infer(images)
        resident, peak = (_status_bytes(key) - before for key in ("VmRSS", "VmHWM"))
    print(json.dumps({"resident_bytes": resident, "peak_bytes": peak}))  # noqa: T201


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return 1024 * int(value.split()[0])
    raise KeyError(key)


if __name__ == "__main__":
    _main(*sys.argv[1:])
