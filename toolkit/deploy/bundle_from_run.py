"""Make a bundle from a finished run: choose graphs, golden images and the evaluation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgeship import targets
from edgeship.targets.tensorrt import jetson, repair
from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.errors import DataError, nearest
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy.bundle import Bundle, Contents, Graph
from edgeship.toolkit.runs.description import description
from edgeship.toolkit.runs.network import ModelInfo
from edgeship.toolkit.runs.variant_id import VariantId

GOLDEN = 8  # images of the self-test
EVALUATION = 500  # images of the packed evaluation set
FILE = "bundle.tar"  # in the folder of the run
TOP = 5
TYPED = "typed.onnx"  # graph with FP16 types, for runtimes without precision flags
_STAGES = ("load", "export", "calibrate", "quantize")  # stages that determine a graph


def bundle_of(run: Path) -> Bundle:
    """Return the bundle of a run: `run` itself if it is a bundle, an up-to-date earlier one, or a new one.

    Args:
        run: A bundle, or the folder that `edgeship run --out` wrote.

    Raises:
        DataError: `run` is neither, or has no variant to ship.
    """
    if run.is_file():
        return bundles.load(run)
    path = run / FILE
    if path.is_file():
        bundle = bundles.load(path)
        source = _Run(run)
        if (bundle.manifest["provenance"], bundle.threads) == (_provenance(source), source.threads):
            return bundle
    return make(run, path)


def make(
    run: Path,
    out: Path,
    *,
    variants: Sequence[str] = (),
    golden: int = GOLDEN,
    images: int = EVALUATION,
    gates: Mapping[str, float] | None = None,
    version: str | None = None,
) -> Bundle:
    """Bundle a run.

    Args:
        run: The folder that `edgeship run --out` wrote.
        out: File to write.
        variants: Names of the variants to ship, one per target; empty: the INT8 variant of every target,
            pruned if the run pruned.
        golden: Images of the self-test.
        images: Maximum images of the evaluation set; 0: no evaluation set.
        gates: Limits on the device, see `verification`.
        version: TensorRT version on the device; None: that of the run's recipe, if it states one.

    Raises:
        DataError: The run is unfinished, has no such variant, or its images are missing.
        ModelError: The opset of a graph cannot be lowered for that TensorRT.
        TargetError: That TensorRT refuses a graph.
    """
    source = _Run(run)
    chosen = _choose(source.compiled, source.evaluated, variants)
    positions = choose_golden([source.logits(name) for name in chosen], golden)
    packed = _spread(len(source.labels), images)
    with TemporaryDirectory() as scratch:
        evaluation = Path(scratch) / "images.set" if images else None
        if evaluation:
            source.pack(packed, evaluation)
        graphs = [source.graph(name, positions, packed if evaluation else None) for name in chosen]
        contents = Contents(
            name=source.model.name,
            graphs=[_fitted(graph, version or source.tensorrt, Path(scratch)) for graph in graphs],
            golden_inputs=source.inputs(positions),
            evaluation=evaluation,
            gates=gates or {},
            provenance=_provenance(source),
            description=description(source.model, source.classes),
            threads=source.threads,
        )
        return bundles.make(contents, out)


def _fitted(graph: Graph, version: str | None, folder: Path) -> Graph:
    """Return a graph for a TensorRT version; those of other targets are unchanged."""
    if version is None or not targets.get(graph.target).checks_rules:
        return graph
    file = folder / f"{graph.variant}.onnx"
    repair.fit(graph.file, version, file)
    return replace(graph, file=file)


class _Run:
    """Results of the stages of a run."""

    def __init__(self, out: Path) -> None:
        self._run = read_json(out / "run.json")
        self.digests = {stage["name"]: stage["digest"] for stage in self._run["stages"]}
        self._folders = {stage["name"]: Path(stage["folder"]) for stage in self._run["stages"]}
        for stage in (*_STAGES, "compile", "evaluate"):
            if not self._folders.get(stage, Path()).is_dir() or stage not in self._folders:
                raise DataError(
                    f"{out} has no result of the stage '{stage}'",
                    hint="run the recipe again, to its end; finished stages are reused",
                )
        self.command = self._run["command"]
        device = {name: self._run["recipe"].get("compile", {}).get(name) for name in ("jetpack", "tensorrt")}
        self.tensorrt = jetson.choose(**device) if any(device.values()) else None
        self.threads: int = self._run["recipe"]["bench"]["threads"]
        self.model = ModelInfo.read(self._folders["load"])
        self.compiled: dict[str, Any] = read_json(self._folders["compile"] / "compiled.json")
        self.quantized: dict[str, Any] = read_json(self._folders["quantize"] / "quantize.json")
        accuracy = read_json(self._folders["evaluate"] / "accuracy.json")
        self.evaluated: dict[str, Any] = accuracy["variants"]
        self.classes: list[str] = accuracy["data"]["classes"]
        self.labels: IntArray = np.load(self._folders["evaluate"] / "labels.npy")
        self.images: dict[str, Any] = read_json(self._folders["evaluate"] / "images.json")

    def logits(self, variant: str) -> FloatArray:
        """Return the (N, classes) logits of the evaluated images."""
        logits: FloatArray = np.load(self._folders["evaluate"] / "logits" / f"{variant}.npy")
        return logits

    def graph(self, variant: str, golden: list[int], packed: list[int] | None) -> Graph:
        """Return a variant to ship: ONNX file, golden logits and simulated accuracy."""
        record = self.compiled[variant]
        logits = self.logits(variant)
        variant_id = VariantId(record["target"], record["precision"], record["pruned"])
        sums = None
        if record["precision"] == "int8":
            sums = self.quantized[variant_id.quantized_graph].get("int8_sums")
        if record.get("graph"):  # a graph with pixel input
            file = self._folders["compile"] / record["graph"]
        else:
            file = variant_id.graph(self._folders)
        reference, simulated = None, None
        if packed is not None:
            reference = logits[packed]
            simulated = {
                **_accuracy(reference, self.labels[packed]),
                "images": len(packed),
                "measured_on": self.evaluated[variant]["measured_on"],
            }
        typed = self._folders["compile"] / (record.get("folder") or ".") / TYPED
        return Graph(
            variant,
            record["target"],
            record["precision"],
            file,
            logits[golden],
            reference,
            simulated,
            typed if typed.is_file() else None,
            sums,
        )

    def inputs(self, positions: list[int]) -> FloatArray | PixelArray:
        """Return evaluated images in the input form of the run's engines."""
        from edgeship.calibration.loader import batches

        dataset, indices = self._located(positions)
        stream = batches(dataset, indices, self.model.preprocess, batch=len(indices))
        takes_pixels = any(record.get("input") == "uint8" for record in self.compiled.values())
        return np.concatenate([batch.pixels if takes_pixels else batch.images for batch in stream])

    def pack(self, positions: list[int], out: Path) -> None:
        """Write evaluated images as one file for devices."""
        from edgeship.calibration.evalset_format import pack

        dataset, indices = self._located(positions)
        pack(dataset, indices, self.model.preprocess, out)

    def _located(self, positions: list[int]) -> tuple[Any, list[int]]:
        from edgeship.calibration.class_order import match_classes
        from edgeship.calibration.datasets import open_dataset

        source = self._run["recipe"]["evaluate"]["source"]
        dataset = open_dataset(source, use="evaluate")
        if (names := self.model.class_names) and dataset.labelled:
            dataset = match_classes(dataset, names)
        indices = {item.name: index for index, item in enumerate(dataset.items)}
        chosen = [self.images["names"][position] for position in positions]
        missing = [name for name in chosen if name not in indices]
        if missing:
            raise DataError(
                f"{source} no longer has {missing[0]}, which the run evaluated", hint="run the recipe again"
            )
        return dataset, [indices[name] for name in chosen]


