"""TensorRT on Jetson GPUs: graphs checked by NVIDIA's parser and builder, engines run on a local GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from edgeship.targets import Compiled, Session, Target
from edgeship.targets._messages import summed_up
from edgeship.targets._timing import loop_ips
from edgeship.targets.tensorrt import fp16_graph, jetson, local_gpu, repair, rtx_check
from edgeship.toolkit.core.artifact import write_bytes
from edgeship.toolkit.core.errors import ModelError, TargetError
from edgeship.toolkit.core.quant import Cpu, FloatArray, PixelArray, QuantScheme, QuantSpec
from edgeship.toolkit.core.results import LayerAudit, Precision
from edgeship.toolkit.graph import shift

GRAPH = "model.onnx"
ENGINE = "model.plan"
TYPED = "typed.onnx"  # the same with FP16 types, for a TensorRT that goes by the types of the graph alone


class TensorRT:
    """Target with symmetric int8, and only the shortcut of an Add quantized, as its kernels fuse."""

    title = "TensorRT"
    opens_graphs, checks_rules, on_cpu = False, True, False

    def scheme(self, cpu: Cpu | None = None) -> QuantScheme:
        """Return the quantization scheme."""
        del cpu  # no part of the computation
        return QuantScheme(
            name="tensorrt",
            weight=QuantSpec("int8", symmetric=True, axis=0),
            activation=QuantSpec("int8", symmetric=True),
            unsigned_activation=None,
            shifted_activation=QuantSpec("uint8", symmetric=True, offset=shift.ZERO_POINT),
            add_inputs="skip",
            max_pool="output",  # the builder moves the Q through the pool and fuses both with the convolution
            store_integers=False,
        )

    def precisions(self) -> tuple[Precision, ...]:
        """Return FP32, FP16, FP8 and INT8."""
        return "fp32", "fp16", "fp8", "int8"

    def versions(self) -> Mapping[str, str]:
        """Return the versions of TensorRT, if a GPU is there, and of TensorRT-RTX."""
        found = {"tensorrt": local_gpu.version()} if local_gpu.available() else {}
        try:
            return {**found, "tensorrt-rtx": str(rtx_check.sdk().__version__)}
        except TargetError:
            if found:
                return found
            raise

    def compile(
        self, model: Path, out: Path, precision: Precision, *, version: str | None = None
    ) -> Compiled:
        """Lint and build a graph: for this GPU if there is one, else ahead of time as a check.

        Args:
            model: An ONNX file; an opset too new for `version` is lowered.
            out: Folder of the engine, or of the graph to build on the device.
            precision: "int8" where the graph has Q/DQ; "fp16" for a float graph, whose FP16-typed form is
                checked and simulated; "fp8" for a graph with FP8 Q/DQ, of which the form with FP16 types is
                the only one.
            version: TensorRT version on the device; None: as `repair.fit`.

        Raises:
            DeviceError: The TensorRT version has no FP8.
            ModelError: The opset cannot be lowered, or a value does not fit into FP16.
            TargetError: The linter, the parser or the builder refuses the graph.
        """
        with tempfile.TemporaryDirectory() as scratch:
            graph = Path(scratch) / GRAPH
            if precision == "fp8":
                jetson.require_fp8(None, version)
            fitted = repair.fit(model, version or (jetson.FP8_FROM if precision == "fp8" else None), graph)
            warnings = ((fitted.note,) if fitted.note else ()) + summed_up(
                (found.rule, found.node, found.message) for found in fitted.findings
            )
            instead, no_typed = _typed(graph, out, precision)
            if precision == "fp8":
                (out / TYPED).replace(graph)
                instead = ()
            if local_gpu.available():
                engine, build_warnings = local_gpu.build(graph, precision)
                write_bytes(out / ENGINE, engine)
                with local_gpu.opened(out / ENGINE) as session:
                    audit = session.audit(graph)
                file, note = ENGINE, f"built for this GPU by TensorRT {local_gpu.version()}"
            else:
                checked = out / TYPED if precision == "fp16" else graph
                note, audit, build_warnings = _checked(checked, model, precision)
                write_bytes(out / GRAPH, graph.read_bytes())
                file = GRAPH
        return Compiled(
            file,
            runs_here=file == ENGINE,
            note=note,
            audit=audit,
            warnings=(*warnings, *build_warnings, *no_typed),
            instead=instead,
            simulated={"fp16": TYPED, "fp8": GRAPH}.get(precision),
        )

    @contextmanager
    def open(self, engine: Path, *, threads: int | None = None) -> Iterator[Session]:
        """Load an engine on this machine's GPU.

        Raises:
            TargetError: The machine has no GPU with TensorRT.
        """
        del threads  # of a CPU; a GPU has none
        with local_gpu.opened(engine) as session:
            yield session

    def throughput_ips(
        self,
        engine: Path,
        images: FloatArray | PixelArray,
        *,
        threads: int | None = None,
        duration_s: float,
    ) -> float:
        """Return images per second, one batch after the other: a batch of 8 or more fills the GPU."""
        with self.open(engine, threads=threads) as session:
            return loop_ips(session, images, duration_s)


def _typed(model: Path, out: Path, precision: Precision) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the FP16-typed form, for TensorRT 11 and for the FP16 variant; return its name, or a warning."""
    if precision == "fp32":
        return (), ()
    try:
        fp16_graph.to_half(model, out / TYPED)
    except ModelError as error:
        if precision != "int8":
            raise
        return (), (f"no FP16-typed form for TensorRT 11: {error}",)
    return (TYPED,), ()


def _checked(
    graph: Path, model: Path, precision: Precision
) -> tuple[str, tuple[LayerAudit, ...], tuple[str, ...]]:
    """Return note, layers and warnings of a graph that is checked here and built on a device."""
    try:
        verdict = rtx_check.check(
            graph, rtx_check.WITH_FP8 if precision == "fp8" else rtx_check.NEAREST_TO_ORIN
        )
    except TargetError as absent:
        note = "passed the linter only, not read by NVIDIA's parser, not built for a Jetson"
        return note, (), (f"{absent}: {absent.hint}",)
    if not verdict.accepted:
        message = f"TensorRT's parser and builder refuse {model}: {verdict.errors[0]}"
        raise TargetError(message, hint=f"`edgeship audit {model}` names node, rule and fix")
    note = f"accepted by TensorRT-RTX {verdict.version} parser and builder, not built for a Jetson"
    doubts = summed_up(
        (layer.warning, layer.name, layer.warning) for layer in verdict.layers if layer.warning
    )
    return note, verdict.layers, (*verdict.warnings, *doubts)


TARGET: Target = TensorRT()  # annotated, so mypy checks it against the protocol
