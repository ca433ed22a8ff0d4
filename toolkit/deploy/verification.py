"""What a device must show before a release goes live there: it builds, agrees, and is fast enough.

Gates, from the bundle's manifest (a gate that is absent has the value given here, or is not judged):

    cosine_min      0.99  lowest cosine between its logits and the golden ones
    top1_min        0.99  share of golden images with the same first class
    max_gap_pp      1.0   percentage points of top-1 it may lose against the simulation (one image always)
    max_latency_ms        largest median latency of an inference
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

from edgeship.targets import runner
from edgeship.targets._device import int8_sums
from edgeship.targets.runner.backend import NAMES
from edgeship.targets.runner.failures import translate_exit
from edgeship.toolkit.core.artifact import canonical_json, sha256_bytes
from edgeship.toolkit.core.errors import DeviceError
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy.agent_client import RefusedError, Session
from edgeship.toolkit.deploy.bundle import Bundle
from edgeship.toolkit.deploy.inventory import Entry

ENGINE = "engine/model"  # in the folder of a release
NEGATIVE = 3  # the runner's exit code for "it ran, and the verdict is no"
GATES = {"cosine_min": 0.99, "top1_min": 0.99, "max_gap_pp": 1.0}

Tell = Callable[[str, str], None]


def probe(session: Session, target: str | None = None) -> dict[str, Any]:
    """Facts, backends and problems of a device, from the runner (see its `cli`); nothing is written there.

    Args:
        session: The connection.
        target: The only backend to ask; importing others takes most of the time. None asks all.

    Raises:
        DeviceError: The runner does not run there.
    """
    only = ["--backend", target] if target in NAMES else []
    return run_runner(session, ["{payload}", "probe", *only], limit_s=120.0, payload=runner.source())


def environment(target: str, probed: Mapping[str, Any]) -> str:
    """Digest of what an engine on this device depends on: runtime, its version, processor or GPU."""
    offer = probed["backends"].get(target) or {}
    parts = {key: offer.get(key) for key in ("version", "identity", "fake")}
    return sha256_bytes(canonical_json({"target": target, **parts}).encode())


def typed_only(target: str, probed: Mapping[str, Any]) -> bool:
    """Whether a device's runtime goes by the types of a graph alone."""
    typed: bool = (probed["backends"].get(target) or {}).get("typed_only", False)
    return typed


def refuse_early(entry: Entry, bundle: Bundle, probed: Mapping[str, Any]) -> None:
    """See whether a bundle can run on a device at all, before anything is sent.

    Raises:
        DeviceError: The bundle has no graph for the device's target, or the device cannot run it.
    """
    if entry.target not in bundle.targets:
        raise DeviceError(
            f"{entry.name}: the bundle has no graph for the target {entry.target}",
            hint=f"it has: {', '.join(bundle.targets)}; run with compile.targets={entry.target}",
        )
    backend = probed["backends"].get(entry.target) or {"available": False, "cause": "it is unknown there"}
    if not backend["available"]:
        raise DeviceError(
            f"{entry.name} cannot run {entry.target}: {backend.get('cause')}",
            hint=backend.get("cure") or f"`edgeship device probe {entry.name}` shows what it can run",
        )
    precision = bundle.manifest["targets"][entry.target]["precision"]
    if precision not in backend["precisions"]:
        raise DeviceError(
            f"{entry.name} cannot run {precision} on {entry.target}",
            hint=f"it can run {', '.join(backend['precisions'])}: bundle such a variant with --variant",
        )


