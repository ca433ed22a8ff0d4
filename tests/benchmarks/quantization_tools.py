"""One tool quantizes one network in a process of its own: `quantization_tools.py JOB.json`.

A process each, because a tool may patch the libraries another one uses, and because the peak memory of a
process is that of its one tool. The seconds leave out imports; they begin with the float graph and the images
on disk (or, as stated, with decoded images in memory) and end with the quantized graph on disk.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import peak_bytes

from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.loader import batches
from edgeship.targets._device import this_cpu
from edgeship.toolkit.core.tensors import Preprocess

BATCH = 8  # images at once, as `edgeship run` calibrates
INPUT = "images"  # of the graphs we export
AIMET_BATCH = 32  # as in its examples; it quantizes the weights anew in every run of its simulation
CONTROLLED_DROP = 0.001  # of top-1, that accuracy control is asked to keep


class Images:
    """Preprocessed images, again and again: decoded from files each time, or from memory."""

    def __init__(self, described: dict[str, Any]) -> None:
        self._described = described
        self._array = np.load(described["array"]) if "array" in described else None

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """Batches (N, C, H, W)."""
        if self._array is not None:
            for start in range(0, len(self._array), size):
                yield self._array[start : start + size]
            return
        for batch in self._decoded(size):
            yield batch.images

    def labelled(self) -> Iterator[tuple[np.ndarray, int]]:
        """Images (1, C, H, W) and their classes."""
        for batch in self._decoded(1):
            yield batch.images, int(batch.labels[0])

    def __iter__(self) -> Iterator[np.ndarray]:
        return self.batches(1)

    def __len__(self) -> int:
        return len(self._described["indices"])

    def _decoded(self, size: int) -> Any:
        described = self._described
        preprocess = Preprocess(**described["preprocess"])
        return batches(open_dataset(described["source"]), described["indices"], preprocess, batch=size)


@dataclass(frozen=True, slots=True)
class Job:
    """A float graph, images to calibrate with, images for accuracy control, our target, where to write."""

    model: Path
    images: Images
    control: Images | None
    target: str
    out: Path


Tool = Callable[[Job], Callable[[], Path]]  # imports what it needs; the function it returns is what is timed


def edgeship(effort: str) -> Tool:
    def prepare(job: Job) -> Callable[[], Path]:
        import openvino  # noqa: F401
        import torch  # noqa: F401

        from edgeship import quantization, targets
        from edgeship.quantization.calibrate import collect
        from edgeship.toolkit.graph.io import read_classifier

        scheme = targets.get(job.target).scheme()

        def run() -> Path:
            out = job.out / "edgeship.onnx"
            graph = read_classifier(job.model)  # once, as `edgeship quantize` does
            statistics = collect(graph, job.images.batches(BATCH), early_stop=True)
            quantization.quantize(graph, statistics, scheme, quantization.QuantizeOptions(effort=effort), out)
            return out

        return run

    return prepare


def nncf(**options: str) -> Tool:
    def prepare(job: Job) -> Callable[[], Path]:
        import nncf as sdk
        import openvino as ov

        preset = sdk.QuantizationPreset(options["preset"]) if options else None

        def run() -> Path:
            images = sdk.Dataset(job.images)
            model = ov.Core().read_model(str(job.model))
            result = sdk.quantize(model, images, preset=preset, subset_size=len(job.images))
            return _save(ov, result, job.out)

        return run

    return prepare


def nncf_accuracy_control() -> Tool:
    def prepare(job: Job) -> Callable[[], Path]:
        import nncf as sdk
        import openvino as ov

        def top1(model: Any, images: Any) -> tuple[float, list[float]]:
            right = [float(model(image)[0].argmax() == label) for image, label in images]
            return float(np.mean(right)), right

        def run() -> Path:
            assert job.control is not None
            control = list(job.control.labelled())
            result = sdk.quantize_with_accuracy_control(
                ov.Core().read_model(str(job.model)),
                calibration_dataset=sdk.Dataset(job.images),
                validation_dataset=sdk.Dataset(control, lambda pair: pair[0]),
                # the validation function is given what `Dataset.get_data` gives: pairs
                validation_fn=top1,
                max_drop=CONTROLLED_DROP,
                subset_size=len(job.images),
            )
            return _save(ov, result, job.out)

        return run

    return prepare


def onnxruntime(method: str = "MinMax", **options: Any) -> Tool:
    def prepare(job: Job) -> Callable[[], Path]:
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._images = iter(job.images)

            def get_next(self) -> dict[str, np.ndarray] | None:
                image = next(self._images, None)
                return None if image is None else {INPUT: image}

        types = {key: QuantType[value] for key, value in options.items() if key.endswith("_type")}

        def run() -> Path:
            prepared, out = job.out / "prepared.onnx", job.out / "onnxruntime.onnx"
            quant_pre_process(str(job.model), str(prepared))
            quantize_static(
                str(prepared),
                str(out),
                Reader(),
                calibrate_method=CalibrationMethod[method],
                reduce_range=job.target != "tensorrt" and (this_cpu().int8_sums == "pairs"),
                **{**options, **types},
            )
            return out

        return run

    return prepare


def model_optimizer(method: str) -> Tool:
    def prepare(job: Job) -> Callable[[], Path]:
        from modelopt.onnx.quantization import quantize

        def run() -> Path:
            out = job.out / "modelopt.onnx"
            quantize(
                onnx_path=str(job.model),
                calibration_data={INPUT: np.concatenate(list(job.images))},
                calibration_method=method,
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                output_path=str(out),
            )
            return out

        return run

    return prepare


def aimet(scheme: str = "min_max", *, equalize: bool = False, adaround: bool = False) -> Tool:
    def prepare(job: Job) -> Callable[[], Path]:
        import aimet_onnx
        import onnx
        from aimet_onnx.common.quantsim_config.utils import get_path_for_per_channel_config
        from aimet_onnx.cross_layer_equalization import equalize_model
        from quantization_measure import any_batch

        from edgeship import targets

        signed = targets.get(job.target).scheme().unsigned_activation is None
        config = json.loads(Path(get_path_for_per_channel_config()).read_text(encoding="utf-8"))
        if signed:  # its default, unsigned integers with a zero point, is refused by NVIDIA's parser
            config["defaults"]["ops"]["is_symmetric"] = "True"
            config["defaults"]["unsigned_symmetric"] = "False"

        def feeds() -> Iterator[dict[str, np.ndarray]]:
            return ({INPUT: images} for images in job.images.batches(AIMET_BATCH))

        def run() -> Path:
            batched, options, out = (job.out / name for name in ("batched.onnx", "aimet.json", "aimet.onnx"))
            any_batch(job.model, batched)
            options.write_text(json.dumps(config), encoding="utf-8")
            model = onnx.load(str(batched))
            if equalize:
                equalize_model(model)
            simulation = aimet_onnx.QuantizationSimModel(model, quant_scheme=scheme, config_file=str(options))
            if adaround:
                aimet_onnx.apply_adaround(simulation, list(feeds()))
            simulation.compute_encodings(feeds())
            sign = "signed" if signed else "unsigned"
            graph = simulation.to_onnx_qdq(prequantize_constants=True, force_activation_as=sign)
            onnx.save(graph, str(out))
            return out

        return run

    return prepare


def fp32_pass() -> Tool:
    def prepare(job: Job) -> Callable[[], Path]:
        from edgeship.toolkit.core.threads import ordered_map
        from edgeship.toolkit.graph import io
        from edgeship.toolkit.graph.reference import Reference

        def run() -> Path:
            classifier = io.read_classifier(job.model)
            reference = Reference(classifier.model, [classifier.output])
            for _ in ordered_map(reference.run, job.images, chunk=1):
                pass
            return job.model

        return run

    return prepare


# For x86 its documentation advises unsigned activations and signed weights, and without VNNI of seven bits;
# channels for accuracy.
ADVISED = {"activation_type": "QUInt8", "weight_type": "QInt8", "per_channel": True}
FLOOR = "one FP32 pass"
TOOLS: dict[str, Tool] = {
    "edgeship fast": edgeship("fast"),
    "edgeship balanced": edgeship("balanced"),
    "edgeship max": edgeship("max"),
    "NNCF default": nncf(),
    "NNCF mixed preset": nncf(preset="mixed"),
    "NNCF accuracy control": nncf_accuracy_control(),
    "ONNX Runtime default": onnxruntime(),
    "ONNX Runtime min-max": onnxruntime("MinMax", **ADVISED),
    "ONNX Runtime entropy": onnxruntime("Entropy", **ADVISED),
    "ONNX Runtime percentile": onnxruntime("Percentile", **ADVISED),
    "Model Optimizer entropy": model_optimizer("entropy"),
    "Model Optimizer max": model_optimizer("max"),
    "AIMET min-max": aimet(),
    "AIMET tf-enhanced": aimet("tf_enhanced"),
    "AIMET equalized": aimet(equalize=True),
    "AIMET AdaRound": aimet(adaround=True),
    FLOOR: fp32_pass(),
}


def main(arguments: Sequence[str]) -> None:
    described = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    limit = int(described["memory_limit_bytes"])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))  # an error, not a machine out of memory
    out = Path(described["result"]).parent
    control = Images(described["control"]) if described["control"] else None
    job = Job(Path(described["model"]), Images(described["images"]), control, described["target"], out)
    run = TOOLS[described["tool"]](job)
    before = time.perf_counter()
    graph = run()
    seconds = time.perf_counter() - before
    found = {"graph": str(graph), "seconds": seconds, "peak_bytes": peak_bytes()}
    Path(described["result"]).write_text(json.dumps(found), encoding="utf-8")


def _save(ov: Any, model: Any, out: Path) -> Path:
    ov.save_model(model, str(out / "nncf.xml"), compress_to_fp16=False)
    return out / "nncf.xml"


if __name__ == "__main__":
    main(sys.argv[1:])
