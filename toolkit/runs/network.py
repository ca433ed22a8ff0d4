"""Define what is known of the network: the content of load/model.json and export/graphs.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgeship.toolkit.core.tensors import Preprocess, PreprocessSource
from edgeship.toolkit.core.typed_json import JsonFile
from edgeship.toolkit.runs.variant_id import GraphName


@dataclass(frozen=True, slots=True)
class ModelInfo(JsonFile):
    """A loaded network.

    Attributes:
        name: Name of the architecture, or of the ONNX file.
        weights_sha256: Digest of the file that it is from.
        parameters: Number of weights.
        classes: Number of outputs.
        preprocess: Preprocessing of an image.
        preprocess_source: Origin of its mean and std.
        class_names: All names of each output, from `load.labels`; empty without.
        notes: Notes on the input of an ONNX file: another layout, normalization in the graph.
    """

    FILE: ClassVar[str] = "model.json"
    name: str
    weights_sha256: str
    parameters: int
    classes: int
    preprocess: Preprocess
    preprocess_source: PreprocessSource
    class_names: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A float ONNX file, and its multiply-accumulates (None: unknown) and parameters."""

    file: str
    macs: int | None
    parameters: int


@dataclass(frozen=True, slots=True)
class ExportedGraphs(JsonFile):
    """The float graphs of a run.

    Attributes:
        graphs: "float", and "pruned" of a pruned network.
        parity: Largest difference of logits from the network's, relative to the largest logit.
        batch: Images of one inference; None is dynamic.
        classes: Number of outputs.
        class_names: All names of each output; empty if unknown.
        preprocess: Preprocessing of an image.
    """

    FILE: ClassVar[str] = "graphs.json"
    graphs: dict[GraphName, ExportedGraph]
    parity: float
    batch: int | None
    classes: int
    class_names: tuple[tuple[str, ...], ...]
    preprocess: Preprocess
