"""Write the bill of materials, model card and provenance of a bundle, in the forms that other tools read.

bom.cdx.json       CycloneDX 1.7: the network, the shipped graphs, data and runtimes; every graph has a
                   `modelCard` whose `quantitativeAnalysis` states accuracy with 95 % intervals
provenance.jsonl   one in-toto Statement v1 a line, with SLSA Provenance v1: each stage with its options and
                   inputs, then each shipped graph

Both follow from the run alone: equal runs give equal bytes, so there is no timestamp. The manifest has their
digests, so its signature covers them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.artifact import canonical_json, sha256_file
from edgeship.toolkit.runs.index import StageResult
from edgeship.toolkit.runs.measured import AccuracyRow, EvaluatedImages
from edgeship.toolkit.runs.network import ModelInfo

BOM, PROVENANCE = "bom.cdx.json", "provenance.jsonl"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:edgeship:stage:{}:v1"
_NAMESPACE = uuid.UUID("6f0c8a1e-9d43-5a86-8a2f-2f0d6f3f7c11")  # of serial numbers


@dataclass(frozen=True, slots=True)
class ShippedGraph:
    """A graph of the bundle: variant, target, precision, file, the stages it is from, and its accuracy."""

    variant: str
    target: str
    precision: str
    file: Path
    stages: tuple[str, ...]
    accuracy: AccuracyRow


@dataclass(frozen=True, slots=True)
class Origin:
    """The run of a bundle.

    Attributes:
        edgeship: Version.
        model: The network.
        recipe: All options of the run, by section.
        stages: Its stages.
        images: The evaluated images.
        data: Name of the evaluation images, and of the calibration images.
        versions: Package -> version of the runtimes that measured; empty if unknown.
        graphs: The shipped graphs.
    """

    edgeship: str
    model: ModelInfo
    recipe: Mapping[str, Any]
    stages: Sequence[StageResult]
    images: EvaluatedImages
    data: tuple[str, str]
    versions: Mapping[str, str]
    graphs: Sequence[ShippedGraph]


def bill_of_materials(origin: Origin) -> str:
    """Return bom.cdx.json.

    Sources:
        CycloneDX 1.7 JSON schema; cyclonedx-python-lib has no class for `modelCard`: it is added to the JSON.
    """
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot7
    from packageurl import PackageURL

    def sha256(digest: str) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=digest)]

    network = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=origin.model.name,
        bom_ref="network",
        hashes=sha256(origin.model.weights_sha256) if origin.model.weights_sha256 else (),
    )
    graphs = [
        Component(
            type=ComponentType.MACHINE_LEARNING_MODEL,
            name=graph.variant,
            bom_ref=f"graph:{graph.variant}",
            hashes=sha256(sha256_file(graph.file)),
            properties=[Property(name="edgeship:target", value=graph.target)],
        )
        for graph in origin.graphs
    ]
    evaluation, calibration = origin.data
    data = [
        Component(
            type=ComponentType.DATA,
            name=name,
            bom_ref=f"data:{use}",
            properties=[Property(name=f"edgeship:{key}", value=value) for key, value in stated.items()],
        )
        for use, name, stated in (
            (
                "evaluation",
                evaluation,
                {"images": str(len(origin.images.names)), "sha256": origin.images.digest},
            ),
            ("calibration", calibration, {"images": str(origin.recipe["select"]["images"])}),
        )
    ]
    packages = [
        Component(
            type=ComponentType.LIBRARY,
            name=name,
            version=version,
            bom_ref=f"package:{name}",
            purl=PackageURL("pypi", None, name, version.partition("+")[0]),
        )
        for name, version in sorted({"edgeship": origin.edgeship, **origin.versions}.items())
    ]
    bom = Bom(serial_number=uuid.uuid5(_NAMESPACE, canonical_json(_subjects(origin))))
    bundle = Component(type=ComponentType.APPLICATION, name=f"{origin.model.name} bundle", bom_ref="bundle")
    bom.metadata.component = bundle
    bom.components.update([network, *graphs, *data, *packages])
    bom.register_dependency(bundle, [*graphs, *packages])
    for graph in graphs:
        bom.register_dependency(graph, [network, *data])
    record = json.loads(JsonV1Dot7(bom).output_as_string())
    del record["metadata"]["timestamp"]
    cards = {f"graph:{graph.variant}": model_card(origin, graph) for graph in origin.graphs}
    for component in record["components"]:
        if card := cards.get(component["bom-ref"]):
            component["modelCard"] = card
    return json.dumps(record, indent=1, sort_keys=True) + "\n"


def model_card(origin: Origin, graph: ShippedGraph) -> dict[str, Any]:
    """Return the `modelCard` of a graph; figures that were not measured are left out."""
    row, prepared = graph.accuracy, origin.model.preprocess
    images = f"{origin.data[0]}, {row.images} images, {row.source} ({row.measured_on})"
    metrics = []
    if row.top1 is not None:
        _, low, high = statistics.wilson(round(row.top1 * row.images), row.images)
        metrics.append(_metric("top-1 accuracy", row.top1, images, (low, high)))
    if row.drop_pp is not None:
        metrics.append(
            _metric("top-1 drop against FP32, percentage points", row.drop_pp, images, row.drop_ci95_pp)
        )
    _, low, high = statistics.wilson(round(row.agreement * row.images), row.images)
    metrics.append(_metric("agreement with FP32", row.agreement, images, (low, high)))
    height, width = prepared.sides
    return {
        "modelParameters": {
            "task": "image classification",
            "modelArchitecture": origin.model.name,
            "datasets": [{"ref": f"data:{use}"} for use in ("calibration", "evaluation")],
            "inputs": [{"format": f"image, {len(prepared.mean)} x {height} x {width}"}],
            "outputs": [{"format": f"{origin.model.classes} logits"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {
            "technicalLimitations": [
                f"{graph.precision} for {graph.target}; preprocessing {origin.model.preprocess_source}. "
                "Intervals are of 95 % and hold for images like the evaluated ones."
            ]
        },
    }


def _metric(kind: str, value: float, images: str, interval: tuple[float, float] | None) -> dict[str, Any]:
    metric: dict[str, Any] = {"type": kind, "value": f"{value:.6g}", "slice": images}
    if interval is not None:
        low, high = (f"{bound:.6g}" for bound in interval)
        metric["confidenceInterval"] = {"lowerBound": low, "upperBound": high}
    return metric


def provenance(origin: Origin) -> str:
    """Return provenance.jsonl."""
    digests = {stage.name: stage.digest for stage in origin.stages}
    builder = {"id": "urn:edgeship", "version": {"edgeship": origin.edgeship, **origin.versions}}

    def statement(
        kind: str, name: str, digest: str, options: object, inputs: Sequence[str]
    ) -> dict[str, Any]:
        resolved = [{"name": each, "digest": {"sha256": digests[each]}} for each in inputs if each in digests]
        return {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": digest}}],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": {
                    "buildType": _BUILD_TYPE.format(kind),
                    "externalParameters": options,
                    **({"resolvedDependencies": resolved} if resolved else {}),  # older runs lack them
                },
                "runDetails": {"builder": builder},
            },
        }

    lines = [
        statement(stage.name, stage.name, stage.digest, origin.recipe.get(stage.name, {}), stage.needs)
        for stage in origin.stages
    ]
    lines += [
        statement("graph", graph.variant, sha256_file(graph.file), {"target": graph.target}, graph.stages)
        for graph in origin.graphs
    ]
    return "".join(f"{canonical_json(line)}\n" for line in lines)


def _subjects(origin: Origin) -> dict[str, str]:
    return {graph.variant: sha256_file(graph.file) for graph in origin.graphs}
