"""Comparison of a runtime with its Q/DQ graph in float arithmetic, and repair of differences.

Float arithmetic executes a Q/DQ graph exactly; a runtime fuses it into integer kernels, which may round a
result once more than the graph (averages in OpenVINO) or once less (an Add fused with a convolution). Such an
error equals one quantization error, so the noise of the logits doubles at most: 3 dB. A larger difference is
a fault of the runtime.

Bisection finds the first tensor at fault: of the quantized tensors in graph order, only the first k have Q/DQ
pairs. The k-th tensor becomes float, and the whole graph is compared again.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgeship.quantization.quantized_model import Quantized
from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.core.progress import report_progress
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import sqnr_db
from edgeship.toolkit.graph import io

TOLERANCE_DB = 3.0  # every value rounded twice: twice the noise
CLOSE_DB = 50.0  # runtime against exact: SQNR of one 8-bit rounding, 6.02 x 8 + 1.76 dB
MAX_REPAIRS = 8  # tensors

Run = Callable[[Path, FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Runtime:
    """Inference functions of a target: its runtime and exact arithmetic.

    Attributes:
        name: Name of the target, for messages.
        real: Compute logits (N, classes) of a Q/DQ graph and N images by the target's runtime.
        exact: Compute logits of a Q/DQ or float graph in float arithmetic.
    """

    name: str
    real: Run
    exact: Run


@dataclass(frozen=True, slots=True)
class Comparison:
    """SQNR of the logits of one graph, in dB.

    Attributes:
        exact_db: Exact arithmetic against the float network.
        real_db: Runtime against the float network.
        apart_db: Runtime against exact arithmetic.
    """

    exact_db: float
    real_db: float
    apart_db: float

    @property
    def equal(self) -> bool:
        """True if rounding explains the difference; False for NaN."""
        return self.apart_db >= CLOSE_DB or self.exact_db - self.real_db <= TOLERANCE_DB


def check(
    quantized: Quantized, float_model: ir.Model, runtime: Runtime, images: FloatArray
) -> tuple[Quantized, dict[str, Any]]:
    """Compare a quantized graph in exact arithmetic with its runtime; leave differing tensors in float.

    Args:
        quantized: The quantized graph.
        float_model: The float network.
        runtime: Inference functions of the target.
        images: Some calibration images (N, C, H, W).

    Returns:
        The graph, with repairs if necessary, and a summary: {status: "equal", "repaired", "differs" or
        "refused", images, exact_db, real_db, apart_db, before_db, repaired: [{tensor, layer}], begins_at,
        reason}; `before_db` is `real_db` before repairs, `begins_at` the first layer that still differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(runtime, float_model, images, Path(folder) / "graph.onnx")
        try:
            return _repaired(quantized, trial)
        except ToolkitError as error:
            quantized.warnings.append(f"{runtime.name} does not run the graph: {error}")
            return quantized, _summary("refused", trial, None, reason=str(error))


@dataclass(slots=True)
class _Trial:
    runtime: Runtime
    float_model: ir.Model
    images: FloatArray
    file: Path
    _float: FloatArray | None = field(default=None, init=False)

    def compare(self, quantized: Quantized) -> Comparison:
        """Run a graph by the runtime and in exact arithmetic."""
        if self._float is None:
            io.save(self.float_model, self.file)
            self._float = self.runtime.exact(self.file, self.images)
        io.save(quantized.graph(), self.file)
        exact, real = (run(self.file, self.images) for run in (self.runtime.exact, self.runtime.real))
        return Comparison(sqnr_db(self._float, exact), sqnr_db(self._float, real), sqnr_db(exact, real))


def _repaired(quantized: Quantized, trial: _Trial) -> tuple[Quantized, dict[str, Any]]:
    before = now = trial.compare(quantized)
    repairs: list[dict[str, Any]] = []
    while not now.equal:
        report_progress(f"finding the tensor where {trial.runtime.name} differs", len(repairs), None)
        start = _first_differing_tensor(quantized, trial)
        layer = None if start is None else _layer(quantized, start)
        if start is None or len(repairs) == MAX_REPAIRS:
            quantized.warnings.append(_difference_warning(trial.runtime, now, layer))
            return quantized, _summary("differs", trial, now, before, repairs, layer)
        quantized = quantized.with_float_tensors([start])
        repairs.append({"tensor": start, "layer": layer})
        now = trial.compare(quantized)
    if repairs:
        layers = ", ".join(f"'{each['layer']}'" for each in repairs)
        quantized.warnings.append(
            f"{trial.runtime.name} computed other logits than the graph: SQNR {before.real_db:.1f} dB, exact "
            f"{before.exact_db:.1f} dB; the result of {layers} is left in float, now {now.real_db:.1f} dB"
        )
    return quantized, _summary("repaired" if repairs else "equal", trial, now, before, repairs)


def _first_differing_tensor(quantized: Quantized, trial: _Trial) -> str | None:
    """Return the first tensor whose Q/DQ pair causes a difference; None if there is one without pairs."""
    names = list(quantized.activations)
    equal, differs = 0, len(names)
    if not names or not trial.compare(quantized.with_float_tensors(names)).equal:
        return None
    while differs - equal > 1:
        middle = (equal + differs) // 2
        if trial.compare(quantized.with_float_tensors(names[middle:])).equal:
            equal = middle
        else:
            differs = middle
    return names[differs - 1]


def _layer(quantized: Quantized, tensor: str) -> str:
    """Return the name of a tensor's producer; for a graph input, the name of the tensor."""
    producer = quantized.value(tensor).producer()
    return tensor if producer is None else str(producer.name)


def _difference_warning(runtime: Runtime, now: Comparison, layer: str | None) -> str:
    where = f" from '{layer}' on" if layer else ""
    return (
        f"{runtime.name} computes other logits than the graph{where}: SQNR {now.real_db:.1f} dB, exact "
        f"{now.exact_db:.1f} dB; leaving tensors in float does not help"
    )


def _summary(
    status: str,
    trial: _Trial,
    now: Comparison | None,
    before: Comparison | None = None,
    repairs: list[dict[str, Any]] | None = None,
    begins_at: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    return {
        "status": status,
        "images": len(trial.images),
        **{name: _finite(getattr(now, name, None)) for name in Comparison.__slots__},
        "before_db": _finite(before.real_db if before else None),
        "repaired": repairs or [],
        "begins_at": begins_at,
        "reason": reason,
    }


def _finite(value: float | None) -> float | None:
    """Return a finite value, else None: JSON has no NaN or infinity."""
    return value if value is not None and math.isfinite(value) else None
