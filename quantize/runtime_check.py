"""Comparison of a runtime with the graph it runs, and repair of what differs.

A Q/DQ graph in float arithmetic is exact; a runtime fuses it into integer kernels. These may round a result
once more than the graph does (OpenVINO's averages) or once less (a sum that takes in a convolution). Such an
error is as large as what quantization itself rounds there, so the noise of the logits doubles at most: 3 dB.
Where it grows by more, the runtime computes something else.

The tensor where that begins is found by bisection: of the quantized tensors, in the order of the graph, only
the first k keep their pair. The k-th is left in float, and the whole graph is compared again.
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

TOLERANCE_DB = 3.0  # every rounding twice: twice the noise
CLOSE_DB = 50.0  # real against exact: what one 8-bit rounding of a whole range leaves, 6.02 x 8 + 1.76 dB
MOST_REPAIRS = 8  # tensors that are mended before the check gives up

Run = Callable[[Path, FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Runtime:
    """What runs graphs.

    Attributes:
        name: Of the target, for messages.
        real: Logits (N, classes) of a Q/DQ graph and N images, as the target computes them.
        exact: The same in float arithmetic, as the graph is written; of a float graph too.
    """

    name: str
    real: Run
    exact: Run


@dataclass(frozen=True, slots=True)
class Comparison:
    """Logits of one graph by a runtime and in exact arithmetic, each against the float network, in dB.

    Attributes:
        exact_db: Signal to noise of exact arithmetic.
        real_db: Signal to noise of the runtime.
        apart_db: Signal to noise of the runtime against exact arithmetic.
    """

    exact_db: float
    real_db: float
    apart_db: float

    @property
    def equal(self) -> bool:
        """True if rounding explains the difference; NaN never does."""
        return self.apart_db >= CLOSE_DB or self.exact_db - self.real_db <= TOLERANCE_DB


def check(
    found: Quantized, float_model: ir.Model, runtime: Runtime, images: FloatArray
) -> tuple[Quantized, dict[str, Any]]:
    """Compare a quantized graph with what its runtime computes; leave in float what differs.

    Args:
        found: The quantized graph.
        float_model: The float network.
        runtime: What runs it.
        images: Some calibration images (N, C, H, W).

    Returns:
        The graph, changed where that was necessary, and its summary: {status: "equal", "repaired",
        "differs" or "refused", images, exact_db, real_db, apart_db, before_db, repaired: [{tensor, layer}],
        begins_at, reason}; `before_db` is `real_db` before any repair, `begins_at` a layer that was not.
    """
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(runtime, float_model, images, Path(folder) / "graph.onnx")
        try:
            return _mended(found, trial)
        except ToolkitError as error:
            found.warnings.append(f"{runtime.name} does not run the graph: {error}")
            return found, _summary("refused", trial, None, reason=str(error))


@dataclass(slots=True)
class _Trial:
    runtime: Runtime
    float_model: ir.Model
    images: FloatArray
    file: Path
    _float: FloatArray | None = field(default=None, init=False)

    def compare(self, found: Quantized) -> Comparison:
        """Run a graph both ways."""
        if self._float is None:
            io.save(self.float_model, self.file)
            self._float = self.runtime.exact(self.file, self.images)
        io.save(found.graph(), self.file)
        exact, real = (run(self.file, self.images) for run in (self.runtime.exact, self.runtime.real))
        return Comparison(sqnr_db(self._float, exact), sqnr_db(self._float, real), sqnr_db(exact, real))


def _mended(found: Quantized, trial: _Trial) -> tuple[Quantized, dict[str, Any]]:
    before = now = trial.compare(found)
    repairs: list[dict[str, Any]] = []
    while not now.equal:
        report_progress(f"finding where {trial.runtime.name} differs", len(repairs), None)
        start = _first_that_differs(found, trial)
        layer = None if start is None else _layer(found, start)
        if start is None or len(repairs) == MOST_REPAIRS:
            found.warnings.append(_differs(trial.runtime, now, layer))
            return found, _summary("differs", trial, now, before, repairs, layer)
        found = found.without([start])
        repairs.append({"tensor": start, "layer": layer})
        now = trial.compare(found)
    if repairs:
        layers = ", ".join(f"'{each['layer']}'" for each in repairs)
        found.warnings.append(
            f"{trial.runtime.name} computed something else than the graph, {before.real_db:.1f} dB for "
            f"{before.exact_db:.1f}: the result of {layers} is left in float, for {now.real_db:.1f} dB"
        )
    return found, _summary("repaired" if repairs else "equal", trial, now, before, repairs)


def _first_that_differs(found: Quantized, trial: _Trial) -> str | None:
    """Return the first quantized tensor up to which the runtime differs; None: it differs without any."""
    names = list(found.activations)
    equal, differs = 0, len(names)
    if not names or not trial.compare(found.without(names)).equal:
        return None
    while differs - equal > 1:
        middle = (equal + differs) // 2
        if trial.compare(found.without(names[middle:])).equal:
            equal = middle
        else:
            differs = middle
    return names[differs - 1]


def _layer(found: Quantized, tensor: str) -> str:
    """Return the name of the node that makes a tensor; of an input, the tensor's."""
    producer = found.value(tensor).producer()
    return tensor if producer is None else str(producer.name)


def _differs(runtime: Runtime, now: Comparison, layer: str | None) -> str:
    where = f" from '{layer}' on" if layer else ""
    return (
        f"{runtime.name} computes something else than the graph{where}: {now.real_db:.1f} dB for "
        f"{now.exact_db:.1f} in exact arithmetic; leaving tensors in float does not help"
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
    """Return a figure that JSON can hold."""
    return value if value is not None and math.isfinite(value) else None
