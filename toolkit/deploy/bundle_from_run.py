"""From a finished run to what is shipped of it: which graphs, which images, what they promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgeship.toolkit.core.artifact import read_json
from edgeship.toolkit.core.errors import DataError, nearest
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy.bundle import Bundle, Contents, Graph

GOLDEN = 8  # images of the self-test
EVALUATION = 500  # images of the packed evaluation set
FILE = "bundle.tar"  # where the bundle of a run lies, beside its report
TOP = 5
TYPED = "typed.onnx"  # what a compilation may leave for runtimes that go by the types of the graph alone
_STAGES = ("load", "export", "calibrate", "quantize")  # what a graph is made of


def find(run: Path) -> Bundle:
    """The bundle of a run: `run` itself if it is one, the one made of it before, or a new one.

    Args:
        run: A bundle, or the folder that `edgeship run --out` wrote.

    Raises:
        DataError: It is neither, or the run left nothing to ship.
    """
    if run.is_file():
        return bundles.load(run)
    made = run / FILE
    if made.is_file():
        bundle = bundles.load(made)
        source = _Run(run)
        if (bundle.manifest["provenance"], bundle.threads) == (_provenance(source), source.threads):
            return bundle
    return make(run, made)


def make(
    run: Path,
    out: Path,
    *,
    variants: Sequence[str] = (),
    golden: int = GOLDEN,
    images: int = EVALUATION,
    gates: Mapping[str, float] | None = None,
) -> Bundle:
    """Bundle a run.

    Args:
        run: The folder that `edgeship run --out` wrote.
        out: The file to write.
        variants: Names of the variants to ship, one for each target; empty: of every target the INT8 one,
            pruned if the run pruned.
        golden: Images of the self-test.
        images: Images of the evaluation set, at most; 0 leaves it out.
        gates: Limits on the device, see `proof`.

    Raises:
        DataError: The run is unfinished, has no such variant, or its images are gone.
    """
    source = _Run(run)
    chosen = _choose(source.compiled, source.evaluated, variants)
    places = clear_cases([source.logits(name) for name in chosen], golden)
    packed = _spread(len(source.labels), images)
    with TemporaryDirectory() as scratch:
        evaluation = Path(scratch) / "images.set" if images else None
        if evaluation:
            source.pack(packed, evaluation)
        contents = Contents(
            name=source.model["name"],
            graphs=[source.graph(name, places, packed if evaluation else None) for name in chosen],
            golden_inputs=source.inputs(places),
            evaluation=evaluation,
            gates=gates or {},
            provenance=_provenance(source),
            threads=source.threads,
        )
        return bundles.make(contents, out)


class _Run:
    """What the stages of a run left."""

    def __init__(self, out: Path) -> None:
        self._run = read_json(out / "run.json")
        self.digests = {stage["name"]: stage["digest"] for stage in self._run["stages"]}
        self._folders = {stage["name"]: Path(stage["folder"]) for stage in self._run["stages"]}
        for stage in (*_STAGES, "compile", "evaluate"):
            if not self._folders.get(stage, Path()).is_dir() or stage not in self._folders:
                raise DataError(
                    f"{out} has no result of the stage '{stage}'",
                    hint="run the recipe again, to its end: what is in the store is not made twice",
                )
        self.command = self._run["command"]
        self.threads: int = self._run["recipe"]["bench"]["threads"]
        self.model: dict[str, Any] = read_json(self._folders["load"] / "model.json")
        self.compiled: dict[str, Any] = read_json(self._folders["compile"] / "compiled.json")
        self.quantized: dict[str, Any] = read_json(self._folders["quantize"] / "quantize.json")
        accuracy = read_json(self._folders["evaluate"] / "accuracy.json")
        self.evaluated: dict[str, Any] = accuracy["variants"]
        self.labels: IntArray = np.load(self._folders["evaluate"] / "labels.npy")
        self.images: dict[str, Any] = read_json(self._folders["evaluate"] / "images.json")

    def logits(self, variant: str) -> FloatArray:
        """(N, classes) logits of the evaluated images."""
        found: FloatArray = np.load(self._folders["evaluate"] / "logits" / f"{variant}.npy")
        return found

    def graph(self, variant: str, golden: list[int], packed: list[int] | None) -> Graph:
        """A variant as it is shipped: its ONNX file, and what it said of the images in the run."""
        record = self.compiled[variant]
        logits = self.logits(variant)
        pruned = record["pruned"]
        name = f"{record['target']}{'-pruned' if pruned else ''}"
        sums = None
        if record["precision"] == "int8":
            sums = self.quantized[name].get("int8_sums")
        if record.get("graph"):  # one that takes pixels
            file = self._folders["compile"] / record["graph"]
        elif record["precision"] == "int8":
            file = self._folders["quantize"] / f"{name}.onnx"
        else:
            file = self._folders["export"] / ("pruned.onnx" if pruned else "float.onnx")
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

    def inputs(self, places: list[int]) -> FloatArray | PixelArray:
        """Evaluated images, in the form that all engines of the run take."""
        from edgeship.calibration.loader import batches

        dataset, indices = self._located(places)
        stream = batches(dataset, indices, self._preprocess(), batch=len(indices))
        takes_pixels = any(record.get("input") == "uint8" for record in self.compiled.values())
        return np.concatenate([batch.pixels if takes_pixels else batch.images for batch in stream])

    def pack(self, places: list[int], out: Path) -> None:
        """Write evaluated images as one file for devices."""
        from edgeship.calibration.evalset_format import pack

        dataset, indices = self._located(places)
        pack(dataset, indices, self._preprocess(), out)

    def _located(self, places: list[int]) -> tuple[Any, list[int]]:
        from edgeship.calibration.class_order import match
        from edgeship.calibration.datasets import open_dataset

        source = self._run["recipe"]["evaluate"]["source"]
        dataset = open_dataset(source, use="evaluate")
        if (names := self.model.get("class_names")) and dataset.labelled:
            dataset = match(dataset, names)
        positions = {item.name: index for index, item in enumerate(dataset.items)}
        names = [self.images["names"][place] for place in places]
        gone = [name for name in names if name not in positions]
        if gone:
            raise DataError(
                f"{source} no longer has {gone[0]}, which the run evaluated", hint="run the recipe again"
            )
        return dataset, [positions[name] for name in names]

    def _preprocess(self) -> Preprocess:
        stored: dict[str, Any] = read_json(self._folders["export"] / "graphs.json")["preprocess"]
        return Preprocess.from_json(stored)


def _choose(
    compiled: Mapping[str, Any], evaluated: Mapping[str, Any], variants: Sequence[str]
) -> Sequence[str]:
    for name in variants:
        if name not in evaluated:
            why = compiled.get(name, {}).get("error")
            raise DataError(
                f"the run has no variant '{name}'" + (f": {why}" if why else ""),
                hint=nearest(name, evaluated),
            )
    if variants:
        return variants
    # Pruned ones come last and win.
    names = sorted(evaluated, key=lambda name: compiled[name]["pruned"])
    chosen = {compiled[name]["target"]: name for name in names if compiled[name]["precision"] == "int8"}
    if not chosen:
        raise DataError("the run has no INT8 variant to ship", hint="name others with --variant")
    return list(chosen.values())


def clear_cases(logits: Sequence[FloatArray], wanted: int) -> list[int]:
    """Places of images whose first class is clear, so that rounding on another device cannot change it.

    Args:
        logits: (N, classes) of each variant, on the same images.
        wanted: How many.

    Returns:
        Places spread over the clearer half of the images, in order.
    """
    ordered = np.sort(np.stack(list(logits)), axis=2)
    margin = (ordered[:, :, -1] - ordered[:, :, -2]).min(0)
    clearest = np.argsort(-margin, kind="stable")[: max(wanted, len(margin) // 2)]
    places = np.sort(clearest)
    return [int(places[index]) for index in _spread(len(places), wanted)]


def _spread(count: int, wanted: int) -> list[int]:
    """Places of `wanted` images spread over all, as they may be sorted by class."""
    return [int(place) for place in np.linspace(0, count - 1, min(count, wanted)).round()]


def _accuracy(logits: FloatArray, labels: IntArray) -> dict[str, float | None]:
    if (labels < 0).any():
        return {"top1": None, "top5": None}
    best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
    right = best == labels[:, None]
    return {
        "top1": float(right[:, 0].mean()),
        "top5": float(right.any(1).mean()) if logits.shape[1] > TOP else None,
    }


def _provenance(source: _Run) -> dict[str, Any]:
    """Where the graphs come from: the same for every run of the same recipe, on any day."""
    return {
        "edgeship": metadata.version("edgeship"),
        "command": source.command,
        "model": source.model["name"],
        "weights_sha256": source.model["weights_sha256"],
        "stages": {stage: source.digests[stage] for stage in _STAGES},
        "evaluation": source.images["digest"],
    }
