"""What a device gets: graphs, runner, golden inputs and a manifest, in a tar file that is always the same."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeship.targets import runner
from edgeship.toolkit.core.artifact import canonical_json, plain, replacing, sha256_bytes, sha256_file
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, PixelArray

SCHEMA = 1
THREADS = 1  # CPU threads of the timing on a device where a bundle does not say: as of a run's own timing
MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
EVALUATION = "evaluation/images.set"
RUNNER = f"runner/{runner.FILE_NAME}"
NAMESPACE = "edgeship"  # a signature made for another purpose is none for a bundle
_SAFE = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph of a bundle: what devices with this target build.

    Attributes:
        variant: Its name in the report.
        target: Name of the target.
        precision: int8, fp16 or fp32.
        file: The ONNX file.
        golden: (G, classes) logits that the device must come close to on the golden inputs.
        reference: (N, classes) logits on the evaluation set; None without one.
        simulated: What the run measured of it on the evaluation set: top1, top5, images, measured_on.
        typed: The same graph with FP16 types, for runtimes that go by types alone; None where there is none.
        int8_sums: How the CPU that it is for adds INT8 products, see `recipe.QuantizeOptions`; None: any.
    """

    variant: str
    target: str
    precision: str
    file: Path
    golden: FloatArray
    reference: FloatArray | None = None
    simulated: Mapping[str, Any] | None = None
    typed: Path | None = None
    int8_sums: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """All that goes into a bundle.

    Attributes:
        name: Name of the model; the release's name begins with it.
        graphs: One for each target.
        golden_inputs: (G, C, H, W) images, ready for the network; or uint8 (G, H, W, C), for graphs that
            take pixels.
        evaluation: A packed evaluation set; None leaves accuracy on the device unmeasured.
        gates: Limits that must hold on the device (see `proof`).
        provenance: Where all this came from.
        threads: CPU threads that devices time with, so that their latency compares with the run's.
        runner: The program that builds and proves on the device.
    """

    name: str
    graphs: Sequence[Graph]
    golden_inputs: FloatArray | PixelArray
    evaluation: Path | None = None
    gates: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    threads: int = THREADS
    runner: bytes = field(default_factory=runner.source)


@dataclass(frozen=True, slots=True)
class BundleFile:
    """A file of a bundle: path inside, SHA-256, size, and the targets that need it (none: all do)."""

    path: str
    sha256: str
    size_bytes: int
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle.

    Attributes:
        path: The tar file.
        manifest: What is in it, read.
        manifest_file: The same as the file that is shipped.
        signature_file: Its signature; None when it is not signed.
        files: Everything else, by path.
    """

    path: Path
    manifest: Mapping[str, Any]
    manifest_file: BundleFile
    signature_file: BundleFile | None
    files: Mapping[str, BundleFile]

    @property
    def id(self) -> str:
        """Name and digest: what the release is called, apart from the device's environment."""
        return f"{self.manifest['name']}-{self.manifest_file.sha256[:12]}"

    @property
    def threads(self) -> int:
        """CPU threads that devices time with."""
        found: int = self.manifest.get("threads", THREADS)
        return found

    @property
    def targets(self) -> tuple[str, ...]:
        """Targets it has a graph for."""
        return tuple(self.manifest["targets"])

    def files_for(self, target: str, *, typed: bool = False) -> list[BundleFile]:
        """What a device with this target needs: manifest and signature first.

        Args:
            target: Name of the target.
            typed: Whether its runtime goes by the types of a graph alone.
        """
        first = [f for f in (self.manifest_file, self.signature_file) if f]
        other = {graph_path(target), typed_path(target)} - {self.graph_for(target, typed=typed)}
        return first + [
            f for f in self.files.values() if (not f.targets or target in f.targets) and f.path not in other
        ]

    def graph_for(self, target: str, *, typed: bool) -> str:
        """The graph that a device builds: the one with FP16 types if types are all its runtime goes by."""
        return typed_path(target) if typed and typed_path(target) in self.files else graph_path(target)

    def read(self, path: str) -> bytes:
        """Content of one file."""
        with self.open() as stream_of, stream_of(path) as stream:
            return stream.read()

    @contextmanager
    def open(self) -> Iterator[Callable[[str], IO[bytes]]]:
        """A function from path to stream, valid inside the block."""
        with tarfile.open(self.path) as archive:
            yield lambda path: _stream(archive, path)


