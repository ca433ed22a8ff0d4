"""Cost of the monitor on one thread: `python tests/benchmarks/monitor.py RUN [RUN...]`, folders of runs.

Slices with and without the monitor alternate in one session; the sums of their processor times over a round
make a ratio. A round has as many frames as take `ROUND_S`: the monitor computes its statistics now and then.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from _common import machine, table, tell, write
from scipy.stats import binom

from edgeship.targets.runner.classifier import Classifier

ROUND_S, SLICE, WARM_UP = 0.5, 32, 50
FRAMES = 256  # different ones


def measure(run: Path, rounds: int, state: Path) -> list[str]:
    """Return the row of an engine: latency, cost with its interval, and the share of watched frames."""
    engine = next((run / "engines").rglob("openvino-int8"))
    classifier = Classifier(engine, threads=1, monitor=state)
    used: Any = classifier._engine  # toggled, so that both sides have one session
    watch, shape = used.watch, classifier.inputs([np.zeros((64, 64, 3), np.uint8)]).shape[1:]
    assert watch is not None, f"{run} has no reference of the monitor: evaluate 300 images"
    rng = np.random.default_rng(0)
    frames = [
        np.kron(rng.normal(0, 1, (1, shape[0], 4, 4)), np.ones((1, 1, shape[1] // 4, shape[2] // 4)))
        for _ in range(FRAMES)
    ]
    inputs = [each.astype(np.float32) for each in frames]

    def spent(count: int, *, watched: bool) -> float:
        used.watch = watch if watched else None
        began = time.process_time()
        for number in range(count):
            classifier.classify_inputs(inputs[number % FRAMES])
        return time.process_time() - began

    spent(WARM_UP, watched=True)
    slices = max(2, round(ROUND_S / (spent(WARM_UP, watched=False) / WARM_UP) / SLICE))
    before, ratios, plain = watch.status()["frames"] + len(watch._samples), [], []
    for _ in range(rounds):
        sums = {True: 0.0, False: 0.0}
        for place in range(slices):
            for watched in (place % 2 == 0, place % 2 == 1):
                sums[watched] += spent(SLICE, watched=watched)
        ratios.append(sums[True] / sums[False])
        plain.append(sums[False] / (slices * SLICE))
    seen = watch.status()["frames"] + len(watch._samples) - before
    low = int(binom.ppf(0.025, rounds, 0.5))  # the interval of a median, by its ranks
    costs = sorted(100 * (ratio - 1) for ratio in ratios)
    return [
        f"{run.name}, {shape[1]} x {shape[2]}",
        f"{1000 * float(np.median(plain)):.3f}",
        f"{float(np.median(costs)):.2f}",
        f"{costs[low]:.2f} to {costs[-1 - low]:.2f}",
        f"{rounds} x {slices * SLICE}",
        f"{100 * seen / (rounds * slices * SLICE):.0f}",
    ]


@click.command(help=__doc__)
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--rounds", default=40, show_default=True, help="Ratios of an engine.")
def main(runs: tuple[Path, ...], rounds: int) -> None:
    """Measure, and write results/monitor-cost.md."""
    began, rows = machine(), []
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(run, rounds, Path(folder) / "state.json"))
        tell(" | ".join(rows[-1]))
    command = shlex.join(["python", "tests/benchmarks/monitor.py", *sys.argv[1:]])
    columns = ("engine", "ms a frame", "cost %", "95 % interval", "rounds x frames", "frames watched %")
    text = (
        "Processor time of a frame on one thread, from ready inputs, OpenVINO INT8. Cost: median over the "
        "rounds of the time with the monitor over that without it, in alternating slices. The monitor leaves "
        "out frames that it has no time for."
    )
    write(
        "monitor-cost.md",
        f"# Cost of the monitor\n\n{began}\n- Command: `{command}`\n\n{text}\n\n{table(columns, rows)}\n",
    )


if __name__ == "__main__":
    main()
