"""Measure quantized graphs: accuracy, layers in INT8, latency."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _common import SESSIONS, tell

from edgeship import targets
from edgeship.calibration.datasets import Dataset
from edgeship.calibration.loader import batches
from edgeship.targets._openvino_audit import audit
from edgeship.targets._timing import interleave
from edgeship.targets.onnxruntime import simulate
from edgeship.toolkit.core import statistics
from edgeship.toolkit.core.results import LayerAudit
from edgeship.toolkit.core.tensors import Preprocess

FLOAT = "FP32"
BATCH = 50


@dataclass(frozen=True, slots=True)
class Quality:
    """Comparison of a variant's logits with those of the float network.

    Attributes:
        top1: Fraction that is right; None without labels.
        drop_pp: Fall of top-1 in percentage points, with its 95 % interval.
        agreement: Fraction with the float network's class.
        sqnr_db: Of the logits.
    """

    top1: float | None
    drop_pp: tuple[float, tuple[float, float]] | None
    agreement: float
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine of OpenVINO and its layers."""

    file: Path
    layers: tuple[LayerAudit, ...]

    def in_int8(self, kind: str) -> str:
        """Layers of a kind that read and write INT8, of all: "20/20"."""
        layers = [layer for layer in self.layers if layer.kind == kind]
        return f"{sum(layer.precision == 'int8' and not layer.warning for layer in layers)}/{len(layers)}"


def build(graph: Path, named: Path, out: Path) -> Engine:
    """Make an OpenVINO engine of a quantized graph, ONNX or OpenVINO's own.

    Args:
        graph: The graph.
        named: The float ONNX graph it was made of: its names identify the layers.
        out: Folder of the engine.
    """
    import openvino as ov

    if graph.suffix == ".onnx":
        compiled = targets.get("openvino").compile(graph, out, "int8")
        return Engine(out / compiled.file, compiled.audit)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    return Engine(graph, audit(ov.Core().compile_model(str(graph), "CPU", options), named, "int8"))


def reshaped(engine: Path, batch: int, size: int, out: Path) -> Path:
    """The same engine for another batch and image size; its latency does not depend on the scales."""
    import openvino as ov

    model = ov.Core().read_model(str(engine))
    model.reshape([batch, model.input(0).get_partial_shape()[1].get_length(), size, size])
    ov.save_model(model, str(out), compress_to_fp16=False)
    return out


def any_batch(graph: Path, out: Path) -> Path:
    """The same ONNX graph for any number of images, which evaluates faster."""
    import onnx

    model = onnx.load(str(graph))
    del model.graph.value_info[:]  # shapes of one image
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(model, str(out))
    return out


def qualities(
    engines: Mapping[str, Path],
    simulated: Mapping[str, Path],
    model: Path,
    dataset: Dataset,
    indices: Sequence[int],
    preprocess: Preprocess,
) -> dict[str, Quality]:
    """Run every image through every variant, in batches.

    Args:
        engines: Name -> OpenVINO engine.
        simulated: Name -> Q/DQ graph that ONNX Runtime runs as it is written.
        model: The float graph; in ONNX Runtime it is the reference, `FLOAT`.
        dataset: Images.
        indices: Which of them.
        preprocess: How they are prepared.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions: dict[str, targets.Session] = {}
        for number, (name, graph) in enumerate({FLOAT: model, **simulated}.items()):
            file = any_batch(graph, folder / f"{number}.onnx")
            sessions[name] = stack.enter_context(simulate(file))
        for number, (name, engine) in enumerate(engines.items()):
            file = reshaped(engine, BATCH, preprocess.crop, folder / f"{number}.xml")
            sessions[name] = stack.enter_context(targets.get("openvino").open(file))
        logits: dict[str, list[np.ndarray]] = {name: [] for name in sessions}
        labels = []
        for batch in batches(dataset, indices, preprocess, batch=BATCH):
            for name, session in sessions.items():
                logits[name].append(session.infer(batch.images))
            labels.append(batch.labels)
    truth = np.concatenate(labels)
    joined = {name: np.concatenate(parts) for name, parts in logits.items()}
    return {name: _quality(joined[FLOAT], mine, truth) for name, mine in joined.items()}


def latencies(engines: Mapping[str, Path], size: int, duration_s: float) -> dict[str, list[float]]:
    """Median latencies in ms, one of each session: every engine is loaded anew, then all take turns.

    Args:
        engines: Name -> engine for one image of `size` pixels.
        size: Input height and width.
        duration_s: Seconds for each engine, all sessions together.
    """
    images = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
    medians: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(SESSIONS):
        tell(f"latency: session {number + 1} of {SESSIONS}")
        with ExitStack() as stack:
            runs = {}
            for name, file in engines.items():
                session = stack.enter_context(targets.get("openvino").open(file, threads=1))
                runs[name] = _inference(session, images)
            for name, samples in interleave(runs, duration_s=duration_s / SESSIONS).items():
                medians[name].append(float(np.median(samples)))
    return medians


def _inference(session: targets.Session, images: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: session.infer(images)


def _quality(reference: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> Quality:
    right = logits.argmax(1) == labels
    known = bool((labels >= 0).all())
    return Quality(
        top1=float(right.mean()) if known else None,
        drop_pp=statistics.paired_drop(reference.argmax(1) == labels, right) if known else None,
        agreement=statistics.agreement(reference, logits),
        sqnr_db=statistics.sqnr_db(reference, logits),
    )
