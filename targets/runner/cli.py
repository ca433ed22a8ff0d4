"""edgeship device runner: build, test, time and inspect an engine on its device.

    python3 edgeship_runner.pyz COMMAND [options]        Python 3.8+, standard library and the device's own SDK

Each command prints JSON to stdout, one object per line; logs go to stderr. Lines before the last are
{"event": "progress", "stage", "elapsed_s", ...}; the last is {"event": "result", "command", "ok", "runner", ...}.
With "ok": false it has "error": {"code", "message", "cause", "cure"}. "fake": true marks results of
a fake SDK. Keys have their unit (_ms, _s, _mw, _mj, _bytes, _hz, _c); unknown is null.

Exit codes: 0 done; 1 failed (see "error"); 2 wrong command line; 3 failed check (selftest, evaluate with
--top1-min); 75 another build holds the lock.

probe     [--root DIR] [--disk DIR] [--sdk MODULE] [--backend B (ask only this one)]
          -> "facts": {"arch", "os", "python", "cpu", "jetson" (null elsewhere), "power", "clocks", "rails",
             "thermal", "memory", "disk", "sdk"}, "backends": {"tensorrt"|"openvino"|"onnxruntime":
             {"available", "version", "precisions", "typed_only" (types of the graph alone decide), "cause", "cure"}},
             "best": backend name or null,
             "problems": [{"code", "cause", "cure"}]
build     --graph G.onnx --out ENGINE [--backend B] [--precision int8|fp8|fp16|bf16|fp32] [--cache DIR]
          [--profile MIN:OPT:MAX (batches)] [--workspace-mib M] [--optimization-level 0..5] [--strongly-typed]
          [--lock-timeout-s S] [--timeout-s S] [--force] [--guard guard.json]
          Writes ENGINE and ENGINE.json (the sidecar) atomically; the same key is reused, never built twice.
          --guard puts that file next to ENGINE: close images run again in reference/model in its folder.
          Without --backend: the probe's best. Without --workspace-mib: 1024, or an eighth of a small board's memory.
          -> "engine", "sidecar", "key", "reused", "build_s", "size_bytes", "engine_sha256", "graph_sha256",
             "backend", "version", "warnings": [...]
selftest  --engine ENGINE --golden DIR [--reference-golden DIR] [--cosine-min 0.99] [--top1-min 0.9] [--latency-max-ms L] [--threads T]
          DIR holds golden.json {"shape": [N,C,H,W], "classes": K, "inputs": "inputs.f32", "logits": "logits.f32",
          "sha256": {file: digest}}, raw little-endian float32 (edgeship.targets.runner.write_golden writes it); of an engine
          that takes pixels, "shape" is [N,H,W,C] and "inputs" "inputs.u8", raw uint8. "files": {row: image file}:
          the classifier of applications decodes and prepares them, and has to give the logits of the prepared inputs.
          The reference of a guard is compared with --reference-golden.
          -> "verdict": "pass"|"fail", "images", "cosine_min", "cosine_mean", "top1_agreement",
             "largest_difference", "latency_ms" (median wall), "application": {"images", ...}, "reasons": [...]
time      --engine ENGINE [--engine ENGINE ...] [--batch N] [--warmup-ms 200] [--duration-s 3] [--iterations 10]
          [--rounds 3] [--threads T] [--cuda-graph] [--no-transfers] [--samples] [--trtexec [PATH]]
          --duration-s and --iterations are totals of all rounds. Several engines are interleaved (A B C A B C).
          --trtexec times the same engines by NVIDIA's tool as well (without PATH: where JetPack has it), alike.
          -> "timings": one per engine: {"engine", "batch", "runs", "threads" (of the CPU that it really ran with; null
          on a GPU, and where the runtime does not report them),
          "wall_ms"|"gpu_ms"|"h2d_ms"|"d2h_ms"|"enqueue_ms"|"latency_ms": {"min","mean","median","p90","p95","p99",
          "max","cv" (of the middle 90 %)} or null, "throughput_ips", "included", "power_mw", "power_of", "energy_mj"
          (an image; both null where nothing measures power), "marks", "samples_ms" (gpu_ms or wall_ms) with
          --samples, "trtexec" with --trtexec: {"runs", "gpu_ms" ... as above, "difference": our median over its median - 1} or
          {"error"}; null of an engine of another SDK}, "before"/"after": clocks, temperatures, counters;
          "throttled": true|false|null,
          "marks": why the run should not be trusted (throttled, clocks changed, spread above 5 %)
evaluate  --engine ENGINE --images SET [--reference logits.f32] [--limit N] [--batch N] [--logits-out F] [--top1-min T]
          [--threads T]
          SET is one packed file (magic EDGESET1). -> "images", "labelled", "top1", "top5",
          "agreement" (top-1 with the reference logits), "sqnr_db", "seconds", "rerun" (by a guard; else null)
infer     --engine ENGINE --input x.f32 --out y.f32 [--threads T] (x.u8, of an engine that takes pixels)
          -> "images", "shape"
inspect   --engine ENGINE [--profile] -> "layers", "bindings", as the runtime lists them, and "times_ms"
          {layer: milliseconds} with --profile

--root DIR reads the device's files below DIR instead of / (a mounted image, or a test). --sdk MODULE imports
MODULE in place of `tensorrt`. Nothing runs as root and nothing is changed outside the named files.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import os
import sys
import threading
import time
from typing import Any, Callable, NoReturn

from edgeship.toolkit.core import signals

from . import VERSION, backend, backends, engines, failures, evalset, guard_record, sysfs, timing, trtexec
from .failures import Failure
from .output import Output, log
from .probe import probe

_USAGE, _NEGATIVE = 2, 3
_SELFTEST_RUNS = 10
_REPORT_EVERY_S = 1.0


class _Parser(argparse.ArgumentParser):
    """Parser that reports wrong command lines in JSON."""

    def error(self, message: str) -> NoReturn:
        raise Failure("usage", message, "the command line is wrong", f"see `{self.prog} --help`", _USAGE)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and give the exit code."""
    if any(word in ("-h", "--help") for word in (sys.argv[1:] if arguments is None else arguments)):
        print(__doc__)
        return 0
    output = Output()
    signals.install()
    result: dict[str, Any] = {"event": "result", "command": None, "ok": False, "runner": VERSION}
    status = 0
    try:
        options = _parser().parse_args(arguments)
        result["command"] = options.command
        with signals.interrupts():
            found = options.run(options, output)
        result.update(found)
        negative = found.get("verdict") == "fail"
        result["ok"], status = not negative, _NEGATIVE if negative else 0
    except Exception as error:
        failure = failures.from_error(error)
        if failure.code == "unknown":
            log(_traceback(error))
        result["error"], status = failure.to_json(), failure.exit_code
    except KeyboardInterrupt:
        stopped = Failure("stopped", "stopped by a signal", "the runner received a signal", "start it again")
        result["error"], status = stopped.to_json(), 1
    signals.ignore()
    output.line(result)
    if threading.active_count() > 1 or signals.received():
        os._exit(status)  # a build that was given up still runs, and would crash at a normal exit
    return status


