"""Build, test and measure a staged release on its device before it goes live.

Python 3.8, standard library: a host runs these steps over a connection (`verification`), and the installer of
an updater runs them on the device itself (`updaters.device`).

Gates of the bundle's manifest, with defaults (without a default a gate is optional):

    cosine_min      0.99  lowest cosine between the device's and the golden logits
    top1_min        0.99  share of golden images with the same top-1 class
    max_gap_pp      1.0   allowed loss of top-1 against the simulation, in pp (at least one image)
    max_latency_ms        largest median latency of an inference
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any, Callable, Iterator, Mapping, Sequence  # noqa: UP035 (Python 3.8)

from edgeship.targets.runner.failures import translate_exit
from edgeship.toolkit.core.int8_sums import int8_sums
from edgeship.toolkit.deploy import layout
from edgeship.toolkit.deploy.agent.protocol import RefusedError

NEGATIVE = 3  # exit code of the runner for a failed check
GATES = {"cosine_min": 0.99, "top1_min": 0.99, "max_gap_pp": 1.0}

OnState = Callable[[str, str], None]  # state, detail
Step = Callable[[Sequence[str], Callable[[str], None]], Any]  # arguments, progress -> result


def check_compatible(
    device: str, target: str, packed: Mapping[str, Mapping[str, Any]], probed: Mapping[str, Any]
) -> None:
    """Raise if a device cannot run a bundle, before anything is sent.

    Args:
        device: Name of the device.
        target: Its target.
        packed: Targets of the manifest.
        probed: Answer of the runner's probe.

    Raises:
        RefusedError: The bundle has no graph for the device's target, or the device cannot run it.
    """
    if target not in packed:
        raise RefusedError(
            f"{device}: the bundle has no graph for the target {target}, only for {', '.join(packed)}",
            f"run the recipe with --set compile.targets={target}",
        )
    backend = probed["backends"].get(target) or {"available": False, "cause": "unknown backend"}
    if not backend["available"]:
        raise RefusedError(
            f"{device} cannot run {target}: {backend.get('cause')}",
            backend.get("cure") or f"`edgeship device probe {device}`",
        )
    precision = packed[target]["precision"]
    if precision not in backend["precisions"]:
        raise RefusedError(
            f"{device} cannot run {precision} on {target}: it supports {', '.join(backend['precisions'])}",
            _other_variant(packed[target]["variant"], target, backend),
        )


def typed_only(target: str, probed: Mapping[str, Any]) -> bool:
    """Return True if the device's runtime takes precision only from the types in the graph."""
    typed: bool = (probed["backends"].get(target) or {}).get("typed_only", False)
    return typed


def is_installed(status: Mapping[str, Any], release: str) -> bool:
    """Return True if a release is installed and not marked bad."""
    installed: bool = status["releases"].get(release) is not None and release not in status["bad"]
    return installed


def is_live(status: Mapping[str, Any], release: str) -> bool:
    """Return True if a release is live, and not on trial."""
    live: bool = status["current"] == release and status["pending"] is None
    return live and is_installed(status, release)


def verify(
    step: Step,
    manifest: Mapping[str, Any],
    folder: str,
    probed: Mapping[str, Any],
    *,
    device: str,
    bundle: str,
    signed: bool,
    target: str,
    timing_s: float,
    on_state: OnState,
) -> dict[str, Any]:
    """Build, test and measure a staged release on its device.

    Args:
        step: Runs the runner there with these arguments and returns its result (see `outcome`).
        manifest: Manifest of the bundle.
        folder: Staging folder on the device.
        probed: Answer of the runner's probe.
        device: Name of the device.
        bundle: `layout.bundle_id`.
        signed: True for a bundle with a signature.
        target: Target of the device.
        timing_s: Seconds of timed inferences.
        on_state: Called with every step and its progress.

    Returns:
        The release's record: measurements, device, build.

    Raises:
        RefusedError: A step failed, or a gate was missed.
    """
    contents = manifest["targets"][target]
    gates = {**GATES, **manifest["gates"]}
    files = manifest["files"]
    program, engine = f"{folder}/{layout.RUNNER}", f"{folder}/{layout.ENGINE}"
    graph = layout.graph_for(files, target, typed=typed_only(target, probed))

    def run(state: str, *arguments: str) -> Any:
        on_state(state, "")
        return step([program, *arguments], lambda detail: on_state(state, detail))

    def build(path: str, out: str, precision: str, *more: str) -> Any:
        return run(
            "building", "build", "--graph", f"{folder}/{path}", "--out", out, "--backend", target,
            "--precision", precision, "--cache", f"{folder}/../../engines", *more,
        )  # fmt: skip

    risks, guard = accuracy_risks(contents, probed), contents.get("guard")
    guarding, second = [], []
    if guard:
        build(layout.second_path(target), f"{folder}/{layout.REFERENCE}", guard["reference"])
        guarding = ["--guard", f"{folder}/{layout.guard_path(target)}"]
        second = ["--engine", f"{folder}/{layout.REFERENCE}"]
    built = build(graph, engine, contents["precision"], *guarding)
    with naming_cause(risks):
        tested = run("self-test", *selftest(target, folder, gates, guarded=bool(guard)))
    evaluated = None
    if layout.EVALUATION in files:
        reference = layout.reference_path(target)
        more = ["--reference", f"{folder}/{reference}"] if reference in files else []
        images = f"{folder}/{layout.EVALUATION}"
        evaluated = run("accuracy", "evaluate", "--engine", engine, "--images", images, *more)
    timed = run(
        "latency", "time", "--engine", engine, *second, "--duration-s", f"{timing_s:g}",
        "--threads", str(layout.threads(manifest)),
    )  # fmt: skip
    record = {
        "device": device,
        "bundle": bundle,
        "signed": signed,
        "target": target,
        "variant": contents["variant"],
        "precision": contents["precision"],
        "fake": any(part.get("fake", False) for part in (probed, built, tested, evaluated or {}, timed)),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "facts": probed["facts"],
        "problems": [*probed["problems"], *risks],
        "build": _subset(built, "key", "reused", "build_s", "size_bytes", "backend", "version", "warnings"),
        "selftest": _subset(
            tested,
            "images",
            "cosine_min",
            "cosine_mean",
            "top1_agreement",
            "largest_difference",
            "application",
        ),
        "accuracy": None if evaluated is None else _accuracy(device, evaluated, contents["simulated"]),
        **_latency(timed),
    }
    if guard:
        record["guard"] = _guard(device, guard, evaluated, timed)
    with naming_cause(risks):
        check_gates(device, record, gates)
    return record


