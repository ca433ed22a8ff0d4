"""Verify a release on its device before it goes live: build, self-test, accuracy, latency.

Gates of the bundle's manifest, with defaults (without a default a gate is optional):

    cosine_min      0.99  lowest cosine between the device's and the golden logits
    top1_min        0.99  share of golden images with the same top-1 class
    max_gap_pp      1.0   allowed loss of top-1 against the simulation, in pp (at least one image)
    max_latency_ms        largest median latency of an inference
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from edgeship import targets
from edgeship.targets.runner.failures import translate_exit
from edgeship.toolkit.core.artifact import canonical_json, sha256_bytes
from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.core.quant import Cpu
from edgeship.toolkit.deploy import answer_types, answers
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy.agent_client import AgentSession, RefusedError
from edgeship.toolkit.deploy.bundle import Bundle
from edgeship.toolkit.deploy.inventory import Device

ENGINE = "engine/model"  # in the folder of a release
REFERENCE = "engine/reference/model"  # of a guarded variant
NEGATIVE = 3  # exit code of the runner for a failed check
GATES = {"cosine_min": 0.99, "top1_min": 0.99, "max_gap_pp": 1.0}

OnState = Callable[[str, str], None]  # state, detail


def probe(session: AgentSession, target: str | None = None) -> dict[str, Any]:
    """Return facts, backends and problems of a device from the runner (see its `cli`); writes nothing there.

    Args:
        session: The connection.
        target: Backend to probe (importing the others takes most of the time); None: all.

    Raises:
        DeviceError: The runner failed on the device.
    """
    only = ["--backend", target] if target else []
    archive = targets.runner_archive([target] if target else targets.names())
    return run_runner(session, ["{payload}", "probe", *only], limit_s=120.0, payload=archive)


def environment(target: str, probed: Mapping[str, Any]) -> str:
    """Return a digest of the dependencies of an engine: runtime, version, processor or GPU."""
    backend = probed["backends"].get(target) or {}
    parts = {key: backend.get(key) for key in ("version", "identity", "fake")}
    return sha256_bytes(canonical_json({"target": target, **parts}).encode())


def typed_only(target: str, probed: Mapping[str, Any]) -> bool:
    """Return True if the device's runtime takes precision only from the types in the graph."""
    typed: bool = (probed["backends"].get(target) or {}).get("typed_only", False)
    return typed


def check_compatible(entry: Device, bundle: Bundle, probed: Mapping[str, Any]) -> None:
    """Raise if a device cannot run a bundle, before anything is sent.

    Raises:
        DeviceError: The bundle has no graph for the device's target, or the device cannot run it.
    """
    if entry.target not in bundle.targets:
        raise DeviceError(
            f"{entry.name}: the bundle has no graph for the target {entry.target}, only for "
            f"{', '.join(bundle.targets)}",
            hint=f"run the recipe with --set compile.targets={entry.target}",
        )
    backend = probed["backends"].get(entry.target) or {"available": False, "cause": "unknown backend"}
    if not backend["available"]:
        raise DeviceError(
            f"{entry.name} cannot run {entry.target}: {backend.get('cause')}",
            hint=backend.get("cure") or f"`edgeship device probe {entry.name}`",
        )
    precision = bundle.manifest["targets"][entry.target]["precision"]
    if precision not in backend["precisions"]:
        raise DeviceError(
            f"{entry.name} cannot run {precision} on {entry.target}: "
            f"it supports {', '.join(backend['precisions'])}",
            hint=_other_variant(bundle.manifest["targets"][entry.target]["variant"], entry, backend),
        )


def _other_variant(packed: str, entry: Device, backend: Mapping[str, Any]) -> str:
    """Return the command that packs a variant of the device's best precision, in the place of another."""
    best = next(each for each in ("int8", "fp16", "fp32") if each in backend["precisions"])
    name = f"{entry.target}-{best}" + "-pruned" * packed.endswith("-pruned")
    return f"`edgeship bundle RUN --variant {name}`, then deploy again"