def _probe(options: Any, output: Output) -> dict[str, Any]:
    names = (options.backend,) if options.backend else backends.NAMES
    return probe(sysfs.Tree(options.root), options.disk, options.sdk, output, names)


def _build(options: Any, output: Output) -> dict[str, Any]:
    name = options.backend or _probe_best(options, output)
    sdk = backends.load(name, options.sdk)
    tree = sysfs.Tree(options.root)
    workspace_mib = options.workspace_mib or backend.workspace_mib(sysfs.memory(tree)["total_bytes"])
    settings = backend.BuildOptions(
        options.precision, options.profile, workspace_mib, options.optimization_level, options.strongly_typed
    )
    result = engines.build(
        sdk, options.graph, options.out, settings, tree, output,
        options.cache, options.lock_timeout_s, options.timeout_s, options.force,
    )  # fmt: skip
    if options.guard is not None:
        engines.write_atomically(
            os.path.join(os.path.dirname(os.path.abspath(options.out)), guard_record.FILE), _read(options.guard)
        )
    fake = result.pop("fake")
    return {**result, **_faked(fake)}


def _probe_best(options: Any, output: Output) -> str:
    best = probe(sysfs.Tree(options.root), "/", options.sdk, output)["best"]
    if best is None:
        raise Failure("no-backend", "no SDK can be imported", "TensorRT, OpenVINO and ONNX Runtime are all absent",
                      "run `probe` for the cure of each")  # fmt: skip
    return str(best)


