"""Inputs of the tools: images, networks, a process of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import run_fresh, tell

from edgeship.calibration import manifest
from edgeship.calibration.datasets import Dataset, open_dataset
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models.export import export
from edgeship.toolkit.models.resnet import ResNet
from edgeship.toolkit.pipeline import preprocessing
from edgeship.toolkit.pipeline.recipe import PreprocessOptions

WORKER = Path(__file__).with_name("quantization_tools.py")


@dataclass(frozen=True, slots=True)
class Images:
    """A source of images, and the positions of those that are used."""

    source: str
    dataset: Dataset
    indices: tuple[int, ...]

    @classmethod
    def choose(cls, source: str, count: int, seed: int = 0) -> Images:
        """So many images, balanced by class; all for 0, or where there are fewer."""
        dataset = open_dataset(source)
        if count == 0 or count >= len(dataset):
            return cls(source, dataset, tuple(range(len(dataset))))
        chosen = manifest.locate(manifest.select(dataset, count, seed), dataset)
        return cls(source, dataset, tuple(chosen))

    def described(self, preprocess: Preprocess) -> dict[str, Any]:
        """For the process of a tool."""
        return {"source": self.source, "indices": self.indices, "preprocess": plain(preprocess)}


@dataclass(frozen=True, slots=True)
class Network:
    """A checkpoint under test; `size` is the side of its own input in pixels."""

    name: str
    model: ResNet
    own: Preprocess | None
    size: int

    def at(self, size: int) -> Preprocess:
        """Return the preprocessing for an input of a size."""
        return preprocessing.resolve(PreprocessOptions(), self.own, size)

    def exported(self, size: int, folder: Path) -> Path:
        """Its float graph for one image of that size."""
        out = folder / f"{self.name}-{size}.onnx"
        if not out.exists():
            export(self.model, out, size=size, batch=1, preprocess=self.at(size))
        return out


@dataclass(frozen=True, slots=True)
class Runner:
    """Starts tools in processes of their own."""

    folder: Path
    memory_limit_bytes: int
    timeout_s: float

    def run(
        self,
        tool: str,
        model: Path,
        images: Mapping[str, Any],
        *,
        target: str = "openvino",
        control: Mapping[str, Any] | None = None,
        run: str = "",
    ) -> dict[str, Any]:
        """Return what `quantization_tools` writes: graph, seconds, peak_bytes; or the reason of a failure."""
        tell(f"{model.stem}: {tool} {run}")
        folder = self.folder / "-".join([model.stem, target, tool.replace(" ", "-"), run]).strip("-")
        job = {
            "tool": tool,
            "model": str(model),
            "images": images,
            "control": control,
            "target": target,
            "memory_limit_bytes": self.memory_limit_bytes,
        }
        return run_fresh(WORKER, job, folder, self.timeout_s)
