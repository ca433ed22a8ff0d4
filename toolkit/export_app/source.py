"""Read the part of a run that an application needs: an engine, its graph, class names and preprocessing."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeship.targets import runner
from edgeship.targets.runner.description import Description
from edgeship.targets.runner.failures import Failure
from edgeship.toolkit.core.artifact import read_json, write_bytes, write_text
from edgeship.toolkit.core.errors import DataError, missing, nearest
from edgeship.toolkit.runs.description import DESCRIPTION, LABELS
from edgeship.toolkit.runs.engines import ENGINES
from edgeship.toolkit.runs.index import RunIndex
from edgeship.toolkit.runs.variant_id import VariantId

LIBRARY = Path("runner", runner.FILE_NAME)  # of an exported folder: `classify.py` imports it from there
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Input or output of a graph; a side of the shape is -1 where it is dynamic."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """An engine of a run.

    Attributes:
        run: Folder of the run.
        variant: The variant of the engine.
        folder: Folder with the files of the engine.
        record: Content of model.json.
        how: The same, checked: class names and preprocessing.
        graph: ONNX file that the engine was compiled from.
        input: Input of the graph: float32 (N, C, H, W) or uint8 (N, H, W, C).
        output: Output of the graph, (N, classes).
    """

    run: Path
    variant: VariantId
    folder: Path
    record: dict[str, Any]
    how: Description
    graph: Path
    input: Tensor
    output: Tensor

    @property
    def name(self) -> str:
        """Return the name of the model, as safe for folders, addresses and packages."""
        return _UNSAFE.sub("_", str(self.record["name"])).strip("._-") or "model"

    @property
    def takes_pixels(self) -> bool:
        """Return True if the engine takes uint8 pixels, which it normalizes itself."""
        return self.input.type == "UINT8"

    @property
    def pixels(self) -> str:
        """Return the preprocessing in words, for a README."""
        how = self.how
        side = "the shorter side to" if isinstance(how.resize, int) else "to (height, width)"
        resize = "no resize" if how.resize is None else f"resize {side} {how.resize} ({how.interpolation})"
        normalized = f"(pixel / 255 - {how.mean}) / {how.std} per channel"
        last = "uint8 RGB, normalized in the graph" if self.takes_pixels else normalized
        assumed = " Mean and std are **assumed**: set them in the recipe." if how.source == "assumed" else ""
        return f"{resize}, centre crop to {how.crop[0]} x {how.crop[1]}, {last}.{assumed}"

    def has_probabilities(self) -> bool:
        """Return True if the graph ends in a Softmax."""
        from edgeship.toolkit.graph.load import load_unchanged

        last = load_unchanged(self.graph).graph.outputs[0].producer()
        return last is not None and last.op_type == "Softmax"

    def engine_files(self) -> list[Path]:
        """Return the files of the engine, without the graph that it was compiled from."""
        return sorted(self.folder.glob("model.*"))

    def labels_text(self) -> str:
        """Return one class name a line."""
        return "".join(f"{' '.join(name.split())}\n" for name in self.how.labels)

    def copy_engine(self, folder: Path) -> None:
        """Copy the files of the engine and its description."""
        folder.mkdir(parents=True)
        for file in self.engine_files():
            shutil.copyfile(file, folder / file.name)
        shutil.copyfile(self.run / ENGINES / DESCRIPTION, folder / DESCRIPTION)
        write_text(folder / LABELS, self.labels_text())

    def copy_library(self, folder: Path) -> None:
        """Write the classifier's library into an exported folder."""
        write_bytes(folder / LIBRARY, runner.source())
        write_text(folder / runner.CLASSIFY_NAME, runner.CLASSIFY)

    def copy_client(self, folder: Path) -> None:
        """Write what a program needs to prepare images for a server: library and description."""
        write_bytes(folder / LIBRARY, runner.source())
        shutil.copyfile(self.run / ENGINES / DESCRIPTION, folder / DESCRIPTION)


def read(run: Path, targets: Sequence[str], variant: str | None = None) -> Source:
    """Read an engine of a run.

    Args:
        run: Folder that `edgeship run --out` wrote.
        targets: Targets that the application can use, the preferred one first.
        variant: Name of the variant; None: the INT8 engine of the first target, the pruned one before others.

    Raises:
        DataError: The folder is no run, has no such engine, or the files of the engine do not fit each other.
    """
    RunIndex.read(run)
    folders = {folder.name: folder for folder in sorted((run / ENGINES).glob("*/*")) if folder.is_dir()}
    fitting = [each for each in map(VariantId.parse, folders) if each.target in targets and not each.guarded]
    if variant is not None and variant not in {each.name for each in fitting}:
        hint = nearest(variant, [each.name for each in fitting] or folders)
        raise missing(DataError(f"{run} has no variant '{variant}' for this application", hint=hint))
    chosen = [each for each in fitting if variant in (None, each.name)]
    if not chosen:
        raise DataError(
            f"{run} has no engine of {' or '.join(targets)}, only {', '.join(folders) or 'none'}",
            hint=f"run the recipe again with --set compile.targets={targets[0]}",
        )
    best = min(
        chosen, key=lambda each: (each.precision != "int8", targets.index(each.target), not each.pruned)
    )
    return _source(run, best, folders[best.name])


def _source(run: Path, variant: VariantId, folder: Path) -> Source:
    where = run / ENGINES / DESCRIPTION
    record = read_json(where)
    try:
        how = Description(record, str(where))
    except Failure as failure:
        raise DataError(f"{failure} ({failure.cause})", hint="run the recipe again") from failure
    graph = next((file for name in ("model", "graph") if (file := folder / f"{name}.onnx").is_file()), None)
    if graph is None:
        raise DataError(f"{folder} has no ONNX file", hint="run the recipe again, to its end")
    inputs, outputs = tensors(graph)
    classes = outputs[0].shape[-1]
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or classes not in (-1, len(how.labels)):
        raise DataError(
            f"{graph} has {len(inputs)} inputs and {classes} classes, {where} {len(how.labels)} class names",
            hint="run the recipe again: the files are of different runs",
        )
    return Source(run, variant, folder, record, how, graph, inputs[0], outputs[0])


def tensors(graph: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs and the outputs of an ONNX file, with the names that a server asks for."""
    import onnx

    content = onnx.load(graph, load_external_data=False).graph
    constants = {each.name for each in content.initializer}
    read = [
        [
            Tensor(
                value.name,
                onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
                tuple(side.dim_value or -1 for side in value.type.tensor_type.shape.dim),
            )
            for value in values
        ]
        for values in ([each for each in content.input if each.name not in constants], content.output)
    ]
    return read[0], read[1]