def outcome(device: str, command: str, exit_code: int, log: str, result: Mapping[str, Any]) -> Any:
    """Return the result of a run of the runner.

    Args:
        device: Name of the device.
        command: Command of the runner.
        exit_code: Its exit code; negative: killed by that signal.
        log: End of its log.
        result: Its last event; empty without one.

    Raises:
        RefusedError: The runner failed or was killed, or a check failed.
    """
    if exit_code < 0:
        failure = translate_exit(exit_code)
        raise RefusedError(
            f"{device}: {command} was killed by signal {-exit_code}"
            + (f": {failure.cause}" if failure else ""),
            f"{failure.cure if failure else 'check `dmesg` on the device'}; then deploy again",
            "killed",
        )
    if exit_code == NEGATIVE:
        reasons = "; ".join(result.get("reasons") or [])
        raise RefusedError(
            f"{device}: {command} failed: {reasons or 'no reason reported'}", _MISMATCH_HINT, command
        )
    if not result.get("ok"):
        error = result.get("error") or {"message": log.strip()[-500:] or f"exit code {exit_code}"}
        raise RefusedError(
            f"{device}: {command} failed: {error['message']}",
            error.get("cure") or f"`edgeship device probe {device}`",
            command,
        )
    return result


def progress(event: Mapping[str, Any]) -> str:
    """Format a progress event of the runner."""
    return f"{event['done']} of {event['total']}" if "total" in event else f"{event['elapsed_s']:.0f} s"


def selftest(target: str, folder: str, gates: Mapping[str, float], *, guarded: bool) -> list[str]:
    """Return the runner's arguments to compare a release and a guard's reference with golden logits."""
    limits = [f"--{name.replace('_', '-')}={gates[name]:g}" for name in ("cosine_min", "top1_min")]
    golden = f"{folder}/{layout.golden_path(target)}"
    second = ["--reference-golden", f"{folder}/{layout.second_golden_path(target)}"] if guarded else []
    return ["selftest", "--engine", f"{folder}/{layout.ENGINE}", "--golden", golden, *second, *limits]