def _choose(
    compiled: Mapping[str, Any], evaluated: Mapping[str, Any], variants: Sequence[str]
) -> Sequence[str]:
    for name in variants:
        if name not in evaluated:
            cause = compiled.get(name, {}).get("error")
            raise DataError(
                f"the run has no variant '{name}'" + (f": {cause}" if cause else ""),
                hint=nearest(name, evaluated),
            )
    if variants:
        return variants
    # Pruned variants come last and replace the others.
    names = sorted(evaluated, key=lambda name: compiled[name]["pruned"])
    chosen = {compiled[name]["target"]: name for name in names if compiled[name]["precision"] == "int8"}
    if not chosen:
        raise DataError("the run has no INT8 variant to ship", hint="choose a variant with --variant NAME")
    return list(chosen.values())


def choose_golden(logits: Sequence[FloatArray], count: int) -> list[int]:
    """Choose images with a large top-1 margin, which rounding on another device cannot change.

    Args:
        logits: (N, classes) of each variant, on the same images.
        count: Number of images.

    Returns:
        Positions spread over the half with the larger margins, in order.
    """
    ordered = np.sort(np.stack(list(logits)), axis=2)
    margin = (ordered[:, :, -1] - ordered[:, :, -2]).min(0)
    largest = np.argsort(-margin, kind="stable")[: max(count, len(margin) // 2)]
    positions = np.sort(largest)
    return [int(positions[index]) for index in _spread(len(positions), count)]


def _spread(total: int, count: int) -> list[int]:
    """Return `count` evenly spaced positions; the images may be sorted by class."""
    return [int(position) for position in np.linspace(0, total - 1, min(total, count)).round()]


def _accuracy(logits: FloatArray, labels: IntArray) -> dict[str, float | None]:
    if (labels < 0).any():
        return {"top1": None, "top5": None}
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    correct = best == labels[:, None]
    return {
        "top1": float(correct[:, 0].mean()),
        "top5": float(correct.any(1).mean()) if logits.shape[1] > TOP else None,
    }


def _provenance(source: _Run) -> dict[str, Any]:
    """Return the provenance of the graphs; equal for equal recipes, independent of time."""
    return {
        "edgeship": metadata.version("edgeship"),
        "command": source.command,
        "model": source.model.name,
        "weights_sha256": source.model.weights_sha256,
        "stages": {stage: source.digests[stage] for stage in _STAGES},
        "evaluation": source.images["digest"],
    }