def verify(
    session: AgentSession,
    entry: Device,
    bundle: Bundle,
    folder: str,
    probed: Mapping[str, Any],
    *,
    limit_s: float,
    timing_s: float,
    on_state: OnState,
) -> dict[str, Any]:
    """Build, test and measure a staged release on its device.

    Args:
        session: The connection, holding the lock.
        entry: The device.
        bundle: The staged bundle.
        folder: Staging folder on the device.
        probed: Result of `probe`.
        limit_s: Time limit of each step in seconds.
        timing_s: Seconds of timed inferences.
        on_state: Called with every step and its progress.

    Returns:
        The release's record: measurements, device, build.

    Raises:
        DeviceError: A step failed, or a gate was missed.
    """
    contents = bundle.manifest["targets"][entry.target]
    gates = {**GATES, **bundle.manifest["gates"]}
    program, engine = f"{folder}/{bundles.RUNNER}", f"{folder}/{ENGINE}"
    simulated = contents["simulated"]
    graph = bundle.graph_for(entry.target, typed=typed_only(entry.target, probed))

    def step(state: str, *arguments: str) -> dict[str, Any]:
        on_state(state, "")
        return run_runner(session, [program, *arguments], limit_s, lambda detail: on_state(state, detail))

    def build(path: str, out: str, precision: str, *more: str) -> dict[str, Any]:
        return step(
            "building", "build", "--graph", f"{folder}/{path}", "--out", out, "--backend", entry.target,
            "--precision", precision, "--cache", f"{folder}/../../engines", *more,
        )  # fmt: skip

    risks, guard = _accuracy_risks(contents, probed), contents.get("guard")
    guarding: list[str] = []
    if guard:
        build(bundles.second_path(entry.target), f"{folder}/{REFERENCE}", guard["reference"])
        guarding = ["--guard", f"{folder}/{bundles.guard_path(entry.target)}"]
    built = build(graph, engine, contents["precision"], *guarding)
    with _naming_cause(risks):
        tested = step("self-test", *selftest(entry.target, folder, gates, guarded=bool(guard)))
    evaluated = None
    if bundles.EVALUATION in bundle.files:
        reference = bundles.reference_path(entry.target)
        more = ["--reference", f"{folder}/{reference}"] if reference in bundle.files else []
        images = f"{folder}/{bundles.EVALUATION}"
        evaluated = step("accuracy", "evaluate", "--engine", engine, "--images", images, *more)
    timed = step(
        "latency", "time", "--engine", engine, *(["--engine", f"{folder}/{REFERENCE}"] if guard else []),
        "--duration-s", f"{timing_s:g}",
        "--threads", str(bundle.threads),
    )  # fmt: skip
    record = {
        "device": entry.name,
        "bundle": bundle.id,
        "signed": bundle.signature_file is not None,
        "target": entry.target,
        "variant": contents["variant"],
        "precision": contents["precision"],
        "fake": any(part.get("fake", False) for part in (probed, built, tested, evaluated or {}, timed)),
        "measured_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
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
        "accuracy": None if evaluated is None else _accuracy(entry, evaluated, simulated),
        **_latency(timed),
    }
    if guard:
        record["guard"] = _guard(guard, evaluated, timed)
    with _naming_cause(risks):
        _check_gates(entry, record, gates)
    return record