class _Opened:
    """Context of a loaded engine."""

    def __init__(self, options: Any, engine: str, profile: bool = False) -> None:
        self.session, self.sdk, self.record = engines.open_engine(engine, options.sdk, options.threads, profile)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: Any) -> None:
        self.session.close()

    def ready(self, batch: int) -> int:
        """Prepare inference of about `batch` images; return the batch of the engine."""
        batch = evalset.batch_for(self.session, batch)
        self.session.prepare(batch, True, False)
        return batch

    def origin(self) -> dict[str, Any]:
        """Return SDK and engine of the figures."""
        keys = ("backend", "version", "precision", "engine_sha256", "key")
        return {**{key: self.record[key] for key in keys}, **_faked(self.sdk.fake)}


def _second(options: Any) -> tuple[dict[str, Any], _Opened] | None:
    """Return the record of an engine's guard, and its reference; None without a guard.

    Raises:
        Failure: The reference is missing or cannot be loaded.
    """
    folder = os.path.dirname(os.path.abspath(options.engine))
    record = guard_record.read(folder)
    if record is None:
        return None
    try:
        return record, _Opened(options, os.path.join(folder, guard_record.REFERENCE, "model"))
    except (Failure, OSError) as error:
        raise guard_record.reference_missing(folder, str(error)) from error


def _golden_logits(opened: _Opened, expected: evalset.Golden) -> list[array.array[float]]:
    """Return the logits of an engine on the golden inputs."""
    evalset.same_shape(opened.session, expected.image_shape, "the golden set", expected.are_pixels)
    _same_classes(opened.session, len(expected.logits[0]), "the golden set")
    batch = opened.ready(expected.total)
    return evalset.rows(evalset.run(opened.session, expected.images, expected.total, batch), opened.session.classes)


def _selftest(options: Any, output: Output) -> dict[str, Any]:
    expected = evalset.golden(options.golden)
    with _Opened(options, options.engine) as opened:
        got = _golden_logits(opened, expected)
        batch = opened.ready(expected.total)
        walls = sorted(opened.session.step()["wall_ms"] for _ in range(_SELFTEST_RUNS))
        near = evalset.compare(got, expected.logits)
        origin = opened.origin()
    latency_ms = timing.percentile(walls, 50)
    second, again = _second(options), None
    if second is not None:
        with second[1] as reference:
            stated = evalset.golden(options.reference_golden) if options.reference_golden else expected
            exact = _golden_logits(reference, stated)
            again = evalset.compare(exact, stated.logits) if options.reference_golden else None
    application = _application(options, expected.files, got)
    reasons = []
    if not evalset.finite(got):
        reasons.append("the engine gives logits that are no numbers")
    elif not near["cosine_min"] >= options.cosine_min:
        reasons.append(f"lowest cosine {near['cosine_min']:.5f} is below {options.cosine_min}")
    if near["top1_agreement"] < options.top1_min:
        reasons.append(f"top-1 agreement {near['top1_agreement']:.4f} is below {options.top1_min}")
    if second is not None and not evalset.finite(exact):
        reasons.append("the reference of the guard gives logits that are no numbers")
    elif again is not None and (
        not again["cosine_min"] >= options.cosine_min or again["top1_agreement"] < options.top1_min
    ):
        reasons.append(
            f"the reference of the guard gives other logits (lowest cosine {again['cosine_min']:.5f}, top-1 agreement "
            f"{again['top1_agreement']:.4f}): it is another network"
        )
    if options.latency_max_ms is not None and latency_ms > options.latency_max_ms:
        reasons.append(f"median latency {latency_ms:.3f} ms is above {options.latency_max_ms} ms")
    if application["images"] and not reasons and (
        application["top1_agreement"] < options.top1_min or not application["cosine_min"] >= options.cosine_min
    ):
        reasons.append(
            f"image files give other logits than their prepared inputs (lowest cosine {application['cosine_min']:.5f}, "
            f"top-1 agreement {application['top1_agreement']:.4f}): decoding or preprocessing differs on this device"
        )
    return {"verdict": "fail" if reasons else "pass", "reasons": reasons, "images": expected.total, **near,
            "batch": batch, "latency_ms": latency_ms, "application": application, **origin}  # fmt: skip