def prove(
    session: Session,
    entry: Entry,
    bundle: Bundle,
    folder: str,
    probed: Mapping[str, Any],
    *,
    limit_s: float,
    timing_s: float,
    tell: Tell,
) -> dict[str, Any]:
    """Build, test and measure a staged release on its device.

    Args:
        session: The connection, holding the lock.
        entry: The device.
        bundle: What is staged.
        folder: Where on the device it is staged.
        probed: What `probe` found.
        limit_s: Seconds that each step may take.
        timing_s: Seconds of timed inferences.
        tell: Told every step.

    Returns:
        The release's record: everything measured, and on what.

    Raises:
        DeviceError: A step failed, or a gate was missed.
    """
    wanted = bundle.manifest["targets"][entry.target]
    gates = {**GATES, **bundle.manifest["gates"]}
    program, engine = f"{folder}/{bundles.RUNNER}", f"{folder}/{ENGINE}"
    simulated = wanted["simulated"]
    graph = bundle.graph_for(entry.target, typed=typed_only(entry.target, probed))

    def step(state: str, *arguments: str) -> dict[str, Any]:
        tell(state, "")
        return run_runner(session, [program, *arguments], limit_s, lambda detail: tell(state, detail))

    doubts = _doubts(wanted, probed)
    built = step(
        "building", "build", "--graph", f"{folder}/{graph}", "--out", engine,
        "--backend", entry.target, "--precision", wanted["precision"], "--cache", f"{folder}/../../engines",
    )  # fmt: skip
    with _blaming(doubts):
        tested = step("self-test", *selftest(entry.target, folder, gates))
    evaluated = None
    if bundles.EVALUATION in bundle.files:
        reference = bundles.reference_path(entry.target)
        more = ["--reference", f"{folder}/{reference}"] if reference in bundle.files else []
        images = f"{folder}/{bundles.EVALUATION}"
        evaluated = step("accuracy", "evaluate", "--engine", engine, "--images", images, *more)
    timed = step(
        "latency", "time", "--engine", engine, "--duration-s", f"{timing_s:g}",
        "--threads", str(bundle.threads),
    )  # fmt: skip
    record = {
        "device": entry.name,
        "bundle": bundle.id,
        "signed": bundle.signature_file is not None,
        "target": entry.target,
        "variant": wanted["variant"],
        "precision": wanted["precision"],
        "fake": any(part.get("fake", False) for part in (probed, built, tested, evaluated or {}, timed)),
        "measured_at": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "facts": probed["facts"],
        "problems": [*probed["problems"], *doubts],
        "build": _some(built, "key", "reused", "build_s", "size_bytes", "backend", "version", "warnings"),
        "selftest": _some(
            tested, "images", "cosine_min", "cosine_mean", "top1_agreement", "largest_difference"
        ),
        "accuracy": None if evaluated is None else _accuracy(entry, evaluated, simulated),
        **_latency(timed),
    }
    with _blaming(doubts):
        _judge(entry, record, gates)
    return record


def _doubts(wanted: Mapping[str, Any], probed: Mapping[str, Any]) -> list[dict[str, str]]:
    """What may make an engine less accurate on this device than elsewhere."""
    facts = probed["facts"]
    sets = (facts.get("cpu") or {}).get("instruction_sets")  # none: nothing is known of the processor
    sums = int8_sums(facts["arch"], sets) if sets else None
    if wanted.get("int8_sums") != "exact" or sums != "pairs":  # bundles of earlier versions do not say
        return []
    return [
        {
            "code": "pair-sums",
            "cause": "its processor adds INT8 products in pairs that can saturate (no VNNI), "
            "and the graph was made for exact sums",
            "cure": "run the recipe with --set quantize.overflow_fix=pairs, and bundle that",
        }
    ]


@contextmanager
def _blaming(doubts: Sequence[Mapping[str, str]]) -> Iterator[None]:
    """Name a doubt as the reason where a device is less accurate than it should be."""
    try:
        yield
    except RefusedError as error:
        if not doubts or error.code not in ("selftest", "evaluate"):
            raise
        message = f"{error}; {doubts[0]['cause']}"
        raise RefusedError(message, hint=doubts[0]["cure"], code=error.code) from error


def selftest(target: str, folder: str, gates: Mapping[str, float]) -> list[str]:
    """The runner's arguments that compare a release with its golden logits."""
    limits = [f"--{name.replace('_', '-')}={gates[name]:g}" for name in ("cosine_min", "top1_min")]
    golden = f"{folder}/{bundles.golden_path(target)}"
    return ["selftest", "--engine", f"{folder}/{ENGINE}", "--golden", golden, *limits]


