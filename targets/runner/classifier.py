"""Classify images with an engine of edgeship: the same code on devices, in applications and on the host.

    classifier = Classifier("/opt/edgeship/current")      # a release, an engine folder, or a file
    result = classifier("photo.jpg")                      # or uint8 (H, W, 3) RGB, or a list of images
    print(result.label, result.probability, result.top(5))

Needs NumPy and the runtime of the engine; Pillow for image files. A `Classifier` of a release follows `current`:
after a switch it loads the new engine in the background and uses it from the next image on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import io
import os
import threading
import time
from typing import Any, Iterator

import numpy as np

from . import backends, engines, guard, guard_record, imaging
from .description import DESCRIPTION, Description, bad_description, describe
from .failures import Failure
from .inference import Inference, are_probabilities, softmax
from .watch import open_watch, state_of

RELEASE_ENGINE = os.path.join("engine", "model")
NV12 = {
    f"nv12-{matrix}-{levels}": (matrix, levels) for matrix in imaging.MATRICES for levels in imaging.LEVELS
}
COLORS = ("rgb", "bgr", *NV12)
_ENGINES = {".xml": "openvino", ".onnx": "onnxruntime", ".plan": "tensorrt", ".engine": "tensorrt"}
MOST_BYTES = 512 << 20  # of an image file; a device or a pipe has no end


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class of an image: its index, its name and its probability."""

    index: int
    label: str
    probability: float


@dataclasses.dataclass(frozen=True)
class Result:
    """Classification of one image.

    Attributes:
        logits: (classes,) float32, as the engine returned them.
        labels: Names of the classes.
        normalized: True if the graph ends in a Softmax: the logits are probabilities.
    """

    logits: Any
    labels: list[str]
    normalized: bool

    @functools.cached_property
    def probabilities(self) -> Any:
        """Return the probabilities (classes,), float32: computed when they are asked for."""
        return self.logits if self.normalized else softmax(self.logits)

    def top(self, count: int = 5) -> list[Prediction]:
        """Return the most probable classes, best first."""
        order = np.argsort(-self.logits, kind="stable")[:count]
        return [Prediction(int(i), self.labels[i], float(self.probabilities[i])) for i in order]

    @property
    def index(self) -> int:
        """Return the index of the most probable class."""
        return int(self.logits.argmax())

    @property
    def label(self) -> str:
        """Return the name of the most probable class."""
        return self.labels[self.index]

    @property
    def probability(self) -> float:
        """Return the probability of the most probable class."""
        return float(self.probabilities[self.index])


