"""TensorRT on Jetson GPUs: checked here by NVIDIA's own parser and builder, built on the device."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from targets import Compiled, Session, Target
from targets.tensorrt import gate
from toolkit.core.errors import TargetError
from toolkit.core.quant import FloatArray, QuantScheme, QuantSpec
from toolkit.core.results import Precision

GRAPH = "model.onnx"


class TensorRT:
    """Symmetric int8 everywhere and only the shortcut of an Add quantized: what its kernels fuse."""

    scheme = QuantScheme(
        name="tensorrt",
        weight=QuantSpec("int8", symmetric=True, axis=0),
        activation=QuantSpec("int8", symmetric=True),
        unsigned_activation=None,
        add_inputs="skip",
        quantize_pool_output=False,  # a quantized fully connected layer quantizes it as its own input
    )

    def versions(self) -> Mapping[str, str]:
        """The installed TensorRT-RTX."""
        return {"tensorrt-rtx": str(gate.sdk().__version__)}

    def compile(self, model: Path, out: Path, precision: Precision) -> Compiled:
        """Check the graph, and keep it: a TensorRT engine runs only on the kind of device it was built on."""
        del precision  # of the build on the device; the graph is checked as it is
        verdict = gate.check(model)
        if not verdict.accepted:
            raise TargetError(
                f"TensorRT's parser and builder refuse {model}: {verdict.errors[0]}",
                hint=f"`edgeship audit {model} --target tensorrt` names the node, the rule and the fix",
            )
        out.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, out / GRAPH)
        return Compiled(
            file=GRAPH,
            runs_here=False,
            note=f"accepted by TensorRT-RTX {verdict.version} parser and builder, not built for a Jetson",
            audit=verdict.layers,
            warnings=verdict.warnings,
        )

    def open(self, engine: Path, *, threads: int | None = None) -> AbstractContextManager[Session]:
        """Refuse: an engine runs on its device, and there is no GPU here."""
        del threads  # of a CPU; a GPU has none
        raise _no_gpu(engine)

    def throughput_ips(
        self, engine: Path, images: FloatArray, *, threads: int | None = None, duration_s: float
    ) -> float:
        """Refuse, like `open`."""
        del images, threads, duration_s
        raise _no_gpu(engine)


def _no_gpu(engine: Path) -> TargetError:
    return TargetError(
        f"{engine} cannot run on this machine: no NVIDIA GPU with TensorRT",
        hint="build and run it on the device: `edgeship deploy --help`",
    )


TARGET: Target = TensorRT()  # annotated, so mypy checks it against the protocol