def make(contents: Contents, out: Path) -> Bundle:
    """Write a bundle; equal contents give equal bytes.

    Args:
        contents: What goes in.
        out: The tar file to write; it appears when it is complete.

    Raises:
        DataError: Two graphs for one target, or arrays that do not fit each other.
    """
    _check(contents)
    with tempfile.TemporaryDirectory() as scratch:
        sources = dict(_sources(contents, Path(scratch)))
        files = [
            BundleFile(path, sha256_file(source), source.stat().st_size, needed)
            for path, (source, needed) in sorted(sources.items())
        ]
        manifest = canonical_json(_manifest(contents, files)).encode()
        with replacing(out) as temporary, tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as archive:
            archive.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
            first: dict[str, str] = {}
            for file in files:
                member = _member(file.path, file.size_bytes)
                if file.sha256 in first:  # the same content twice: a link inside the archive
                    member.type, member.linkname, member.size = tarfile.LNKTYPE, first[file.sha256], 0
                    archive.addfile(member)
                    continue
                first[file.sha256] = file.path
                with sources[file.path][0].open("rb") as stream:
                    archive.addfile(member, stream)
    return load(out)


def load(path: Path) -> Bundle:
    """Open a bundle and check every file in it against the manifest.

    Raises:
        DataError: It cannot be read, is no bundle, or has been changed.
    """
    try:
        with tarfile.open(path) as archive:
            members = {member.name: member for member in archive.getmembers()}
            raw = _stream(archive, MANIFEST).read()
            signature = _stream(archive, SIGNATURE).read() if SIGNATURE in members else None
            manifest = json.loads(raw)
            if manifest["schema"] != SCHEMA:
                raise DataError(
                    f"{path} has bundle schema {manifest['schema']}, not {SCHEMA}",
                    hint="make it again with this version of edgeship",
                )
            files = {
                name: BundleFile(name, entry["sha256"], entry["size_bytes"], tuple(entry["targets"]))
                for name, entry in manifest["files"].items()
            }
            for name, file in files.items():
                if name not in members or _digest(archive, name) != file.sha256:
                    raise DataError(
                        f"{path}: {name} is not what the manifest says", hint="make the bundle again"
                    )
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except (tarfile.TarError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path} is no bundle", hint="make one: `edgeship bundle RUN`") from error
    return Bundle(
        path,
        manifest,
        BundleFile(MANIFEST, sha256_bytes(raw), len(raw)),
        None if signature is None else BundleFile(SIGNATURE, sha256_bytes(signature), len(signature)),
        files,
    )