class Classifier:
    """A loaded engine with its preprocessing and class names; calls from several threads take turns.

    Args:
        path: A release (`<root>/current`), a folder with an engine, or an engine file: model.xml of OpenVINO,
            .onnx, .plan of TensorRT. Its model.json is in the same folder or above; a guard.json in its folder
            makes close images run again, see `guard`.
        threads: CPU threads; None: all that the process may use.
        description: Content of model.json; None: the file, or the metadata of an ONNX file.
        follow: Load the new engine after `path` was switched to another folder; see `reload`.
        monitor: State file of the monitor, see `watch`; None: next to `current` of a release; empty: no monitor.

    Raises:
        Failure: The engine, its runtime or its model.json is missing or damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, threads: int | None = None,
        description: dict[str, Any] | None = None, follow: bool = True,
        monitor: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        self.path, self._threads, self._follow = os.fspath(path), threads, follow
        self._description = description
        self._monitor = state_of(self.path) if monitor is None else os.fspath(monitor)
        self._lock, self._reload_lock = threading.Lock(), threading.Lock()
        self._loading: threading.Thread | None = None
        self.reload_error: Exception | None = None
        try:
            self._identity = _identity(self.path)
        except OSError as error:
            raise Failure("engine-missing", f"no engine at {self.path}", str(error.strerror), "check the path") from error
        self._engine: _Engine | None = _Engine(os.path.realpath(self.path), threads, description, self._monitor)

    def __call__(self, images: Any, *, color: str = "rgb") -> Any:
        """Classify one image or a list of them.

        Args:
            images: Path, encoded bytes, Pillow image or uint8 array (H, W, 3) or (H, W) of one image; or a list
                or an array (N, H, W, 3) of several.
            color: Form of arrays: rgb; bgr, as OpenCV reads them; or an NV12 frame (3/2 H, W) of a camera with
                its matrix and levels, nv12-bt601-limited for one (`COLORS` has all).

        Returns:
            A `Result`, or a list of them.

        Raises:
            Failure: An image cannot be decoded or has another form.
        """
        several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4  # noqa: PLR2004
        with self._used() as engine:
            results = engine.classify(list(images) if several else [images], color)
        return results if several else results[0]

    def classify_inputs(self, inputs: Any) -> list[Result]:
        """Classify network inputs (N, ...) that are preprocessed already, as `inputs` returns them."""
        with self._used() as engine:
            return engine.watched_results(inputs)

    @property
    def watch(self) -> dict[str, Any] | None:
        """Return frames, evidence and alarm of the monitor; None without one."""
        with self._used() as engine:
            return None if engine.watch is None else engine.watch.status()

    @property
    def guard(self) -> dict[str, Any] | None:
        """Return how many images ran twice, and the shares that were promised; None without a guard."""
        with self._used() as engine:
            return engine.guard_status

    def inputs(self, images: Any, *, color: str = "rgb") -> Any:
        """Return the network inputs (N, ...) of a list of images, as the engine receives them."""
        with self._used() as engine:
            return engine.inputs(images, color)

    @property
    def labels(self) -> list[str]:
        """Return the class names."""
        with self._used() as engine:
            return engine.labels

    @property
    def description(self) -> Description | None:
        """Return preprocessing and class names; None if they are unknown."""
        with self._used() as engine:
            return engine.description

    @property
    def input_form(self) -> str:
        """Return the form of the network inputs: pixels (uint8, N, H, W, C), nchw or nhwc (float32)."""
        with self._used() as engine:
            return engine.input_form

    def warm_up(self, runs: int = 3) -> None:
        """Run inferences of a black image, so that the first real one takes no longer than others."""
        with self._used() as engine:
            for _ in range(runs):
                engine.warm_up()

    def reload(self, *, wait: bool = True) -> bool:
        """Load the engine anew if `path` leads to another folder or file now.

        Args:
            wait: Return after the new engine is in use; else it is loaded in the background, and the end of the
                process waits for that.

        Returns:
            True if there is a new engine.

        Raises:
            Failure: The new engine cannot be loaded (with `wait`); the old one stays in use.
        """
        with self._reload_lock:
            loading = self._loading
            if loading is None and self._switched():
                # No daemon: a process that ends waits for it, since a runtime may abort in the middle of a load.
                loading = self._loading = threading.Thread(target=self._load, daemon=False)
                try:
                    loading.start()
                except BaseException as error:  # no thread is free, or Ctrl-C: the next call tries again
                    self._loading = None
                    if wait or not isinstance(error, RuntimeError):
                        raise
                    self.reload_error = error
                    return False
        if loading is None:
            return False
        if wait:
            loading.join()
            if self.reload_error is not None:
                raise self.reload_error
            self.reload()  # the path may have been switched again since that load began
        return True

    def close(self) -> None:
        """Free the engine."""
        with self._lock:
            if self._engine is not None:
                self._engine.close()
            self._engine = None

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _switched(self) -> bool:
        """Return True if the path leads to another folder or file than the engine is from."""
        try:
            return _identity(self.path) != self._identity
        except OSError:  # removed: the engine in memory stays in use
            return False

    def _load(self) -> None:
        """Load the engine that `path` leads to, and exchange it for the one in use between two calls."""
        identity = self._identity
        try:
            identity = _identity(self.path)
            engine = _Engine(os.path.realpath(self.path), self._threads, self._description, self._monitor)
            with self._lock:
                old, self._engine, self._identity = self._engine, engine, identity
                self.reload_error = None
            if old is None:  # closed in the meantime
                self.close()
            else:
                old.close()
        except Exception as error:  # the engine in use stays; a later switch is tried again
            self.reload_error, self._identity = error, identity
        finally:
            self._loading = None

    @contextlib.contextmanager
    def _used(self) -> Iterator[_Engine]:
        if self._follow:
            self.reload(wait=False)
        with self._lock:
            if self._engine is None:
                raise Failure("closed", f"the classifier of {self.path} is closed", "close() was called", "open it anew")
            yield self._engine


class _Engine:
    """An engine, its preprocessing and its class names."""

    def __init__(self, path: str, threads: int | None, description: dict[str, Any] | None, state: str | None) -> None:
        file, backend = _find_engine(path)
        session = _open(file, backend, threads)
        self._inference, self._file = Inference(session), file
        self._inferences = [self._inference]
        self._guarded: guard.Guarded | None = None
        folder = os.path.dirname(os.path.abspath(file))
        self._promise = guard_record.read(folder)
        if self._promise is not None:
            second = _reference(folder, self._inference, threads)
            self._inferences.append(second)
            self._guarded = guard.Guarded(self._inference, second, self._promise["threshold"])
        self.description = describe(file, session) if description is None else Description(description, "description")
        self.labels = self.description.labels if self.description else []
        self._channels_first = len(session.image_shape) == 3 and self._shape_agrees(session.image_shape)  # noqa: PLR2004
        self._shape = self._input_shape(session.image_shape)
        self._probabilities: bool | None = None  # True: the graph ends in a Softmax
        self.warm_up()
        self.watch = open_watch(self.description, self.input_form, state) if state else None

    @property
    def guard_status(self) -> dict[str, Any] | None:
        """Return counts and promised shares of the guard; None without one."""
        if self._promise is None or self._guarded is None:
            return None
        return guard.status(self._promise, self._guarded)

    def results(self, inputs: Any, infer: Any = None) -> list[Result]:
        """Return the results of ready inputs; `infer`: by one engine of a guard."""
        try:
            logits = (infer or self._guarded or self._inference)(inputs)
        except Failure:
            raise
        except Exception as error:  # the exception classes of a runtime may share no base but Exception
            raise Failure(
                "inference-failed", f"the engine cannot run inputs of shape {getattr(inputs, 'shape', None)}",
                str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__,
                f"give (N, {', '.join(map(str, self._shape))}), as `inputs` returns",
            ) from error  # fmt: skip
        if not np.isfinite(logits).all():
            raise Failure("output-not-finite", "the engine returned NaN or infinity", "an overflow in half precision, "
                          "damaged weights, or inputs that are not finite", "use another variant or the release before")  # fmt: skip
        if not self.labels:
            self.labels = [str(index) for index in range(logits.shape[1])]
        if len(self.labels) != logits.shape[1]:
            raise bad_description(self._file, f"{len(self.labels)} class names for {logits.shape[1]} outputs")
        if self._probabilities is None:
            self._probabilities = are_probabilities(logits)
        return [Result(row, self.labels, self._probabilities) for row in logits]

    def classify(self, images: list[Any], color: str) -> list[Result]:
        """Return the result of each image."""
        return self.watched_results(self.inputs(images, color)) if images else []

    def watched_results(self, inputs: Any) -> list[Result]:
        """Return the results of ready inputs, and show them to the monitor."""
        if self.watch is None or self.watch.skips():
            return self.results(inputs)
        start, results = time.perf_counter(), self.results(inputs)
        self.watch.observe(inputs, [result.logits for result in results], time.perf_counter() - start)
        return results

    def inputs(self, images: list[Any], color: str) -> Any:
        """Return the preprocessed images in the form that the engine takes."""
        how = self.description
        if how is None:
            raise Failure(
                "description-missing", f"no {DESCRIPTION} for {self._file}",
                "it has the preprocessing and the class names",
                f"copy {DESCRIPTION} of the run's engines/ folder to the engine, or pass description=",
            )  # fmt: skip
        if color not in COLORS:
            raise Failure("color-unknown", f"color is {color!r}", f"expected {', '.join(COLORS)}", "color='bgr'")
        pixels = np.stack([self._pixels(_decoded(image, color), how) for image in images])
        if self._inference.takes_pixels:
            return pixels
        ready = imaging.normalize(pixels, how.mean, how.std)
        return ready if self._channels_first else np.ascontiguousarray(ready.transpose(0, 2, 3, 1))

    @property
    def input_form(self) -> str:
        """Return the form of the inputs: pixels, nchw or nhwc."""
        return "pixels" if self._inference.takes_pixels else "nchw" if self._channels_first else "nhwc"

    def warm_up(self) -> None:
        """Run one inference of zeros in each engine, if the size of the input is known."""
        if -1 not in self._shape:
            zeros = np.zeros((1, *self._shape), "u1" if self._inference.takes_pixels else "f4")
            for each in self._inferences:
                self.results(zeros, each)

    def close(self) -> None:
        """Free the engine."""
        if self.watch is not None:
            self.watch.close()
        for each in self._inferences:
            each.session.close()

    @staticmethod
    def _pixels(image: Any, how: Description) -> Any:
        try:
            return imaging.pixels(image, how.resize, how.crop, how.interpolation, len(how.mean))
        except ValueError as error:
            raise Failure("image-small", f"the image is {error}", "the resize keeps it below the crop",
                          "give a larger image") from error  # fmt: skip

    def _shape_agrees(self, shape: tuple[int, ...]) -> bool:
        """Return True if images are (C, H, W): as described, else with 1 or 3 channels in front."""
        if self._inference.takes_pixels:
            return False
        if self.description is None:
            return shape[0] in (1, 3)
        return _fits(shape, (len(self.description.mean), *self.description.crop))

    def _input_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one input; -1 where unknown."""
        if self.description is None:
            return shape
        channels, crop = len(self.description.mean), self.description.crop
        expected = (channels, *crop) if self._channels_first else (*crop, channels)
        if not _fits(shape, expected):
            raise Failure(
                "shape-mismatch", f"the engine takes images of {shape}, {DESCRIPTION} describes {expected}",
                "engine and description come from different runs", "use the files of one run or release",
            )  # fmt: skip
        return expected


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(side in (-1, size) for side, size in zip(shape, expected))