def _accuracy_risks(contents: Mapping[str, Any], probed: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return possible causes of a lower accuracy on this device."""
    facts = probed["facts"]
    sets = (facts.get("cpu") or {}).get("instruction_sets")  # None: unknown processor
    sums = Cpu(facts["arch"], tuple(sets)).int8_sums if sets else None
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
def _naming_cause(risks: Sequence[Mapping[str, str]]) -> Iterator[None]:
    """Add the known accuracy risk to the error of a failed self-test or evaluation."""
    try:
        yield
    except RefusedError as error:
        if not risks or error.code not in ("selftest", "evaluate"):
            raise
        message = f"{error}; {risks[0]['cause']}"
        raise RefusedError(message, hint=risks[0]["cure"], code=error.code) from error


def selftest(target: str, folder: str, gates: Mapping[str, float], *, guarded: bool) -> list[str]:
    """Return the runner's arguments to compare a release and a guard's reference with golden logits."""
    limits = [f"--{name.replace('_', '-')}={gates[name]:g}" for name in ("cosine_min", "top1_min")]
    golden = f"{folder}/{bundles.golden_path(target)}"
    second = ["--reference-golden", f"{folder}/{bundles.second_golden_path(target)}"] if guarded else []
    return ["selftest", "--engine", f"{folder}/{ENGINE}", "--golden", golden, *second, *limits]


def runner_python(entry: Device) -> str:
    """Return the Python of programs on a device: that of the agent if `python` has arguments."""
    first, *arguments = entry.python_words
    return "{python}" if arguments else first


def run_runner(
    session: AgentSession,
    arguments: list[str],
    limit_s: float,
    on_progress: Callable[[str], None] = lambda _: None,
    payload: bytes = b"",
) -> dict[str, Any]:
    """Run the runner on a device and return its result.

    Raises:
        DeviceError: The runner failed, was killed, exceeded the time limit, or a check failed.
    """
    name, command = session.entry.name, arguments[1]
    result: dict[str, Any] = {}

    def listen(event: dict[str, Any]) -> None:
        if event.get("event") == "result":
            result.update(event)
        elif event.get("event") == "progress":
            answers.check(name, command, event, answer_types.Progress)
            count = f"{event['done']} of {event['total']}" if "total" in event else ""
            on_progress(count or f"{event['elapsed_s']:.0f} s")

    answer = session.call(
        "run",
        on_event=listen,
        within_s=limit_s + 60.0,
        payload=payload,
        argv=[runner_python(session.entry), *arguments],
        limit_s=limit_s,
    )
    exit_code = answer["exit"]
    if exit_code < 0:
        failure = translate_exit(exit_code)
        raise RefusedError(
            f"{name}: {command} was killed by signal {-exit_code}"
            + (f": {failure.cause}" if failure else ""),
            hint=f"{failure.cure if failure else 'check `dmesg` on the device'}; then deploy again",
            code="killed",
        )
    if exit_code == NEGATIVE:
        reasons = "; ".join(answers.check(name, command, result.get("reasons") or [], list[str]))
        raise RefusedError(
            f"{name}: {command} failed: {reasons or 'no reason reported'}", hint=_MISMATCH_HINT, code=command
        )
    if not result.get("ok"):
        error = result.get("error") or {"message": answer["log"].strip()[-500:] or f"exit code {exit_code}"}
        answers.check(name, command, error, answer_types.Fault)
        raise RefusedError(
            f"{name}: {command} failed: {error['message']}",
            hint=error.get("cure") or f"`edgeship device probe {name}`",
            code=command,
        )
    checked: dict[str, Any] = answers.check(name, command, result, answer_types.RESULTS[command])
    return checked


def latency(record: Mapping[str, Any]) -> str:
    """Format the median latency of a record with its settings: 2.31 ms (batch 1, 1 thread)."""
    measured = record["latency_ms"]
    threads = measured.get("threads")  # absent on a GPU and in records of earlier versions
    setting = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    return f"{measured['p50']:.3g} ms (batch {measured['batch']}{setting})"


def _accuracy(
    entry: Device, evaluated: Mapping[str, Any], simulated: Mapping[str, Any] | None
) -> dict[str, Any]:
    expected = None if simulated is None else simulated["top1"]
    comparable = expected is not None and evaluated["top1"] is not None
    if expected is not None and not comparable:  # the device could pass the gate by not answering
        answers.check(entry.name, "evaluate", {"top1": None}, dict[str, answer_types.Fraction])
    return {
        **_subset(evaluated, "top1", "top5", "images", "agreement", "sqnr_db"),
        "measured_on": f"device {entry.name}",
        "simulated_top1": expected,
        "gap_pp": 100 * (expected - evaluated["top1"]) if comparable else None,
    }


def _guard(
    guard: Mapping[str, Any], evaluated: Mapping[str, Any] | None, timed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the promise of a guard, the share that ran twice here, and both latencies.

    `mean_ms` is computed from the mean latencies of both engines and that share, or the promised one without
    an evaluation set.
    """
    count = None if evaluated is None else evaluated.get("rerun")
    share = None if evaluated is None or count is None else count / evaluated["images"]
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


def _check_gates(entry: Device, record: Mapping[str, Any], gates: Mapping[str, float]) -> None:
    accuracy, median_ms = record["accuracy"], record["latency_ms"]["p50"]
    if accuracy and accuracy["gap_pp"] is not None:
        allowed_pp = max(gates["max_gap_pp"], 100 / accuracy["images"])
        if accuracy["gap_pp"] > allowed_pp + 1e-9:
            raise RefusedError(
                f"{entry.name}: top-1 on the device is {100 * accuracy['top1']:.2f} %, "
                f"{accuracy['gap_pp']:.2f} pp below the simulation; {allowed_pp:.2f} pp are allowed",
                hint=_MISMATCH_HINT,
                code="evaluate",
            )
    limit_ms = gates.get("max_latency_ms", float("inf"))
    if median_ms > limit_ms:
        raise RefusedError(
            f"{entry.name}: median latency is {latency(record)}, {limit_ms:g} ms are allowed",
            hint=f"check power mode and clocks with `edgeship device probe {entry.name}`",
            code="time",
        )


def _subset(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values.get(key) for key in keys}


_MISMATCH_HINT = "compare runtime versions with `edgeship device probe`; the live release is unchanged"
