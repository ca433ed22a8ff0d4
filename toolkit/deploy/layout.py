"""Paths inside a bundle and a release, and names of releases (Python 3.8, standard library)."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Iterable, Mapping, Sequence  # noqa: UP035 (Python 3.8)

from edgeship.targets.runner import FILE_NAME

MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
RUNNER = f"runner/{FILE_NAME}"
EVALUATION = "evaluation/images.set"
ENGINE = "engine/model"  # in the folder of a release
REFERENCE = "engine/reference/model"  # engine of the second run of a guarded variant
THREADS = 1  # default CPU threads of timing on a device; equal to the default of runs


def graph_path(target: str) -> str:
    """Return the path of a target's graph."""
    return f"graphs/{target}.onnx"


def typed_path(target: str) -> str:
    """Return the path of a target's graph with FP16 types."""
    return f"graphs/{target}-typed.onnx"


def second_path(target: str) -> str:
    """Return the path of the graph of a guard's reference."""
    return f"graphs/{target}-reference.onnx"


def guard_path(target: str) -> str:
    """Return the path of a target's guard.json."""
    return f"guards/{target}.json"


def second_golden_path(target: str) -> str:
    """Return the path of the golden inputs and logits of a guard's reference."""
    return f"golden/{target}-reference"


def golden_path(target: str) -> str:
    """Return the path of a target's golden inputs and logits."""
    return f"golden/{target}"


def reference_path(target: str) -> str:
    """Return the path of a target's simulated logits of the evaluation set."""
    return f"evaluation/{target}.f32"


def graph_for(files: Iterable[str], target: str, *, typed: bool) -> str:
    """Return the path of the graph to build: for a typed runtime the one with FP16 types, if there is one."""
    return typed_path(target) if typed and typed_path(target) in files else graph_path(target)


def files_for(files: Mapping[str, Sequence[str]], target: str, *, typed: bool) -> list[str]:
    """Return the files that a device of a target receives, without manifest and signature.

    Args:
        files: Path -> targets that need the file; none: all.
        target: Name of the target.
        typed: True if the runtime takes precision only from the types in the graph.
    """
    other = {graph_path(target), typed_path(target)} - {graph_for(files, target, typed=typed)}
    return [path for path, needed in files.items() if (not needed or target in needed) and path not in other]


def threads(manifest: Mapping[str, Any]) -> int:
    """Return the CPU threads of timing on devices."""
    return manifest.get("threads") or THREADS


def bundle_id(name: str, manifest_sha256: str) -> str:
    """Return name and digest of a bundle: a release's name without the suffix for its device."""
    return f"{name}-{manifest_sha256[:12]}"


def release_name(bundle: str, target: str, probed: Mapping[str, Any]) -> str:
    """Return the name of a release: bundle, and dependencies of its engine on a device.

    Args:
        bundle: `bundle_id`.
        target: Name of the target.
        probed: Answer of the runner's probe.
    """
    backend = probed["backends"].get(target) or {}
    parts = {key: backend.get(key) for key in ("version", "identity", "fake")}  # runtime, processor or GPU
    text = json.dumps({"target": target, **parts}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{bundle}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"