def _open(file: str, backend: str | None, threads: int | None) -> Any:
    """Return a session of an engine file; without a backend by its sidecar."""
    if backend is not None:
        return backends.load(backend).open_file(file, threads)
    session, _, _ = engines.open_engine(file, None, threads)
    return session


def _reference(folder: str, fast: Inference, threads: int | None) -> Inference:
    """Return the engine of a guard's second run, which takes the same inputs.

    Raises:
        Failure: It is missing, cannot be loaded, or takes other inputs.
    """
    path = os.path.join(folder, guard_record.REFERENCE)
    stated = os.path.join(path, "model")
    try:
        found = (stated, None) if os.path.isfile(stated) else _find_engine(path)
        session = _open(*found, threads)
    except Failure as failure:
        raise guard_record.reference_missing(folder, str(failure)) from failure
    if session.takes_pixels != fast.takes_pixels or not _fits(session.image_shape, fast.session.image_shape):
        raise guard_record.reference_missing(
            folder, f"it takes images of {session.image_shape}, the engine {fast.session.image_shape}"
        )
    return Inference(session)


def _find_engine(path: str) -> tuple[str, str | None]:
    """Return the engine file of a path and its backend; None: an engine with a sidecar."""
    if os.path.isfile(path):
        if os.path.exists(path + ".json"):
            return path, None
        backend = _ENGINES.get(os.path.splitext(path)[1])
        if backend is not None:
            return path, backend
    elif os.path.isfile(os.path.join(path, RELEASE_ENGINE)):
        return os.path.join(path, RELEASE_ENGINE), None
    elif os.path.isdir(path):
        for suffix, backend in _ENGINES.items():
            for file in sorted(glob.glob(os.path.join(glob.escape(path), f"model{suffix}"))):
                return file, backend
    raise Failure(
        "engine-missing", f"no engine at {path}", "expected a release, a folder with model.xml, model.onnx or "
        "model.plan, or such a file", "`edgeship run MODEL --data FOLDER` makes engines",
    )  # fmt: skip