def _application(options: Any, files: dict[int, bytes], prepared: list[array.array[float]]) -> dict[str, Any]:
    """Compare the logits that an application gets of image files with those of their prepared inputs.

    Returns:
        `images` and, if there are any, the keys of `evalset.compare`; else `why` they were not classified.
    """
    why = "the bundle has no image files" if not files else "another SDK is named" if options.sdk else None
    try:
        from . import classifier, imaging
    except ImportError:
        why = why or "NumPy is not installed"
    else:
        why = why or (None if imaging.Image is not None else "Pillow is not installed")
    if why is not None:
        return {"images": 0, "why": why}
    with classifier.Classifier(options.engine, threads=options.threads, follow=False) as application:
        results = application(list(files.values()))
    logits = [array.array("f", result.logits.tolist()) for result in results]
    return {"images": len(files), **evalset.compare(logits, [prepared[row] for row in files])}


def _time(options: Any, output: Output) -> dict[str, Any]:
    tree = sysfs.Tree(options.root)
    checker = None if options.trtexec is None else trtexec.find(tree, options.trtexec)
    opened: list[_Opened] = []
    subjects = []
    try:
        for engine in options.engine:
            opened.append(_Opened(options, engine))
            session = opened[-1].session
            batch = evalset.batch_for(session, options.batch)
            session.prepare(batch, not options.no_transfers, options.cuda_graph)
            session.load(evalset.noise(session, batch))
            subjects.append(timing.Subject(engine, session, opened[-1].record, batch))
        around = timing.measure(
            subjects, options.rounds, options.warmup_ms / 1e3, options.duration_s, options.iterations, tree, output
        )
    finally:
        for one in opened:
            one.session.close()
    timings = [
        {**subject.result(options.samples, not options.no_transfers), "threads": subject.session.threads}
        for subject in subjects
    ]
    if checker is not None:  # after the engines are closed: a small board has no memory for both
        for subject, entry in zip(subjects, timings):
            output.progress("trtexec", engine=subject.engine)
            entry["trtexec"] = _checked(checker, subject, options)
            entry["marks"] += trtexec.mark(entry["trtexec"] or {})
    return {"timings": timings, **around, "cuda_graph": options.cuda_graph,
            **_faked(any(one.sdk.fake for one in opened))}  # fmt: skip


def _checked(path: str, subject: timing.Subject, options: Any) -> dict[str, Any] | None:
    """Return the figures of trtexec; None for an engine of another SDK."""
    if subject.record["backend"] != "tensorrt":
        return None
    session: Any = subject.session
    sizes = "x".join(str(size) for size in (subject.batch, *session.image_shape))
    words = trtexec.arguments(
        subject.record["version"], subject.engine, None if session.batch else f"{session.input}:{sizes}",
        options.warmup_ms, options.duration_s, not options.no_transfers, options.cuda_graph,
    )  # fmt: skip
    return trtexec.cross_check(path, subject, words, options.duration_s + options.warmup_ms / 1e3)


