"""Make a bundle from a finished run: choose graphs, golden images and the evaluation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.targets.tensorrt import jetson, repair
from edgeship.toolkit.core.errors import DataError, missing, nearest
from edgeship.toolkit.core.quant import FloatArray, IntArray, PixelArray
from edgeship.toolkit.core.results import HALVES, Environment, Precision, RunReport
from edgeship.toolkit.core.typed_json import read_as
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import evidence
from edgeship.toolkit.deploy.bundle import Bundle, Contents, Graph
from edgeship.toolkit.deploy.manifest import Terms
from edgeship.toolkit.report import verdict
from edgeship.toolkit.runs import guarded
from edgeship.toolkit.runs.compiled import CompiledVariants, graph_file, simulated_file
from edgeship.toolkit.runs.description import description, stored_monitor
from edgeship.toolkit.runs.guarded import Guards
from edgeship.toolkit.runs.index import RunIndex
from edgeship.toolkit.runs.measured import Accuracies, EvaluatedImages
from edgeship.toolkit.runs.network import ModelInfo
from edgeship.toolkit.runs.quantized import QuantizationSummary
from edgeship.toolkit.runs.variant_id import VariantId

if TYPE_CHECKING:
    from edgeship.calibration.datasets import Dataset

GOLDEN = 8  # images of the self-test
LARGEST_FILE_BYTES = 2_000_000  # of an image file that a bundle carries
EVALUATION = 500  # images of the packed evaluation set
FILE = "bundle.tar"  # in the folder of the run
TOP = 5
PREFERRED: tuple[Precision, ...] = ("int8", "fp8", "fp16", "bf16")
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
    terms: Terms | None = None,
) -> Bundle:
    """Bundle a run.

    Args:
        run: The folder that `edgeship run --out` wrote.
        out: File to write.
        variants: Names of the variants to ship, one per target; empty: the INT8 variant of every target (a
            16-bit float where there is none, or where it was measured to be the better one), pruned if the
            run pruned, guarded if it has a guard.
        golden: Images of the self-test.
        images: Maximum images of the evaluation set; 0: no evaluation set.
        gates: Limits on the device, see `verification`.
        version: TensorRT version on the device; None: that of the run's recipe, if it states one.
        terms: Version and expiry of the release.

    Raises:
        DataError: The run is unfinished, has no such variant, or its images are missing.
        ModelError: The opset of a graph cannot be lowered for that TensorRT.
        TargetError: That TensorRT refuses a graph.
    """
    source = _Run(run)
    chosen = _choose(source, variants)
    positions = choose_golden([source.logits(name) for name in chosen], golden)
    packed = _spread(len(source.labels), images)
    with TemporaryDirectory() as scratch:
        evaluation = Path(scratch) / "images.set" if images else None
        if evaluation:
            source.pack(packed, evaluation)
        graphs = [source.graph(name, positions, packed if evaluation else None) for name in chosen]
        fitted = [_fitted(graph, version or source.tensorrt, Path(scratch)) for graph in graphs]
        origin = source.origin(fitted)
        contents = Contents(
            name=source.model.name,
            graphs=fitted,
            golden_inputs=source.inputs(positions),
            golden_files=source.files(positions),
            evaluation=evaluation,
            gates=gates or {},
            terms=terms or Terms(),
            provenance=_provenance(source),
            description=description(source.model, source.classes, source.monitor),
            threads=source.threads,
            documents={
                evidence.BOM: evidence.bill_of_materials(origin),
                evidence.PROVENANCE: evidence.provenance(origin),
            },
        )
        return bundles.make(contents, out)


def _fitted(graph: Graph, version: str | None, folder: Path) -> Graph:
    """Return a graph for a TensorRT version; those of other targets are unchanged."""
    if version is None or not targets.get(graph.target).checks_rules:
        return graph
    file = folder / f"{graph.variant}.onnx"
    repair.fit(graph.file, version, file)
    if graph.second is None:
        return replace(graph, file=file)
    second = folder / f"{graph.variant}-reference.onnx"
    repair.fit(graph.second, version, second)
    return replace(graph, file=file, second=second)


class _Run:
    """Results of the stages of a run."""

    def __init__(self, out: Path) -> None:
        self.index = RunIndex.read(out)
        self.digests = {stage.name: stage.digest for stage in self.index.stages}
        self._folders = self.index.folders
        for stage in (*_STAGES, "compile", "evaluate"):
            if stage not in self._folders or not self._folders[stage].is_dir():
                raise DataError(
                    f"{out} has no result of the stage '{stage}'",
                    hint="run the recipe again, to its end; finished stages are reused",
                )
        versions: Any = str | None
        device = {name: self.index.option(f"compile.{name}", versions) for name in ("jetpack", "tensorrt")}
        self.tensorrt = jetson.choose(**device) if any(device.values()) else None
        self.threads: int = self.index.option("bench.threads", int)
        self.model = ModelInfo.read(self._folders["load"])
        self.compiled = CompiledVariants.read(self._folders["compile"])
        self.quantized = read_as(
            self._folders["quantize"] / QuantizationSummary.FILE, dict[str, QuantizationSummary]
        )
        accuracy = Accuracies.read(self._folders["evaluate"])
        self.evaluated, self.classes = accuracy.variants, accuracy.data.classes
        self.guards = Guards.read(self._folders["guard"]).by_id() if "guard" in self._folders else {}
        self.monitor = stored_monitor(self._folders["evaluate"])
        self.labels: IntArray = np.load(self._folders["evaluate"] / "labels.npy")
        self.images = EvaluatedImages.read(self._folders["evaluate"])

    def faster_in_float(self) -> dict[str, str]:
        """Return target -> variant of its verdict where that is a 16-bit float that was timed."""
        report = self._folders.get("report")
        if report is None or not (report / "report.json").is_file():
            return {}
        best = verdict.to_ship(read_as(report / "report.json", RunReport))
        return {target: v.name for target, v in best.items() if v.precision in HALVES and v.latency_ms}

    def logits(self, variant: str) -> FloatArray:
        """Return the (N, classes) logits of the evaluated images."""
        logits: FloatArray = np.load(self._folders["evaluate"] / "logits" / f"{variant}.npy")
        return logits

    def graph(self, name: str, golden: list[int], packed: list[int] | None) -> Graph:
        """Return a variant to ship: ONNX file, golden logits and simulated accuracy."""
        variant, logits = VariantId.parse(name), self.logits(name)
        reference, simulated = None, None
        if packed is not None:
            reference = logits[packed]
            simulated = {
                **_accuracy(reference, self.labels[packed]),
                "images": len(packed),
                "measured_on": self.evaluated[name].measured_on,
            }
        typed = self._folders["compile"] / guarded.fast(variant).name / TYPED
        guard = self.guards.get(variant)
        second = guarded.reference(variant, guard.reference) if guard else None
        return Graph(
            name,
            variant.target,
            variant.precision,
            self._shipped(variant),
            logits[golden],
            reference,
            simulated,
            typed if typed.is_file() else None,
            self.quantized[variant.quantized_graph].int8_sums if variant.precision == "int8" else None,
            guard.for_device() if guard else None,
            self._shipped(second) if second else None,
            self.logits(second.name)[golden] if second else None,
        )

    def origin(self, graphs: Sequence[Graph]) -> evidence.Origin:
        """Return the run as evidence; without the stages that measure time."""
        stages = [stage for stage in self.index.stages if stage.name not in ("bench", "report")]
        machine = self._folders.get("bench", Path()) / "device.json"
        return evidence.Origin(
            metadata.version("edgeship"),
            self.model,
            self.index.recipe,
            stages,
            self.images,
            (self.images.source, self.index.recipe["select"]["source"]),
            read_as(machine, Environment).versions if machine.is_file() else {},
            [
                evidence.ShippedGraph(
                    graph.variant,
                    graph.target,
                    graph.precision,
                    graph.file,
                    self._stages_of(graph.variant),
                    self.evaluated[graph.variant],
                )
                for graph in graphs
            ]
            + [
                self._second_graph(VariantId.parse(graph.variant), graph.second)
                for graph in graphs
                if graph.second is not None
            ],
        )

    def _second_graph(self, variant: VariantId, file: Path) -> evidence.ShippedGraph:
        """Return the graph of a guard's reference as evidence."""
        second = guarded.reference(variant, self.guards[variant].reference)
        stages, accuracy = self._stages_of(second.name), self.evaluated[second.name]
        return evidence.ShippedGraph(second.name, second.target, second.precision, file, stages, accuracy)

    def _shipped(self, variant: VariantId) -> Path:
        """Return the graph that a device builds: of FP8 the form with FP16 types, which has no other."""
        of = simulated_file if variant.precision == "fp8" else graph_file
        return of(variant, self.compiled.variants[guarded.fast(variant).name], self._folders)

    def _stages_of(self, name: str) -> tuple[str, ...]:
        """Return the stage that wrote the graph of a variant."""
        file = self._shipped(VariantId.parse(name))
        return tuple(stage for stage, folder in self._folders.items() if folder in file.parents)

    def inputs(self, positions: list[int]) -> FloatArray | PixelArray:
        """Return evaluated images in the input form of the run's engines."""
        from edgeship.calibration.loader import batches

        dataset, indices = self._located(positions)
        stream = batches(dataset, indices, self.model.preprocess, batch=len(indices))
        takes_pixels = any(record.input == "uint8" for record in self.compiled.variants.values())
        return np.concatenate([batch.pixels if takes_pixels else batch.images for batch in stream])

    def files(self, positions: list[int]) -> dict[int, bytes]:
        """Return the files of evaluated images, by place among the positions, without large ones."""
        dataset, indices = self._located(positions)
        small = [row for row, index in enumerate(indices) if dataset.size_bytes(index) <= LARGEST_FILE_BYTES]
        return {row: dataset.read(indices[row]) for row in small}

    def pack(self, positions: list[int], out: Path) -> None:
        """Write evaluated images as one file for devices."""
        from edgeship.calibration.evalset_format import pack

        dataset, indices = self._located(positions)
        pack(dataset, indices, self.model.preprocess, out)

    def _located(self, positions: list[int]) -> tuple[Dataset, list[int]]:
        from edgeship.calibration.class_order import match_classes
        from edgeship.calibration.datasets import open_dataset

        source = self.index.option("evaluate.source", str)
        dataset = open_dataset(source, use="evaluate")
        if (names := self.model.class_names) and dataset.labelled:
            dataset = match_classes(dataset, names)
        indices = {item.name: index for index, item in enumerate(dataset.items)}
        chosen = [self.images.names[position] for position in positions]
        missing = [name for name in chosen if name not in indices]
        if missing:
            raise DataError(
                f"{source} no longer has {missing[0]}, which the run evaluated", hint="run the recipe again"
            )
        return dataset, [indices[name] for name in chosen]