def _decoded(image: Any, color: str) -> Any:
    """Return a Pillow image or an array of RGB or grey."""
    if isinstance(image, (str, os.PathLike)):
        try:
            with open(image, "rb") as stream:
                return _decode(stream.read(MOST_BYTES + 1), os.fspath(image))
        except OSError as error:
            raise Failure("image-missing", f"cannot read {image}", str(error.strerror), "check the path") from error
    if isinstance(image, (bytes, bytearray, io.BytesIO)):
        return _decode(image.getvalue() if isinstance(image, io.BytesIO) else bytes(image), "image")
    if imaging.Image is not None and isinstance(image, imaging.Image.Image):
        return image
    array = np.asarray(image)
    if color in NV12:
        try:
            return imaging.from_nv12(array, *NV12[color])
        except ValueError as error:
            raise Failure("image-form", f"an image of {error}", f"color is {color!r}",
                          "give rows of luma and of chroma without padding") from error  # fmt: skip
    grey, rgb = array.ndim == 2, array.ndim == 3 and array.shape[2] == 3  # noqa: PLR2004
    if array.dtype != np.uint8 or not (grey or rgb) or 0 in array.shape:
        raise Failure(
            "image-form", f"an image has shape {array.shape} and type {array.dtype}",
            "expected uint8 (H, W, 3), RGB, or (H, W)", "give decoded pixels in 0..255, not prepared inputs",
        )  # fmt: skip
    return np.ascontiguousarray(array[..., ::-1]) if rgb and color == "bgr" else array


def _decode(data: bytes, name: str) -> Any:
    if len(data) > MOST_BYTES:
        raise Failure("image-large", f"{name} has over {MOST_BYTES >> 20} MiB", "it is no usual image", "replace it")
    try:
        return imaging.decode(data)
    except ImportError as error:
        raise Failure("pillow-missing", f"cannot decode {name}", "Pillow is not installed", "pip install pillow") from error
    except imaging.DecodeError as error:
        raise Failure("image-damaged", f"{name} {error}", "the file is no complete image", "replace it") from error


def _identity(path: str) -> tuple[int, int, int]:
    """Return what differs after a switch: the folder or file that a path leads to."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, 0 if os.path.isdir(path) else status.st_mtime_ns