def run_runner(
    session: Session,
    arguments: list[str],
    limit_s: float,
    on_progress: Callable[[str], None] = lambda _: None,
    payload: bytes = b"",
) -> dict[str, Any]:
    """Run the runner on a device and return its result.

    Raises:
        DeviceError: It failed, was killed, took too long, or its verdict is negative.
    """
    name, command = session.entry.name, arguments[1]
    result: dict[str, Any] = {}

    def listen(event: dict[str, Any]) -> None:
        if event.get("event") == "result":
            result.update(event)
        elif event.get("event") == "progress":
            counted = f"{event['done']} of {event['total']}" if "total" in event else ""
            on_progress(counted or f"{event['elapsed_s']:.0f} s")

    done = session.call(
        "run",
        on_event=listen,
        answer_s=limit_s + 60.0,
        payload=payload,
        argv=[session.entry.python, *arguments],
        limit_s=limit_s,
    )
    if done["exit"] < 0:
        known = translate_exit(done["exit"])
        raise RefusedError(
            f"{name}: {command} was killed by signal {-done['exit']}" + (f": {known.cause}" if known else ""),
            hint=f"{known.cure if known else 'see the log of the device'}; then deploy again",
            code="killed",
        )
    if done["exit"] == NEGATIVE:
        reasons = "; ".join(result.get("reasons", ())) or "it does not do what the simulation promised"
        raise RefusedError(f"{name}: {command} says no: {reasons}", hint=_PROOF_HINT, code=command)
    if not result.get("ok"):
        error = result.get("error") or {"message": done["log"].strip()[-500:] or f"exit code {done['exit']}"}
        raise RefusedError(
            f"{name}: {command} failed: {error['message']}",
            hint=error.get("cure") or f"`edgeship device probe {name}` shows what is wrong with the device",
            code=command,
        )
    return result


def latency(record: Mapping[str, Any]) -> str:
    """The median latency in a release's record, with what it was measured: 2.31 ms (batch 1, 1 thread)."""
    measured = record["latency_ms"]
    threads = measured.get("threads")  # none on a GPU, and in records of earlier versions
    used = "" if threads is None else f", {threads} thread{'s' * (threads != 1)}"
    return f"{measured['p50']:.3g} ms (batch {measured['batch']}{used})"


def _accuracy(
    entry: Entry, evaluated: Mapping[str, Any], simulated: Mapping[str, Any] | None
) -> dict[str, Any]:
    promised = None if simulated is None else simulated["top1"]
    known = promised is not None and evaluated["top1"] is not None
    return {
        **_some(evaluated, "top1", "top5", "images", "agreement", "sqnr_db"),
        "measured_on": f"device {entry.name}",
        "simulated_top1": promised,
        "gap_pp": 100 * (promised - evaluated["top1"]) if known else None,
    }


def _latency(timed: Mapping[str, Any]) -> dict[str, Any]:
    """Latency, throughput and power in the words of report.json."""
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
        **_some(timing, "included", "throughput_ips", "power_mw", "power_of", "energy_mj"),
        "throttled": timed["throttled"],
        "marks": [*timed["marks"], *timing["marks"]],
    }


def _judge(entry: Entry, record: Mapping[str, Any], gates: Mapping[str, float]) -> None:
    accuracy, median_ms = record["accuracy"], record["latency_ms"]["p50"]
    if accuracy and accuracy["gap_pp"] is not None:
        allowed_pp = max(gates["max_gap_pp"], 100 / accuracy["images"])
        if accuracy["gap_pp"] > allowed_pp + 1e-9:
            raise RefusedError(
                f"{entry.name}: top-1 is {100 * accuracy['top1']:.2f} % there, {accuracy['gap_pp']:.2f} pp "
                f"below the simulation; {allowed_pp:.2f} pp are allowed",
                hint=_PROOF_HINT,
                code="evaluate",
            )
    limit_ms = gates.get("max_latency_ms", float("inf"))
    if median_ms > limit_ms:
        raise RefusedError(
            f"{entry.name}: an inference takes {latency(record)} there, {limit_ms:g} ms are allowed",
            hint="check its power mode and clocks: `edgeship device probe`; or choose a smaller variant",
            code="time",
        )


def _some(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: values.get(key) for key in keys}


_PROOF_HINT = (
    "the release stays off; compare versions with `edgeship device probe`, and see the report's audit"
)
