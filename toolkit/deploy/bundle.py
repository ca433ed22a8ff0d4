"""Write, read and sign bundles: graphs, runner, golden inputs and manifest in a reproducible tar file."""

from __future__ import annotations

import io
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

from edgeship import targets
from edgeship.targets import runner
from edgeship.toolkit.core.artifact import canonical_json, plain, replacing, sha256_bytes, sha256_file
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.deploy import layout
from edgeship.toolkit.deploy import manifest as manifests
from edgeship.toolkit.deploy.layout import EVALUATION, MANIFEST, RUNNER, SIGNATURE, THREADS
from edgeship.toolkit.deploy.manifest import SCHEMA, Terms
from edgeship.toolkit.runs.description import DESCRIPTION, LABELS, labels_text

NAMESPACE = "edgeship"  # signatures of other namespaces are invalid for bundles
NO_TARGET = "none"  # of files that no device needs
_SAFE = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Graph:
    """Graph of a bundle for one target.

    Attributes:
        variant: Name of the variant in the report.
        target: Name of the target.
        precision: int8, fp16 or fp32.
        file: ONNX file.
        golden: (G, classes) expected logits of the golden inputs.
        reference: (N, classes) logits on the evaluation set; None without one.
        simulated: Accuracy of the run on the evaluation set: top1, top5, images, measured_on.
        typed: The graph with FP16 types, for runtimes without precision flags; None if absent.
        int8_sums: INT8 accumulation of the target CPU, see `recipe.QuantizeOptions`; None: any.
        guard: Content of guard.json of a guarded variant; None: no guard.
        second: ONNX file of its reference.
        second_golden: (G, classes) expected logits of the golden inputs in the reference.
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
    guard: Mapping[str, Any] | None = None
    second: Path | None = None
    second_golden: FloatArray | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of a bundle.

    Attributes:
        name: Name of the model; prefix of the release name.
        graphs: One graph per target.
        golden_inputs: (G, C, H, W) network inputs; or uint8 (G, H, W, C) for graphs with pixel input.
        evaluation: Packed evaluation set; None: accuracy is not measured on the device.
        gates: Limits on the device (see `verification`).
        provenance: Versions and digests of the run.
        description: Class names and preprocessing for applications (`runs.description`); None: no classifier.
        threads: CPU threads of timing on devices, equal to those of the run.
        runner: Program that builds and verifies on the device; empty: the device runner.
        golden_files: Image files of some golden inputs, by row, to test the path of an application.
        documents: Other texts by name (`evidence`), which devices do not receive.
        terms: Version and expiry of the release.
    """

    name: str
    graphs: Sequence[Graph]
    golden_inputs: FloatArray | PixelArray
    evaluation: Path | None = None
    gates: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    description: Mapping[str, Any] | None = None
    threads: int = THREADS
    runner: bytes = b""
    golden_files: Mapping[int, bytes] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)
    terms: Terms = field(default_factory=Terms)


@dataclass(frozen=True, slots=True)
class BundleFile:
    """File of a bundle: path inside, SHA-256, size, and the targets that need it (empty: all)."""

    path: str
    sha256: str
    size_bytes: int
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """Opened bundle.

    Attributes:
        path: The tar file.
        manifest: Parsed manifest.
        manifest_file: Manifest as a file of the bundle.
        signature_file: Signature of the manifest; None for unsigned bundles.
        files: Other files by path.
    """

    path: Path
    manifest: Mapping[str, Any]
    manifest_file: BundleFile
    signature_file: BundleFile | None
    files: Mapping[str, BundleFile]

    @property
    def id(self) -> str:
        """Return name and digest (see `layout.bundle_id`)."""
        return layout.bundle_id(self.manifest["name"], self.manifest_file.sha256)

    @property
    def threads(self) -> int:
        """Return the CPU threads of timing on devices."""
        return layout.threads(self.manifest)

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the targets of the graphs."""
        return tuple(self.manifest["targets"])

    def files_for(self, target: str, *, typed: bool = False) -> list[BundleFile]:
        """Return the files for devices of a target, manifest and signature first.

        Args:
            target: Name of the target.
            typed: True if the runtime takes precision only from the types in the graph.
        """
        needed = {path: file.targets for path, file in self.files.items()}
        first = [f for f in (self.manifest_file, self.signature_file) if f]
        return first + [self.files[path] for path in layout.files_for(needed, target, typed=typed)]

    def read(self, path: str) -> bytes:
        """Return the content of one file."""
        with self.open() as stream_of, stream_of(path) as stream:
            return stream.read()

    @contextmanager
    def open(self) -> Iterator[Callable[[str], IO[bytes]]]:
        """Return a function from path to stream, valid inside the block."""
        with tarfile.open(self.path) as archive:
            yield lambda path: manifests.stream(archive, path)


def make(contents: Contents, out: Path) -> Bundle:
    """Write a bundle; equal contents give equal bytes.

    Args:
        contents: Contents of the bundle.
        out: Tar file, written atomically.

    Raises:
        DataError: Two graphs have the same target, or array lengths differ.
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
                if file.sha256 in first:  # equal contents: a link inside the archive
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
        DataError: The file cannot be read, is not a bundle, or has been changed.
    """
    manifest, raw, signature = manifests.read(path)
    files = {
        name: BundleFile(name, entry["sha256"], entry["size_bytes"], tuple(entry["targets"]))
        for name, entry in manifest["files"].items()
    }
    guarded = [name for name, about in manifest["targets"].items() if about.get("guard")]
    needed = {path(name) for name in guarded for path in (layout.second_path, layout.guard_path)}
    missing = {RUNNER, *map(layout.graph_path, manifest["targets"]), *needed} - set(files)
    if missing:
        raise DataError(f"{path}: {min(missing)} is missing", hint=manifests.HINT)
    return Bundle(
        path,
        manifest,
        BundleFile(MANIFEST, sha256_bytes(raw), len(raw)),
        None if signature is None else BundleFile(SIGNATURE, sha256_bytes(signature), len(signature)),
        files,
    )


def sign(bundle: Bundle, key: Path) -> Bundle:
    """Sign a bundle's manifest with an SSH key (`ssh-keygen -Y sign`).

    The manifest has the digests of all files.

    Args:
        bundle: The bundle; its file is replaced.
        key: Private key, or the public key of one in the ssh agent.

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
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise DataError(
                f"cannot run ssh-keygen: {error.strerror}", hint="apt install openssh-client"
            ) from error
        if result.returncode:
            raise DataError(
                f"cannot sign with {key}: {result.stderr.strip()}",
                hint="name a private SSH key, or the public key of one in the ssh agent",
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


def openssf_signer(key: Path) -> Any:
    """Return OpenSSF model signing with a key, for `sign_openssf`.

    Args:
        key: Private ECDSA key, PEM.

    Raises:
        DataError: The package is missing, or the key cannot be used.
    """
    try:
        from model_signing import signing
    except ImportError as error:
        raise DataError(
            f"OpenSSF model signing is not installed: {error}", hint="pip install 'edgeship[signing]'"
        ) from error
    try:
        return signing.Config().use_elliptic_key_signer(private_key=key)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"cannot sign with {key}: {error}",
            hint="make a key: `openssl ecparam -name prime256v1 -genkey -noout -out KEY`",
        ) from error


