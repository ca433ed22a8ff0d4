"""Build an engine once per key, under a lock, atomically."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from typing import Any, Iterator

from . import backends, facts, sysfs
from .backend import Backend, BuildOptions, Session
from .failures import Failure
from .output import Output, watched

_TEMPORARY = ".edgeship-tmp-"
BUSY = 75  # EX_TEMPFAIL: try again later
_SIDECAR = {"backend": str, "version": str, "fake": bool, "precision": str, "engine_sha256": str, "identity": dict,
            "key": str}  # fmt: skip
_SPACE_FACTOR = 3  # free disk of a build, in sizes of the graph


def sha256_file(path: str) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def key_of(graph_sha256: str, backend: Backend, options: BuildOptions, identity: dict[str, Any]) -> str:
    """Return the SHA-256 of all that an engine depends on."""
    parts = {
        "graph_sha256": graph_sha256,
        "backend": backend.name,
        "version": backend.version,
        "fake": backend.fake,
        "identity": identity,
        "options": options._asdict(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def refuse(options: BuildOptions, backend: Backend, tree: sysfs.Tree) -> None:
    """Raise if this machine has no arithmetic of the precision.

    Raises:
        Failure: It has none; the cure is another precision.
    """
    offered = backend.precisions(tree)
    if options.precision in offered:
        return
    sm = backend.identity(tree).get("sm")
    best = "fp16" if "fp16" in offered else "fp32"
    if sm in facts.NO_INT8 and options.precision == "int8":
        cause = f"the GPU of {facts.NO_INT8[sm]} (SM {sm}) has no INT8 arithmetic: INT8 would silently run in FP32"
    else:
        cause = f"{backend.name} here offers {', '.join(offered)}"
    raise Failure(
        "precision-refused", f"{options.precision} refused on this device", cause,
        f"build the float graph with --precision {best}",
    )  # fmt: skip


def build(
    backend: Backend, graph: str, out: str, options: BuildOptions, tree: sysfs.Tree, output: Output,
    cache: str | None, lock_timeout_s: float, timeout_s: float | None, force: bool,
) -> dict[str, Any]:  # fmt: skip
    """Build `graph` into `out` and its sidecar `out`.json, or reuse the engine of the same key.

    Args:
        cache: Folder of engines by key and of the timing cache; None: only `out` is reused.
        lock_timeout_s: Maximum wait for another build in the same cache.
        timeout_s: Limit of the build itself; None is none.
        force: Build even if an engine has this key.

    Returns:
        The result's fields.
    """
    if not os.path.isfile(graph):
        raise Failure("file-missing", f"no graph at {graph}", f"there is no file {graph}", "check the path")
    refuse(options, backend, tree)
    identity = backend.identity(tree)
    graph_sha256 = sha256_file(graph)
    key = key_of(graph_sha256, backend, options, identity)
    folder = cache or os.path.dirname(os.path.abspath(out))
    for needed in (folder, os.path.dirname(os.path.abspath(out))):
        os.makedirs(needed, exist_ok=True)
    stored = os.path.join(cache, key[:32] + backend.suffix) if cache else out
    with _locked(folder, lock_timeout_s, output):
        _sweep(folder)
        record = None if force else _valid(stored, key)
        reused = record is not None
        if record is None:
            _want_space(folder, graph)
            record = _build(backend, graph, options, folder, stored, output, timeout_s)
            record.update({"key": key, "graph_sha256": graph_sha256, "options": options._asdict(), "identity": identity})
            write_atomically(stored + ".json", json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
        if stored != out:
            _link(stored, out)
            _link(stored + ".json", out + ".json")
    return {"engine": out, "sidecar": out + ".json", "reused": reused, **record}


def _build(
    backend: Backend, graph: str, options: BuildOptions, folder: str, stored: str, output: Output,
    timeout_s: float | None,
) -> dict[str, Any]:  # fmt: skip
    timing_file = os.path.join(folder, f"timing-{backend.version}.cache")
    timing = b""
    if os.path.exists(timing_file):
        with open(timing_file, "rb") as stream:
            timing = stream.read()

    scratch = tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder)
    started_s = time.perf_counter()
    try:
        built = watched(output, "build", timeout_s, lambda: backend.build(graph, options, timing, scratch))
    except TimeoutError as error:
        raise Failure(
            "build-timeout", str(error), "the time limit was reached",
            "raise --timeout-s, lower --optimization-level, or choose a higher power mode",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    build_s = time.perf_counter() - started_s
    if built.timing_cache:
        write_atomically(timing_file, built.timing_cache)
    write_atomically(stored, built.engine)
    return {
        "backend": backend.name,
        "version": backend.version,
        "fake": backend.fake,
        "precision": options.precision,
        "engine_sha256": hashlib.sha256(built.engine).hexdigest(),
        "size_bytes": len(built.engine),
        "build_s": round(build_s, 3),
        "built_at_unix_s": int(time.time()),
        "warnings": built.warnings,
    }


def open_engine(
    engine: str, sdk: str | None, threads: int | None, profile: bool = False
) -> tuple[Session, Backend, dict[str, Any]]:
    """Load an engine by its sidecar.

    Raises:
        Failure: No sidecar, a digest that differs, or an engine of another version or device.
    """
    record = sidecar(engine)
    with open(engine, "rb") as stream:
        data = stream.read()
    if hashlib.sha256(data).hexdigest() != record["engine_sha256"]:
        raise Failure(
            "engine-damaged", f"{engine} is not the file its sidecar describes", "the engine is cut off or was changed",
            "delete it and build again",
        )  # fmt: skip
    backend = backends.load(record["backend"], sdk or record["identity"].get("sdk_module"))
    if backend.version != record["version"]:
        raise Failure(
            "engine-other-version", f"built with {record['version']}, running {backend.version}",
            f"the engine was built by another {backend.name} version", "rebuild it on this device",
        )  # fmt: skip
    if backend.fake != record["fake"]:
        raise Failure(
            "engine-other-version", "the engine comes from a fake SDK, or the SDK here is one",
            "a fake and a real SDK were mixed", "rebuild it on this device",
        )  # fmt: skip
    return backend.open(data, record["precision"], threads, profile), backend, record


def sidecar(engine: str) -> dict[str, Any]:
    """Read the sidecar of an engine.

    Raises:
        Failure: It is absent or damaged.
    """
    try:
        with open(engine + ".json", encoding="utf-8") as stream:
            record: dict[str, Any] = json.load(stream)
        usable = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in _SIDECAR.items())
    except (OSError, ValueError, RecursionError):
        usable = False
    if not usable:
        raise Failure(
            "sidecar-missing", f"no usable {engine}.json next to the engine",
            "a build writes the sidecar of its engine", "build again with this runner",
        )  # fmt: skip
    return record


def _valid(engine: str, key: str) -> dict[str, Any] | None:
    """Return the record of a stored engine if key and digest match, else None."""
    try:
        record = sidecar(engine)
        return record if record["key"] == key and sha256_file(engine) == record["engine_sha256"] else None
    except (Failure, OSError):
        return None


@contextlib.contextmanager
def _locked(folder: str, timeout_s: float, output: Output) -> Iterator[None]:
    """One build at a time in a folder; the kernel frees the lock when its holder dies."""
    with open(os.path.join(folder, ".edgeship-lock"), "a+") as stream:
        waited_from_s, reported = time.monotonic(), False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - waited_from_s >= timeout_s:
                    raise Failure(
                        "busy", f"another build has held the lock in {folder} for {timeout_s:g} s",
                        "another deployment builds on this device", "wait for it, or raise --lock-timeout-s", BUSY,
                    ) from None  # fmt: skip
                if not reported:
                    output.progress("wait for another build")
                    reported = True
                time.sleep(0.1)
        yield


def _want_space(folder: str, graph: str) -> None:
    space = os.statvfs(folder)
    free, wanted = space.f_bavail * space.f_frsize, _SPACE_FACTOR * os.path.getsize(graph)
    if free < wanted:
        raise Failure(
            "disk-full", f"{free} bytes free in {folder}, {wanted} needed", "the disk is nearly full",
            "free space: remove old releases and engines",
        )  # fmt: skip


def write_atomically(path: str, data: bytes) -> None:
    temporary = os.path.join(os.path.dirname(path) or ".", f"{_TEMPORARY}{os.getpid()}-{os.path.basename(path)}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # after a power cut the name must not point at nothing
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _link(source: str, target: str) -> None:
    """The same file under a second name; a copy where the file system has no hard links."""
    temporary = os.path.join(os.path.dirname(target) or ".", f"{_TEMPORARY}{os.getpid()}-{os.path.basename(target)}")
    with contextlib.suppress(FileNotFoundError):
        os.remove(temporary)
    try:
        os.link(source, temporary)
    except OSError:
        with open(source, "rb") as stream:
            write_atomically(target, stream.read())
        return
    os.replace(temporary, target)
    with contextlib.suppress(FileNotFoundError):
        os.remove(temporary)  # replacing a name by a link to the same file leaves both


def _sweep(folder: str) -> None:
    """Remove temporary files of killed builds; called under the lock."""
    for path in glob.glob(os.path.join(glob.escape(folder), _TEMPORARY + "*")):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.remove(path)
