"""Define what the compile stage leaves: one record per variant, in compile/compiled.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from edgeship.toolkit.core.results import LayerAudit
from edgeship.toolkit.core.tensors import InputType
from edgeship.toolkit.core.typed_json import JsonFile
from edgeship.toolkit.runs.variant_id import VariantId


@dataclass(frozen=True, slots=True)
class CompiledVariant:
    """A compiled variant, or the error of one that could not be compiled.

    Attributes:
        file: Engine, or the checked graph where no engine can be built here: a file in the folder of the
            variant's name. None after an error.
        title: Product name of the target.
        runs_here: True if the engine runs on this machine.
        note: Compilation and checks, in words.
        audit: Layers as the runtime executes them.
        warnings: Warnings for the report.
        size_bytes: Size of the files of the engine, or of its graph.
        input: Input type of the engine.
        graph: Graph with pixel input that it was compiled from; None: the variant's own graph.
        float_input: The same engine with float input, for comparison; None: there is none.
        simulated: File in the folder of the variant that is simulated where it does not run; None: the graph.
        error: Reason why there is no engine; `hint`: the remedy.
    """

    file: str | None = None
    title: str = ""
    runs_here: bool = False
    note: str = ""
    audit: tuple[LayerAudit, ...] = ()
    warnings: tuple[str, ...] = ()
    size_bytes: int | None = None
    input: InputType = "float32"
    graph: str | None = None
    float_input: str | None = None
    simulated: str | None = None
    error: str | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class CompiledVariants(JsonFile):
    """All planned variants by name, the reference first."""

    FILE: ClassVar[str] = "compiled.json"
    variants: dict[str, CompiledVariant]

    def built(self) -> dict[VariantId, CompiledVariant]:
        """Return those without an error."""
        return {VariantId.parse(name): each for name, each in self.variants.items() if each.file is not None}


def engine_file(variant: VariantId, record: CompiledVariant, folders: Mapping[str, Path]) -> Path:
    """Return the engine of a variant that was built."""
    assert record.file is not None
    return folders["compile"] / variant.name / record.file


def published_folder(variant: VariantId) -> PurePosixPath:
    """Return the folder of a variant's engine below the `--out` folder of its run."""
    return PurePosixPath("engines", variant.target, variant.name)


def graph_file(variant: VariantId, record: CompiledVariant, folders: Mapping[str, Path]) -> Path:
    """Return the ONNX file that the engine of a variant was compiled from."""
    return folders["compile"] / record.graph if record.graph else variant.graph(folders)


def simulated_file(variant: VariantId, record: CompiledVariant, folders: Mapping[str, Path]) -> Path:
    """Return the ONNX file with the arithmetic of a variant."""
    if record.simulated:
        return folders["compile"] / variant.name / record.simulated
    return graph_file(variant, record, folders)


def engines(folders: Mapping[str, Path]) -> dict[str, tuple[str, Path]]:
    """Return variant -> target and engine file of all that run here."""
    built = CompiledVariants.read(folders["compile"]).built()
    return {
        variant.name: (variant.target, engine_file(variant, record, folders))
        for variant, record in built.items()
        if record.runs_here
    }


def float_engines(folders: Mapping[str, Path]) -> dict[str, tuple[str, Path]]:
    """Return the float-input engines of variants with pixel input, as `engines`."""
    built = CompiledVariants.read(folders["compile"]).built()
    return {
        variant.name: (variant.target, folders["compile"] / record.float_input)
        for variant, record in built.items()
        if record.float_input
    }
