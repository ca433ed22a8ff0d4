"""ONNX Runtime on CPUs: the float reference, and the exact simulation of a Q/DQ graph."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from edgeship.targets import Compiled, Session, Target
from edgeship.targets._device import this_cpu
from edgeship.targets._host import HostSession
from edgeship.targets._messages import summed_up
from edgeship.targets._onnxruntime_profile import profile
from edgeship.targets._timing import loop_ips
from edgeship.targets.runner.backends.onnxruntime import OnnxRuntime as Backend
from edgeship.targets.runner.backends.onnxruntime import OnnxRuntimeSession
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
    """ONNX Runtime: its fused integer kernels are QLinearConv, QLinearAdd and QGemm."""

    title = "ONNX Runtime"
    opens_graphs, checks_rules, on_cpu = True, False, True

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

    def precisions(self) -> tuple[Precision, ...]:
        """Return FP32 and INT8: it computes FP16 graphs in FP32."""
        return "fp32", "int8"

    def versions(self) -> Mapping[str, str]:
        """Return the version of the installed ONNX Runtime."""
        return {"onnxruntime": str(_sdk().__version__)}

    def compile(
        self, model: Path, out: Path, precision: Precision, *, version: str | None = None
    ) -> Compiled:
        """Copy the graph, which ONNX Runtime compiles on loading, and audit the fused layers."""
        del version  # it runs here
        out.mkdir(parents=True, exist_ok=True)
        layers = _audit(model, out / ".optimized.onnx", precision)
        shutil.copyfile(model, out / ENGINE)
        return Compiled(
            file=ENGINE,
            runs_here=True,
            note=f"run by ONNX Runtime {self.versions()['onnxruntime']} on the CPU",
            audit=layers,
            warnings=(
                *summed_up((each.warning, each.name, each.warning) for each in layers if each.warning),
                *self._wrong_quantizers(model),
            ),
        )

    def _wrong_quantizers(self, model: Path) -> tuple[str, ...]:
        """Return a warning if the graph has FP16 Q nodes that this version (1.23) does not round."""
        import onnx

        graph = onnx.load(str(model), load_external_data=False).graph
        halves = {item.name for item in graph.initializer if item.data_type == onnx.TensorProto.FLOAT16}
        nodes = [each for each in graph.node if each.op_type == "QuantizeLinear" and each.input[1] in halves]
        if not nodes or _rounds_half():
            return ()
        version = self.versions()["onnxruntime"]
        return (
            f"ONNX Runtime {version} cuts FP16 values off where QuantizeLinear rounds them "
            f"({len(nodes)} nodes): use the FP32-typed graph, or a later version",
        )

    @contextmanager
    def open(self, engine: Path, *, threads: int | None = None) -> Iterator[Session]:
        """Load a graph with all optimizations."""
        yield _host_session(engine, threads)

    def throughput_ips(
        self,
        engine: Path,
        images: FloatArray | PixelArray,
        *,
        threads: int | None = None,
        duration_s: float,
    ) -> float:
        """Return images per second of one batch after the other: all threads share a batch."""
        with self.open(engine, threads=threads) as session:
            return loop_ips(session, images, duration_s)


@contextmanager
def simulate(model: Path, *, threads: int | None = None) -> Iterator[Session]:
    """Simulate a graph: Q and DQ in float arithmetic, without fusion or saturation; FP16 tensors rounded.

    The accuracy is that expected of a target that cannot run here. A fixed batch is made dynamic, which is
    faster and does not change the logits.
    """
    yield _host_session(model, threads, exact=True)


def _host_session(model: Path, threads: int | None, *, exact: bool = False) -> HostSession:
    threads = threads or granted_cores()
    return HostSession(OnnxRuntimeSession(_session(model, threads, exact=exact), threads), OnnxRuntime.title)


def _session(model: Path, threads: int, level: str = "all", *, exact: bool = False, **more: Any) -> Any:
    try:
        source: str | bytes = str(model)
        if exact:
            source, float8 = _simulated(model)
            level = "basic" if float8 else level  # "extended" takes zero points of FP8 for uint8: drops ReLUs
        return Backend(_sdk()).session(source, threads, level, exact, **more)
    except Exception as error:  # its exception classes share no base but Exception
        raise TargetError(
            f"ONNX Runtime cannot load {model}: {str(error).strip().splitlines()[0]}",
            hint="check that the file exists and is complete; `edgeship inspect graph FILE`",
        ) from error


@cache
def _rounds_half() -> bool:
    """Return True if QuantizeLinear rounds FP16 values to the nearest integer."""
    import numpy as np
    import onnx.parser

    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["": 19]>
        g (float16[n, 4] x, float16 scale, int8 zero) => (int8[n, 4] y)
        { y = QuantizeLinear(x, scale, zero) }"""
    )
    session = Backend(_sdk()).session(model.SerializeToString(), 1)
    values = np.array([[0.75, 1.75, -0.75, -1.75]], np.float16)
    return bool(
        (
            session.run(None, {"x": values, "scale": np.array(1, np.float16), "zero": np.array(0, np.int8)})[
                0
            ]
            == np.round(values)
        ).all()
    )


def _simulated(model: Path) -> tuple[bytes, bool]:
    """Return the graph with roundings for FP16 types, and True if it has FP8 types.

    Its batch is dynamic, unless a constant shape has the batch.
    """
    import onnx

    from edgeship.targets._half_types import as_rounding

    loaded = as_rounding(onnx.load(str(model)))
    if not any(node.op_type in SHAPED for node in loaded.graph.node):
        for value in (*loaded.graph.input, *loaded.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del loaded.graph.value_info[:]  # shapes of one batch
    float8 = any(item.data_type == onnx.TensorProto.FLOAT8E4M3FN for item in loaded.graph.initializer)
    return loaded.SerializeToString(), float8


def _audit(model: Path, optimized: Path, precision: Precision) -> tuple[LayerAudit, ...]:
    """Return the layers of the optimized graph with their times; integer kernels have their own operators."""
    import onnx

    try:
        # without the last level, which renames each node for its memory layout
        _session(model, 1, "extended", optimized_model_filepath=str(optimized))
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
    profiled = OnnxRuntimeSession(_session(model, 1, profile=True), 1)
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