def _choose(source: _Run, variants: Sequence[str]) -> Sequence[str]:
    compiled, evaluated = source.compiled, source.evaluated
    for name in variants:
        if name not in evaluated:
            failed = compiled.variants.get(name)
            cause = f": {failed.error}" if failed and failed.error else ""
            raise missing(DataError(f"the run has no variant '{name}'{cause}", hint=_way_to(name, source)))
    if variants:
        return variants
    # Pruned and guarded variants come last and replace the others.
    order = {precision: place for place, precision in enumerate(PREFERRED)}
    ids = [each for each in map(VariantId.parse, evaluated) if each.precision in order]
    ids.sort(key=lambda each: (-order[each.precision], each.pruned, each.guarded))
    chosen = {each.target: each.name for each in ids} | source.faster_in_float()
    if not chosen:
        raise DataError(
            "the run has only FP32 variants", hint=f"to ship one: --variant {min(evaluated, default='NAME')}"
        )
    return list(chosen.values())


def _way_to(name: str, source: _Run) -> str:
    """Return the option that makes a variant in another precision, else the nearest name."""
    evaluated, module = source.evaluated, source.index.recipe.get("compile", {}).get("module")
    try:
        variant = VariantId.parse(name)
    except DataError:
        return nearest(name, evaluated)
    if not jetson.available([variant.precision], module):
        return nearest(name, evaluated)
    known = {VariantId.parse(each) for each in evaluated}
    offered = (
        variant.target in targets.names() and variant.precision in targets.get(variant.target).precisions()
    )
    if not offered or any(each.precision == variant.precision for each in known):
        return nearest(name, evaluated)
    precisions = {each.precision for each in known if each.precision != "fp32"} | {variant.precision}
    return f"run the recipe again with --set compile.precisions={','.join(sorted(precisions))}"


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


def _provenance(source: _Run) -> dict[str, object]:
    """Return the provenance of the graphs; equal for equal recipes, independent of time."""
    return {
        "edgeship": metadata.version("edgeship"),
        "command": source.index.command,
        "model": source.model.name,
        "weights_sha256": source.model.weights_sha256,
        "stages": {
            stage: source.digests[stage] for stage in (*_STAGES, *(("guard",) if source.guards else ()))
        },
        "evaluation": source.images.digest,
    }