def sign(bundle: Bundle, key: Path) -> Bundle:
    """Sign a bundle's manifest, and so everything, with an SSH key (`ssh-keygen -Y sign`).

    Args:
        bundle: The bundle; its file is replaced.
        key: Private key, or the public half of one that the ssh agent holds.

    Raises:
        DataError: The key cannot be used.
    """
    with tempfile.TemporaryDirectory() as scratch:
        manifest = Path(scratch) / MANIFEST
        manifest.write_bytes(bundle.read(MANIFEST))
        command = [
            "ssh-keygen",
            "-q",
            "-Y",
            "sign",
            "-n",
            NAMESPACE,
            "-f",
            str(key.absolute()),
            str(manifest),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise DataError("cannot run ssh-keygen", hint="install OpenSSH's client") from error
        if done.returncode:
            raise DataError(
                f"cannot sign with {key}: {done.stderr.strip()}",
                hint="name a private SSH key, or a public one whose private half the ssh agent holds",
            )
        signature = (Path(scratch) / SIGNATURE).read_bytes()
    with (
        tarfile.open(bundle.path) as before,
        replacing(bundle.path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for member in before.getmembers():
            if member.name != SIGNATURE:
                archive.addfile(
                    member, before.extractfile(member) if member.type != tarfile.LNKTYPE else None
                )
            if member.name == MANIFEST:
                archive.addfile(_member(SIGNATURE, len(signature)), io.BytesIO(signature))
    return load(bundle.path)


def _check(contents: Contents) -> None:
    targets = [graph.target for graph in contents.graphs]
    if len(set(targets)) != len(targets) or not targets:
        raise DataError(
            f"a bundle takes one graph for each target, not {targets}", hint="choose with --variant"
        )
    for graph in contents.graphs:
        if len(graph.golden) != len(contents.golden_inputs) or not len(graph.golden):
            raise DataError(
                f"{len(contents.golden_inputs)} golden inputs, {len(graph.golden)} logits of {graph.variant}",
                hint="both are of the same images, at least one",
            )


def _sources(contents: Contents, scratch: Path) -> Iterator[tuple[str, tuple[Path, tuple[str, ...]]]]:
    """Path in the bundle -> the file that holds its content, the targets that need it."""
    program = scratch / runner.FILE_NAME
    program.write_bytes(contents.runner)
    yield RUNNER, (program, ())
    if contents.evaluation is not None:
        yield EVALUATION, (contents.evaluation, ())
    for graph in contents.graphs:
        needed = (graph.target,)
        yield graph_path(graph.target), (graph.file, needed)
        if graph.typed is not None:
            yield typed_path(graph.target), (graph.typed, needed)
        golden = scratch / "golden" / graph.target
        runner.write_golden(golden, contents.golden_inputs, graph.golden)
        for file in golden.iterdir():
            yield f"{golden_path(graph.target)}/{file.name}", (file, needed)
        if graph.reference is not None:
            reference = scratch / f"{graph.target}.f32"
            reference.write_bytes(np.ascontiguousarray(graph.reference, "<f4").tobytes())
            yield reference_path(graph.target), (reference, needed)


def graph_path(target: str) -> str:
    """Where a bundle has the graph of a target."""
    return f"graphs/{target}.onnx"


def typed_path(target: str) -> str:
    """Where a bundle has the graph of a target with FP16 types."""
    return f"graphs/{target}-typed.onnx"


def golden_path(target: str) -> str:
    """Where a bundle has the golden inputs and logits of a target."""
    return f"golden/{target}"


def reference_path(target: str) -> str:
    """Where a bundle has the simulated logits of the evaluation set."""
    return f"evaluation/{target}.f32"


def _manifest(contents: Contents, files: Sequence[BundleFile]) -> Any:
    return plain(
        {
            "schema": SCHEMA,
            "name": _SAFE.sub("-", contents.name.lower()).strip("-._")[:60] or "model",
            "targets": {
                graph.target: {
                    "variant": graph.variant,
                    "precision": graph.precision,
                    "simulated": graph.simulated,
                    "int8_sums": graph.int8_sums,
                }
                for graph in contents.graphs
            },
            "input": str(contents.golden_inputs.dtype),
            "gates": contents.gates,
            "threads": contents.threads,
            "provenance": contents.provenance,
            "files": {
                file.path: {"sha256": file.sha256, "size_bytes": file.size_bytes, "targets": file.targets}
                for file in files
            },
        }
    )


def _member(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member


def _stream(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    stream = archive.extractfile(name)
    if stream is None:
        raise KeyError(name)  # a folder
    return stream


def _digest(archive: tarfile.TarFile, name: str) -> str:
    digest = hashlib.sha256()
    with _stream(archive, name) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
