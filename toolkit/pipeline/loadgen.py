"""Time engines by MLPerf LoadGen: its traffic, its logs, its validity rules.

`mlperf_log_summary.txt` and `mlperf_log_detail.txt` are those that MLCommons' submission checker reads.
LoadGen's own configuration (its built-in mlperf.conf) is used for `MODEL`: official seeds, 600 s and 1,024
samples. The samples are random images, so the logs state speed and no accuracy.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import re
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from edgeship import targets
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.pipeline.measure import session_input

if TYPE_CHECKING:
    from edgeship.targets import Session

Scenario = Literal["SingleStream", "MultiStream", "Offline"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
MODEL = "resnet50"  # classification, in LoadGen's configuration
OFFICIAL_S = 600.0
SAMPLES = 1024
SUMMARY = "mlperf_log_summary.txt"
_WARM_RUNS = 30
_MARGIN = 1.1  # of Offline's expected rate: too few samples end before the shortest duration
_RESULTS = {  # field of the summary -> unit, and its factor to the value that is returned
    "SingleStream": ("90.0th percentile latency (ns)", "p90_ms", 1e-6),
    "MultiStream": ("99.0th percentile latency (ns)", "p99_ms", 1e-6),
    "Offline": ("Samples per second", "images_per_s", 1.0),
}


@dataclass(frozen=True, slots=True)
class LoadgenResult:
    """Result of one engine in one scenario.

    Attributes:
        valid: LoadGen calls the run valid.
        official: It lasted the official time; shorter logs are refused by the checker.
        value: Latency in ms of one sample (SingleStream, 90th percentile) or of eight (MultiStream, 99th), or
            images per second (Offline).
        unit: p90_ms, p99_ms or images_per_s.
        folder: Its logs.
    """

    engine: str
    scenario: Scenario
    valid: bool
    official: bool
    value: float
    unit: str
    folder: Path


def measure(
    engines: Mapping[str, tuple[str, Path]],
    shape: tuple[int, int, int, int],
    scenarios: tuple[Scenario, ...],
    out: Path,
    *,
    threads: int,
    duration_s: float = OFFICIAL_S,
) -> list[LoadgenResult]:
    """Run LoadGen on every engine in every scenario, one after the other.

    Each has a process of its own: LoadGen calls a second run of a process invalid.

    Args:
        engines: Name -> target and engine file.
        shape: Images of one inference, channels, height, width.
        scenarios: The scenarios.
        out: Folder for the logs, `<engine>/<scenario>/`.
        threads: CPU threads.
        duration_s: Shortest duration of each.

    Raises:
        DataError: LoadGen is not installed, or a log is incomplete.
    """
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise DataError("MLPerf LoadGen is not installed", hint="pip install 'edgeship[loadgen]'")
    jobs = [(name, scenario) for name in engines for scenario in scenarios]
    results = []
    for name, scenario in track(jobs, "running LoadGen"):
        folder = out / re.sub(r"[^\w.-]+", "-", name) / scenario
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_run, engines[name], threads, shape, scenario, folder, duration_s).result()
        results.append(_result(name, scenario, folder, official=duration_s >= OFFICIAL_S))
    return results


def _run(
    engine: tuple[str, Path],
    threads: int,
    shape: tuple[int, int, int, int],
    scenario: Scenario,
    folder: Path,
    duration_s: float,
) -> None:
    """Run one scenario; LoadGen writes its logs into the folder."""
    with targets.get(engine[0]).open(engine[1], threads=threads) as session:
        _test(session, shape, scenario, folder, duration_s)


def _test(
    session: Session, shape: tuple[int, int, int, int], scenario: Scenario, folder: Path, duration_s: float
) -> None:
    import mlperf_loadgen as loadgen

    batch = shape[0]
    random = np.random.default_rng(0)
    samples = session_input(session, random.standard_normal((SAMPLES, *shape[1:]), np.float32))

    def infer(indices: Any) -> Any:
        return session.infer(np.ascontiguousarray(samples[indices])).argmax(1).astype(np.int32)

    def issue(queries: list[Any]) -> None:
        for start in range(0, len(queries), batch):
            part = queries[start : start + batch]
            classes = infer([query.index for query in part])
            loadgen.QuerySamplesComplete(
                [
                    loadgen.QuerySampleResponse(query.id, classes[place:].ctypes.data, classes.itemsize)
                    for place, query in enumerate(part)
                ]
            )

    seconds = _seconds(lambda: infer(range(batch)))
    settings = loadgen.TestSettings()
    user = folder / "user.conf"
    user.write_text(
        f"*.SingleStream.target_latency = {1e3 * seconds:.6f}\n"
        f"*.MultiStream.target_latency = {1e3 * seconds * -(-8 // batch):.6f}\n"
        f"*.Offline.target_qps = {_MARGIN * batch / seconds:.3f}\n"
        + ("" if duration_s >= OFFICIAL_S else f"*.*.min_duration = {1e3 * duration_s:.0f}\n"),
        encoding="utf-8",
    )
    settings.FromConfig(str(user), MODEL, scenario)
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    if duration_s < OFFICIAL_S:
        settings.min_duration_ms, settings.min_query_count = int(1e3 * duration_s), 1
    log = loadgen.LogSettings()
    log.log_output.outdir = str(folder)
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = False
    system = loadgen.ConstructSUT(issue, lambda: None)
    library = loadgen.ConstructQSL(SAMPLES, SAMPLES, lambda _: None, lambda _: None)
    try:
        loadgen.StartTestWithLogSettings(system, library, settings, log, str(folder / "audit.config"))
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)


def _seconds(run: Any) -> float:
    """Return the duration of the fastest warm run: an Offline test of too few samples is too short."""
    taken = []
    for _ in range(_WARM_RUNS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def _result(name: str, scenario: Scenario, folder: Path, *, official: bool) -> LoadgenResult:
    field, unit, factor = _RESULTS[scenario]
    file = folder / SUMMARY
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    stated = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    try:
        value = float(stated[field]) * factor
        valid = stated["Result is"] == "VALID"
    except (KeyError, ValueError) as error:
        raise DataError(f"{file} has no field {error}", hint="see mlperf_log_detail.txt there") from error
    return LoadgenResult(name, scenario, valid, official, value, unit, folder)