def health_check(command: str, python: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """Return the check that a release has to pass after the switch.

    Args:
        command: Shell command; empty: the self-test.
        python: Command of Python on the device.
        record: Record of the release, see `verify`.
    """
    if command:
        return ["sh", "-c", command]
    return [
        runner_python(python),
        f"{{current}}/{layout.RUNNER}",
        *selftest(record["target"], "{current}", GATES, guarded=record.get("guard") is not None),
    ]


def runner_python(python: Sequence[str]) -> str:
    """Return the Python of programs on a device: that of the agent if the command has arguments."""
    return "{python}" if len(python) > 1 else python[0]


def accuracy_risks(contents: Mapping[str, Any], probed: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return possible causes of a lower accuracy on this device."""
    facts = probed["facts"]
    sets = (facts.get("cpu") or {}).get("instruction_sets")  # None: unknown processor
    sums = int8_sums(facts["arch"], sets) if sets else None
    if contents.get("int8_sums") != "exact" or sums != "pairs":  # bundles of earlier versions lack it
        return []
    return [
        {
            "code": "pair-sums",
            "cause": "the processor adds INT8 products in pairs that can saturate (no VNNI), "
            "and the graph was quantized for exact sums",
            "cure": "run the recipe with --set quantize.overflow_fix=pairs and deploy that run",
        }
    ]


@contextmanager
def naming_cause(risks: Sequence[Mapping[str, str]]) -> Iterator[None]:
    """Add the known accuracy risk to the error of a failed self-test or evaluation."""
    try:
        yield
    except RefusedError as error:
        if not risks or error.code not in ("selftest", "evaluate"):
            raise
        raise RefusedError(f"{error}; {risks[0]['cause']}", risks[0]["cure"], error.code) from error


def check_gates(device: str, record: Mapping[str, Any], gates: Mapping[str, float]) -> None:
    """Raise if accuracy or latency on the device miss a gate.

    Raises:
        RefusedError: Code evaluate or time.
    """
    accuracy, median_ms = record["accuracy"], record["latency_ms"]["p50"]
    if accuracy and accuracy["gap_pp"] is not None:
        allowed_pp = max(gates["max_gap_pp"], 100 / accuracy["images"])
        if accuracy["gap_pp"] > allowed_pp + 1e-9:
            raise RefusedError(
                f"{device}: top-1 on the device is {100 * accuracy['top1']:.2f} %, "
                f"{accuracy['gap_pp']:.2f} pp below the simulation; {allowed_pp:.2f} pp are allowed",
                _MISMATCH_HINT,
                "evaluate",
            )
    limit_ms = gates.get("max_latency_ms", float("inf"))
    if median_ms > limit_ms:
        raise RefusedError(
            f"{device}: median latency is {latency(record)}, {limit_ms:g} ms are allowed",
            f"check power mode and clocks with `edgeship device probe {device}`",
            "time",
        )


def latency(record: Mapping[str, Any]) -> str:
    """Format the median latency of a record with its settings: 2.31 ms (batch 1, 1 thread)."""
    measured = record["latency_ms"]
    threads = measured.get("threads")  # absent on a GPU and in records of earlier versions
    setting = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    return f"{measured['p50']:.3g} ms (batch {measured['batch']}{setting})"


def _other_variant(packed: str, target: str, backend: Mapping[str, Any]) -> str:
    """Return the command that packs a variant of the device's best precision, in the place of another."""
    best = next(each for each in ("int8", "fp16", "fp32") if each in backend["precisions"])
    name = f"{target}-{best}" + "-pruned" * packed.endswith("-pruned")
    return f"`edgeship bundle RUN --variant {name}`, then deploy again"


def _accuracy(
    device: str, evaluated: Mapping[str, Any], simulated: Mapping[str, Any] | None
) -> dict[str, Any]:
    expected = None if simulated is None else simulated["top1"]
    comparable = expected is not None and evaluated["top1"] is not None
    if expected is not None and not comparable:  # the device could pass the gate by not answering
        raise RefusedError(
            f"{device}: answer to evaluate: field 'top1' is None, expected a number of 0 to 1",
            f"check that {device} is the device you expect, and its storage; then deploy again",
        )
    return {
        **_subset(evaluated, "top1", "top5", "images", "agreement", "sqnr_db"),
        "measured_on": f"device {device}",
        "simulated_top1": expected,
        "gap_pp": 100 * (expected - evaluated["top1"]) if comparable else None,
    }


def _guard(
    device: str, guard: Mapping[str, Any], evaluated: Mapping[str, Any] | None, timed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the promise of a guard, the share that ran twice here, and both latencies.

    `mean_ms` is computed from the mean latencies of both engines and that share, or the promised one without
    an evaluation set.
    """
    count = None if evaluated is None else evaluated.get("rerun")
    share = None if evaluated is None or count is None else count / evaluated["images"]
    if len(timed["timings"]) != 2:  # both engines
        raise RefusedError(
            f"{device}: answer to time: {len(timed['timings'])} engines, expected 2",
            f"check that {device} is the device you expect, and its storage; then deploy again",
        )
    means = [(each.get("latency_ms") or each["wall_ms"])["mean"] for each in timed["timings"]]
    return {
        **_subset(guard, "reference", "threshold", "bound"),
        "promised_rerun_share": guard["rerun_share"],
        "rerun_share": share,
        "reference_mean_ms": means[1],
        "mean_ms": means[0] + (guard["rerun_share"] if share is None else share) * means[1],
    }


def _latency(timed: Mapping[str, Any]) -> dict[str, Any]:
    """Return latency, throughput and power under the keys of report.json."""
    timing = timed["timings"][0]
    spread = timing.get("latency_ms") or timing["wall_ms"]
    return {
        "latency_ms": {
            "batch": timing["batch"],
            "p50": spread["median"],
            "p90": spread["p90"],
            "p99": spread["p99"],
            "mean": spread["mean"],
            "runs": timing["runs"],
            "threads": timing["threads"],
        },
        **_subset(timing, "included", "throughput_ips", "power_mw", "power_of", "energy_mj"),
        "throttled": timed["throttled"],
        "marks": [*timed["marks"], *timing["marks"]],
    }


def _subset(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values.get(key) for key in keys}


_MISMATCH_HINT = "compare runtime versions with `edgeship device probe`; the live release is unchanged"
