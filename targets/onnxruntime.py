"""ONNX Runtime on CPUs: the float reference, and the exact simulation of a Q/DQ graph."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeship.targets import Compiled, Session, Target
from edgeship.targets._batching import OTHER_IMAGES, in_batches
from edgeship.targets._device import this_cpu
from edgeship.targets._messages import summed_up
from edgeship.targets._onnxruntime_profile import profile
from edgeship.targets._timing import loop_ips
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.quant import Cpu, FloatArray, PixelArray, QuantScheme, QuantSpec
from edgeship.toolkit.core.results import LayerAudit, Precision
from edgeship.toolkit.core.threads import granted_cores

ENGINE = "model.onnx"
INT8_KINDS = {
    "QLinearConv": "Convolution",
    "QGemm": "FullyConnected",
    "QLinearAdd": "Add",
    "QLinearGlobalAveragePool": "Pooling",
}
FLOAT_KINDS = {
    "Conv": "Convolution",
    "FusedConv": "Convolution",
    "Gemm": "FullyConnected",
    "Add": "Add",
    "GlobalAveragePool": "Pooling",
}
WEIGHTED = ("Convolution", "FullyConnected")
SHAPED = frozenset({"Reshape", "Expand", "Tile", "ConstantOfShape"})


class OnnxRuntime:
    """The scheme its fused integer kernels (QLinearConv, QLinearAdd, QGemm) take."""

    opens_graphs = True

    def scheme(self, cpu: Cpu | None = None) -> QuantScheme:
        """Return the quantization scheme."""
        return QuantScheme(
            name="onnxruntime",
            weight=QuantSpec("int8", symmetric=True, axis=0),
            activation=QuantSpec("int8", symmetric=True),
            unsigned_activation=QuantSpec("uint8", symmetric=True),
            add_inputs="all",
            max_pool="input",
            store_integers=True,
            integer_bias=True,
            pairs="rows",
            pair_sums=(cpu or this_cpu()).int8_sums == "pairs",
        )

    def versions(self) -> Mapping[str, str]:
        """The installed ONNX Runtime."""
        return {"onnxruntime": str(_sdk().__version__)}

    def compile(self, model: Path, out: Path, precision: Precision) -> Compiled:
        """Keep the graph: ONNX Runtime compiles when it loads. The audit is of what it fuses."""
        ort = _sdk()
        out.mkdir(parents=True, exist_ok=True)
        layers = _audit(ort, model, out / ".optimized.onnx", precision)
        shutil.copyfile(model, out / ENGINE)
        return Compiled(
            file=ENGINE,
            runs_here=True,
            note=f"run by ONNX Runtime {self.versions()['onnxruntime']} on the CPU",
            audit=layers,
            warnings=summed_up((each.warning, each.name, each.warning) for each in layers if each.warning),
        )

    @contextmanager
    def open(self, engine: Path, *, threads: int | None = None) -> Iterator[Session]:
        """Load a graph with every optimization."""
        yield _Session(_session(_sdk(), engine, threads))

    def throughput_ips(
        self,
        engine: Path,
        images: FloatArray | PixelArray,
        *,
        threads: int | None = None,
        duration_s: float,
    ) -> float:
        """Images a second, one batch after the other: its threads share one batch."""
        with self.open(engine, threads=threads) as session:
            return loop_ips(session, images, duration_s)


@contextmanager
def simulate(model: Path, *, threads: int | None = None) -> Iterator[Session]:
    """Run a Q/DQ graph as it is written: every Q and DQ in float arithmetic, nothing fused or saturated.

    This is the accuracy that a target which cannot run here should reach. A graph of a fixed batch is run
    with as many images as there are, which is faster; each gets the same bits.
    """
    yield _Session(_session(_sdk(), model, threads, exact=True))


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session
        first = session.get_inputs()[0]
        self._input = first.name
        self._batch = first.shape[0] if isinstance(first.shape[0], int) else None
        self.takes_pixels = first.type == "tensor(uint8)"

    def infer(self, images: FloatArray | PixelArray) -> FloatArray:
        return in_batches(self._run, images, self._batch)

    def _run(self, images: FloatArray | PixelArray) -> FloatArray:
        try:
            logits: FloatArray = self._session.run(None, {self._input: images})[0]
        except Exception as error:  # its exception classes share no base but Exception
            reason = str(error).strip().splitlines()[0]
            raise TargetError(
                f"ONNX Runtime cannot run images of shape {images.shape}: {reason}", hint=OTHER_IMAGES
            ) from error
        return logits


def _session(
    ort: Any,
    model: Path,
    threads: int | None,
    *,
    exact: bool = False,
    save_optimized: Path | None = None,
    trace: Path | None = None,
) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or granted_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; they arrive as exceptions too
    if exact:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if save_optimized is not None:  # without the last level, which renames every node for its memory layout
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(save_optimized)
    if trace is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace)
    try:
        source = _any_batch(model) if exact else str(model)
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exception classes share no base but Exception
        raise TargetError(
            f"ONNX Runtime cannot load {model}: {str(error).strip().splitlines()[0]}",
            hint="check that the file exists and is complete; `edgeship inspect` tells what is in it",
        ) from error


def _any_batch(model: Path) -> bytes:
    """A graph that takes any number of images, unless it writes theirs down in a shape."""
    import onnx

    loaded = onnx.load(str(model))
    if not any(node.op_type in SHAPED for node in loaded.graph.node):
        for value in (*loaded.graph.input, *loaded.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del loaded.graph.value_info[:]  # shapes of one batch
    serialized: bytes = loaded.SerializeToString()
    return serialized


def _audit(ort: Any, model: Path, optimized: Path, precision: Precision) -> tuple[LayerAudit, ...]:
    """The layers of the optimized graph and their time: an integer kernel has an operator of its own."""
    import onnx

    try:
        _session(ort, model, 1, save_optimized=optimized)
        nodes = onnx.load(str(optimized)).graph.node
    finally:
        optimized.unlink(missing_ok=True)
    layers = []
    for node in nodes:
        kind = INT8_KINDS.get(node.op_type) or FLOAT_KINDS.get(node.op_type)
        if kind is None:
            continue
        runs = "int8" if node.op_type in INT8_KINDS else "fp32"
        wanted = precision == "int8" and kind != "Pooling"
        warning = (
            "runs in fp32: no integer kernel fuses it with its Q and DQ" if wanted and runs != "int8" else ""
        )
        name = re.sub(r"_token_\d+$", "", node.name) or node.output[0]  # its fusions number their nodes
        layers.append(LayerAudit(name, kind, runs, kind in WEIGHTED, warning))
    profiled = _session(ort, model, 1, trace=optimized.with_name(".trace"))
    nodes = onnx.load(str(model), load_external_data=False).graph.node
    took_ms = profile(profiled, nodes, {layer.name for layer in layers})
    return tuple(replace(layer, time_ms=took_ms.get(layer.name)) for layer in layers)


def _sdk() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise TargetError("onnxruntime is not installed", hint="pip install onnxruntime") from error
    return onnxruntime


TARGET: Target = OnnxRuntime()  # annotated, so mypy checks it against the protocol