def _evaluate(options: Any, output: Output) -> dict[str, Any]:
    packed = evalset.Packed(options.images)
    limit = min(packed.count, options.limit or packed.count)
    reference = _read(options.reference) if options.reference else None
    started_s = reported_s = time.perf_counter()
    second = _second(options)
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(_Opened(options, options.engine))
        evalset.same_shape(opened.session, packed.shape_for(opened.session), "the image set")
        classes = opened.session.classes
        if reference is not None and len(reference) != packed.count * classes * 4:
            raise Failure("shape-mismatch", f"{options.reference} does not hold {packed.count} x {classes} logits",
                          "reference and images come from different runs", "bundle both from one run")  # fmt: skip
        guard = None
        if second is not None:
            exact = stack.enter_context(second[1])
            guard = evalset.SecondRuns(second[0]["threshold"], exact.session, exact.ready(1))
        batch, logits = opened.ready(options.batch), []
        for part, count in packed.batches(batch, limit, opened.session.takes_pixels):
            found = evalset.run(opened.session, part, count, batch)
            logits.append(found if guard is None else guard.corrected(part, found, classes))
            if time.perf_counter() - reported_s >= _REPORT_EVERY_S:
                reported_s = time.perf_counter()
                output.progress("evaluate", done=min(len(logits) * batch, limit), total=limit)
        origin = opened.origin()
    data = b"".join(logits)
    got = evalset.rows(data, classes)
    if not evalset.finite(got):
        raise Failure("not-numbers", "the engine gives logits that are no numbers", "the engine overflows",
                      "build with --precision fp32; then compare layer by layer")  # fmt: skip
    result = {"images": limit, **evalset.accuracy(got, packed.labels[:limit]), "agreement": None, "sqnr_db": None,
              "rerun": None if guard is None else guard.rerun}  # fmt: skip
    if reference is not None:
        expected = evalset.rows(reference, classes)[:limit]
        result["agreement"] = evalset.compare(got, expected)["top1_agreement"]
        result["sqnr_db"] = evalset.sqnr_db(got, expected)
    if options.logits_out:
        _write(options.logits_out, data)
    if options.top1_min is not None:
        if result["top1"] is None:
            raise Failure("no-labels", f"{options.images} has no labels", "--top1-min needs labelled images",
                          "pack a labelled set, or leave --top1-min out")  # fmt: skip
        result["verdict"] = "pass" if result["top1"] >= options.top1_min else "fail"
    return {**result, "seconds": round(time.perf_counter() - started_s, 3), "batch": batch, **origin}


def _infer(options: Any, output: Output) -> dict[str, Any]:
    with _Opened(options, options.engine) as opened:
        data, size = _read(options.input), evalset.image_bytes(opened.session)
        if not data or len(data) % size:
            raise Failure("shape-mismatch", f"{options.input} has {len(data)} bytes, an image has {size}",
                          "the input holds no whole number of images", f"write images of "
                          f"{opened.session.image_shape} as {evalset.type_name(opened.session.takes_pixels)}")  # fmt: skip
        count = len(data) // size
        _write(options.out, evalset.run(opened.session, data, count, opened.ready(count)))
        return {"images": count, "shape": [count, opened.session.classes], "out": options.out, **opened.origin()}


def _inspect(options: Any, output: Output) -> dict[str, Any]:
    with _Opened(options, options.engine, profile=True) as opened:
        opened.ready(1)
        return {**opened.session.layers(options.profile), **opened.origin()}


