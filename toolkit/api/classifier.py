"""Run a compiled or quantized classifier on images, in an application."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeship import targets
from edgeship.toolkit.api.images import ImageStream, Shape
from edgeship.toolkit.api.quantize import stated
from edgeship.toolkit.core.errors import DataError, ModelError
from edgeship.toolkit.core.quant import FloatArray, IntArray
from edgeship.toolkit.core.tensors import Preprocess, as_size, sides
from edgeship.toolkit.graph import io
from edgeship.toolkit.pipeline import preprocessing
from edgeship.toolkit.pipeline.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

ENGINES = {"model.xml": "openvino", "model.onnx": "onnxruntime"}  # files of `Target.compile`


class Prediction(NamedTuple):
    """The most probable classes of an image, the most probable first, and their probabilities."""

    classes: IntArray
    probabilities: FloatArray


class Classifier:
    """A classifier that runs on this machine: an ONNX file, an OpenVINO model or a folder of an engine.

    Args:
        path: An .onnx or .xml file; or a folder with one, such as `engines/openvino/openvino-int8` of a run.
        target: Runtime of an ONNX file: onnxruntime or openvino.
        preprocess: Preprocessing of decoded images; None: as stated in the file.
        threads: CPU threads; None: all.
        top: Number of classes to return.

    Raises:
        ModelError: There is no such file.
        TargetError: The runtime is missing or rejects the file.

    Example:
        >>> classify = edgeship.Classifier("resnet18-int8.onnx")  # doctest: +SKIP
        >>> classes, probabilities = classify("cat.jpg")  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: str = "onnxruntime",
        *,
        preprocess: Preprocess | Mapping[str, Any] | None = None,
        threads: int | None = None,
        top: int = 5,
    ) -> None:
        engine, graph_file = _files(Path(path).expanduser())
        graph = io.read(graph_file) if graph_file is not None else None
        own = graph.preprocess if graph is not None else None
        size = graph.size if graph is not None else None
        recipe = Recipe.build({"load": {"preprocess": stated(preprocess)}})
        known = own is not None or preprocess is not None
        self.preprocess = preprocessing.resolve(recipe.load.preprocess, own, size) if known else None
        self._channels = graph.channels if graph is not None else len((self.preprocess or Preprocess()).mean)
        self._size = size or (self.preprocess.crop if self.preprocess else None)
        self.target = ENGINES.get(engine.name, target) if engine != graph_file else target
        self.top = top
        self._stack = ExitStack()
        self._session = self._stack.enter_context(targets.get(self.target).open(engine, threads=threads))

    def __call__(self, image: Any) -> Prediction:
        """Classify one image: an array, a tensor, a PIL image or an image file.

        Raises:
            DataError: The image cannot be used, or its preprocessing is unknown.
        """
        (prediction,) = self.predict([image])
        return prediction

    def predict(self, images: Any) -> list[Prediction]:
        """Classify several images, as `edgeship.quantize` takes them.

        Raises:
            DataError: An image cannot be used, or its preprocessing is unknown.
        """
        logits = self.logits(images)
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = shifted / shifted.sum(1, keepdims=True)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : self.top]
        return [Prediction(row, values[row]) for row, values in zip(order, probabilities, strict=True)]

    def logits(self, images: Any) -> FloatArray:
        """Return the logits of several images, (N, classes)."""
        from edgeship.calibration.preprocess import denormalize

        stream = ImageStream(images)
        arrays = stream.take(None, self.preprocess, self._expected(stream.shape))
        if not self._session.takes_pixels:
            return self._session.infer(arrays.images)
        if self.preprocess is None:
            raise DataError(
                "the model takes pixels, and its preprocessing is unknown",
                hint="pass preprocess={'resize': ..., 'crop': ...}",
            )
        return self._session.infer(denormalize(arrays.images, self.preprocess))

    def close(self) -> None:
        """Release the runtime's session."""
        self._stack.close()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _expected(self, shape: Shape | None) -> Shape:
        size = self._size or (as_size(*shape[1:]) if shape else Preprocess().crop)
        return (self._channels, *sides(size))


def _files(path: Path) -> tuple[Path, Path | None]:
    """Return the file to run, and the ONNX file that states shapes and preprocessing, if there is one.

    Raises:
        ModelError: There is neither an ONNX file nor an OpenVINO model.
    """
    if path.is_dir():
        engines = [path / name for name in ENGINES if (path / name).is_file()]
        graphs = sorted(path.glob("*.onnx"))
        if engines or graphs:
            engine = (engines or graphs)[0]
            return engine, next(iter(graphs), None)
    elif path.is_file() and path.suffix in (".onnx", ".xml"):
        graphs = sorted(path.parent.glob("*.onnx"))
        return path, path if path.suffix == ".onnx" else next(iter(graphs), None)
    raise ModelError(
        f"{path} is no model that runs here: expected an .onnx or .xml file, or a folder with one",
        hint="edgeship.compile(model, 'openvino', folder) writes one",
    )