def sign_openssf(bundle: Bundle, signer: Any) -> Path:
    """Sign a bundle's file by OpenSSF model signing; return the signature, a Sigstore bundle next to it.

    Others check it with `model_signing verify key BUNDLE --signature FILE --public_key KEY`.
    """
    signature = bundle.path.with_name(f"{bundle.path.name}.sig.json")
    with replacing(signature) as temporary:
        signer.sign(bundle.path, temporary)
    return signature


def _check(contents: Contents) -> None:
    targets = [graph.target for graph in contents.graphs]
    if len(set(targets)) != len(targets) or not targets:
        raise DataError(
            f"a bundle needs one graph for each target, not {targets}", hint="choose with --variant NAME"
        )
    for graph in contents.graphs:
        if len(graph.golden) != len(contents.golden_inputs) or not len(graph.golden):
            raise DataError(
                f"{len(contents.golden_inputs)} golden inputs, {len(graph.golden)} logits of {graph.variant}",
                hint="use the same images for both, at least one",
            )


def _sources(contents: Contents, scratch: Path) -> Iterator[tuple[str, tuple[Path, tuple[str, ...]]]]:
    """Yield path in the bundle, source file and the targets that need it."""
    program = scratch / runner.FILE_NAME
    program.write_bytes(contents.runner or targets.runner_archive(graph.target for graph in contents.graphs))
    yield RUNNER, (program, ())
    if contents.description is not None:
        for name, text in (
            (DESCRIPTION, canonical_json(contents.description)),
            (LABELS, labels_text(contents.description)),
            (runner.CLASSIFY_NAME, runner.CLASSIFY),
        ):
            (scratch / name).write_text(text, encoding="utf-8")
            yield name, (scratch / name, ())
    for name, text in contents.documents.items():
        (scratch / name).write_text(text, encoding="utf-8")
        yield name, (scratch / name, (NO_TARGET,))
    if contents.evaluation is not None:
        yield EVALUATION, (contents.evaluation, ())
    for graph in contents.graphs:
        needed = (graph.target,)
        yield layout.graph_path(graph.target), (graph.file, needed)
        if graph.typed is not None:
            yield layout.typed_path(graph.target), (graph.typed, needed)
        places = {layout.golden_path(graph.target): (graph.golden, contents.golden_files)}
        if graph.guard is not None and graph.second is not None and graph.second_golden is not None:
            yield layout.second_path(graph.target), (graph.second, needed)
            record = scratch / f"{graph.target}-guard.json"
            record.write_text(canonical_json(graph.guard), encoding="utf-8")
            yield layout.guard_path(graph.target), (record, needed)
            places[layout.second_golden_path(graph.target)] = (graph.second_golden, {})
        for place, (logits, images) in places.items():
            runner.write_golden(scratch / place, contents.golden_inputs, logits, images)
            for file in (scratch / place).iterdir():
                yield f"{place}/{file.name}", (file, needed)
        if graph.reference is not None:
            reference = scratch / f"{graph.target}.f32"
            reference.write_bytes(np.ascontiguousarray(graph.reference, "<f4").tobytes())
            yield layout.reference_path(graph.target), (reference, needed)


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
                    **({} if graph.guard is None else {"guard": graph.guard}),
                }
                for graph in contents.graphs
            },
            "input": str(contents.golden_inputs.dtype),
            "gates": contents.gates,
            "threads": contents.threads,
            "provenance": contents.provenance,
            **({} if contents.terms == Terms() else {"release": contents.terms}),
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