def _same_classes(session: Any, classes: int, what: str) -> None:
    if session.classes != classes:
        raise Failure("shape-mismatch", f"{what} has {classes} classes, the engine {session.classes}",
                      "engine and images come from different exports", "bundle both from one run")  # fmt: skip


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _write(path: str, data: bytes) -> None:
    engines.write_atomically(path, data)


def _faked(fake: bool) -> dict[str, bool]:
    return {"fake": True} if fake else {}


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:  # also refuses nan
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


def _batches(text: str) -> tuple[int, int, int]:
    try:
        low, usual, high = (int(part) for part in text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not MIN:OPT:MAX, as in 1:8:32") from None
    if not 0 < low <= usual <= high:
        raise argparse.ArgumentTypeError(f"{text}: wanted 0 < MIN <= OPT <= MAX")
    return low, usual, high


def _parser() -> argparse.ArgumentParser:
    whole, real = _positive(int), _positive(float)
    parser = _Parser(prog="edgeship_runner.pyz", add_help=False)
    commands = parser.add_subparsers(dest="command", parser_class=_Parser)
    commands.required = True

    def command(name: str, run: Callable[[Any, Output], dict[str, Any]], *, engine: bool) -> argparse.ArgumentParser:
        added = commands.add_parser(name, add_help=False)
        added.set_defaults(run=run)
        added.add_argument("--root", default="/")
        added.add_argument("--sdk")
        if engine:
            added.add_argument("--engine", required=True, action="append" if name == "time" else "store")
            added.add_argument("--threads", type=whole)
        return added

    probed = command("probe", _probe, engine=False)
    probed.add_argument("--disk", default=".")
    probed.add_argument("--backend", choices=backends.NAMES)

    build = command("build", _build, engine=False)
    build.add_argument("--graph", required=True)
    build.add_argument("--out", required=True)
    build.add_argument("--backend", choices=backends.NAMES)
    build.add_argument("--precision", choices=("fp32", "bf16", "fp16", "fp8", "int8"), default="fp32")
    build.add_argument("--cache")
    build.add_argument("--profile", type=_batches)
    build.add_argument("--workspace-mib", type=whole)
    build.add_argument("--optimization-level", type=int, choices=range(6))
    build.add_argument("--strongly-typed", action="store_true")
    build.add_argument("--lock-timeout-s", type=float, default=600.0)
    build.add_argument("--timeout-s", type=real)
    build.add_argument("--force", action="store_true")
    build.add_argument("--guard")

    selftest = command("selftest", _selftest, engine=True)
    selftest.add_argument("--golden", required=True)
    selftest.add_argument("--reference-golden")
    selftest.add_argument("--cosine-min", type=float, default=0.99)
    selftest.add_argument("--top1-min", type=float, default=0.9)
    selftest.add_argument("--latency-max-ms", type=real)

    timed = command("time", _time, engine=True)
    timed.add_argument("--batch", type=whole, default=1)
    timed.add_argument("--warmup-ms", type=float, default=200.0)
    timed.add_argument("--duration-s", type=float, default=3.0)
    timed.add_argument("--iterations", type=whole, default=10)
    timed.add_argument("--rounds", type=whole, default=3)
    timed.add_argument("--cuda-graph", action="store_true")
    timed.add_argument("--no-transfers", action="store_true")
    timed.add_argument("--samples", action="store_true")
    timed.add_argument("--trtexec", nargs="?", const="")

    evaluate = command("evaluate", _evaluate, engine=True)
    evaluate.add_argument("--images", required=True)
    evaluate.add_argument("--reference")
    evaluate.add_argument("--limit", type=whole)
    evaluate.add_argument("--batch", type=whole, default=8)
    evaluate.add_argument("--logits-out")
    evaluate.add_argument("--top1-min", type=float)

    infer = command("infer", _infer, engine=True)
    infer.add_argument("--input", required=True)
    infer.add_argument("--out", required=True)

    inspect = command("inspect", _inspect, engine=True)
    inspect.add_argument("--profile", action="store_true")
    return parser
