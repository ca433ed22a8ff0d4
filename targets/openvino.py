"""OpenVINO on Intel and AMD CPUs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from edgeship.targets import Compiled, Session, Target
from edgeship.targets._device import this_cpu
from edgeship.targets._host import HostSession
from edgeship.targets._messages import summed_up
from edgeship.targets._openvino_audit import audit
from edgeship.targets._timing import count_until
from edgeship.targets.runner.backends.openvino import PRECISION_INFO, OpenVINOSession
from edgeship.targets.runner.backends.openvino import OpenVINO as Backend
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.openvino import core, reason, sdk
from edgeship.toolkit.core.quant import Cpu, FloatArray, PixelArray, QuantScheme, QuantSpec
from edgeship.toolkit.core.results import HALVES, Precision
from edgeship.toolkit.core.threads import granted_cores

ENGINE = "model.xml"


class OpenVINO:
    """OpenVINO: its kernels fuse unsigned activations after a ReLU, and Adds with two quantized inputs."""

    title = "OpenVINO"
    opens_graphs, checks_rules, on_cpu = True, False, True

    def scheme(self, cpu: Cpu | None = None) -> QuantScheme:
        """Return the quantization scheme."""
        return QuantScheme(
            name="openvino",
            weight=QuantSpec("int8", symmetric=True, axis=0),
            activation=QuantSpec("int8", symmetric=True),
            unsigned_activation=QuantSpec("uint8", symmetric=True),
            add_inputs="both",
            batch_norm=True,
            max_pool="input",
            store_integers=True,
            reduced_max="input",  # 2026.4 rounds inside the reduction of floats, and loses most of it
            padded_average=False,  # 2026.4 pads with the integer 0, which is not the number 0 there
            concat_offset=128,  # 2026.4 takes signed integers for unsigned there: wrong results
            pairs="channels",
            pair_sums=(cpu or this_cpu()).int8_sums == "pairs",
        )

    def precisions(self) -> tuple[Precision, ...]:
        """Return FP32 and INT8, and the 16-bit floats that this CPU computes in."""
        try:
            halves = Backend(sdk(), core()).halves()
        except TargetError:  # `compile` reports it
            halves = []
        return "fp32", *(each for each in HALVES if each in halves), "int8"

    def versions(self) -> Mapping[str, str]:
        """Return the version of the installed OpenVINO."""
        return {"openvino": str(sdk().__version__).split("-", maxsplit=1)[0]}

    def compile(
        self, model: Path, out: Path, precision: Precision, *, version: str | None = None
    ) -> Compiled:
        """Convert to OpenVINO's format (`model.xml`, `model.bin`) and audit the compiled layers.

        The CPU computes float layers in FP32 unless `precision` is a 16-bit float, which the file states.
        """
        del version  # it runs here
        ov = sdk()
        out.mkdir(parents=True, exist_ok=True)
        try:
            network = core().read_model(str(model))
            _number_unnamed_nodes(network, model)
            if precision in HALVES:
                network.set_rt_info(precision, list(PRECISION_INFO))
            ov.save_model(network, str(out / ENGINE), compress_to_fp16=precision == "fp16")
            layers = audit(_compiled(out / ENGINE, 1, PERF_COUNT="YES"), model, precision)
        except RuntimeError as error:
            raise _refused(model, error) from error
        return Compiled(
            file=ENGINE,
            runs_here=True,
            note=f"built for this CPU by OpenVINO {self.versions()['openvino']}",
            audit=layers,
            warnings=summed_up((each.warning, each.name, each.warning) for each in layers if each.warning),
        )

    @contextmanager
    def open(self, engine: Path, *, threads: int | None = None) -> Iterator[Session]:
        """Load an engine for lowest latency: one stream, `threads` threads."""
        yield HostSession(_compiled(engine, threads), self.title, reason)

    def throughput_ips(
        self,
        engine: Path,
        images: FloatArray | PixelArray,
        *,
        threads: int | None = None,
        duration_s: float,
    ) -> float:
        """Return images per second of parallel requests (OpenVINO's THROUGHPUT hint)."""
        compiled = _compiled(engine, threads, PERFORMANCE_HINT="THROUGHPUT").compiled
        queue = sdk().AsyncInferQueue(compiled)  # the plug-in chooses the number of requests
        for _ in range(len(queue)):
            queue.start_async([images], share_inputs=True)
        queue.wait_all()

        count, seconds = count_until(
            lambda: queue.start_async([images], share_inputs=True), duration_s, finish=queue.wait_all
        )
        return count * len(images) / seconds


def _compiled(engine: Path, threads: int | None, **config: str) -> OpenVINOSession:
    """Return a session of a file.

    Raises:
        TargetError: OpenVINO cannot read or compile it.
    """
    backend = Backend(sdk(), core())
    try:
        compiled = backend.compile(str(engine), threads or granted_cores(), **config)
    except RuntimeError as error:
        raise _refused(engine, error) from error
    return OpenVINOSession(sdk(), compiled)


def _number_unnamed_nodes(network: Any, model: Path) -> None:
    """Number the nodes that OpenVINO added by their order, so that the same graph gives the same file.

    Their automatic names count the nodes that this process has made so far.
    """
    own = {node.name for node in onnx.load(model, load_external_data=False).graph.node}
    for number, node in enumerate(network.get_ordered_ops()):
        name, kind = node.get_friendly_name(), node.get_type_name()
        if name not in own and re.fullmatch(rf"{re.escape(kind)}_\d+", name):
            node.set_friendly_name(f"{kind}_auto{number}")


def _refused(file: Path, error: Exception) -> TargetError:
    return TargetError(
        f"OpenVINO cannot use {file}: {reason(error)}",
        hint="check that the file exists and is complete; `edgeship inspect graph FILE`",
    )


TARGET: Target = OpenVINO()  # annotated, so mypy checks it against the protocol
