"""Sensitivity analysis: quantize each layer or quantizer alone, and leave each alone in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization.fake_quant import fake_quantize
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.quantized_model import Quantized
from edgeship.quantization.statistics import Statistics
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.parallel import ONE, Workers, ordered
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import kl_divergence, sqnr_db
from edgeship.toolkit.graph.edit import constant

BATCH_PIXELS = 2**14  # every tensor is stored three times: 4 images at 64 px, 1 at 224 px
EXACT_DB = 200.0  # no noise; JSON has no infinity
KINDS = {"Conv": "Convolution", "Gemm": "FullyConnected", "MatMul": "FullyConnected"}


@dataclass(frozen=True, slots=True)
class Row:
    """Error of the logits by one layer or quantizer.

    A layer comprises its weights, bias correction and input quantization. In float its input is unquantized
    only if no other layer requires the Q/DQ pair (see `placement`). An activation is quantized for all its
    consumers.

    Attributes:
        name: Node of a layer, tensor of an activation, initializer of weights.
        kind: "Convolution", "FullyConnected", "activation" or "weight".
        alone_sqnr_db: SQNR of the logits with only this row quantized, in dB.
        alone_kl: KL divergence of the softmax with only this row quantized, in nats per image.
        float_sqnr_db: SQNR of the logits with only this row in float.
        float_kl: KL divergence with only this row in float.
        drop_db: Loss of SQNR by this row: float_sqnr_db minus SQNR of the quantized network.
        sqnr_db: SQNR of a layer's output in the quantized network; None for a quantizer.
    """

    name: str
    kind: str
    alone_sqnr_db: float
    alone_kl: float
    float_sqnr_db: float
    float_kl: float
    drop_db: float
    sqnr_db: float | None


def analyse(
    prepared: Quantized,
    exact: ir.Model,
    probe: FloatArray,
    *,
    quantizers: bool = True,
    workers: Workers = ONE,
) -> list[Row]:
    """Measure the sensitivity of every layer and quantizer.

    The float and the quantized network run once and all tensors are stored; each row recomputes only the
    tensors downstream of its change.

    Args:
        prepared: A quantized graph.
        exact: The float graph with the same channel scales (equalized).
        probe: Images (N, C, H, W).
        quantizers: Add rows for activations and weights.
        workers: Workers of the measurement.

    Returns:
        Layers in the order of the graph, then activations, then weights.
    """
    subjects = tuple(_subjects(prepared, quantizers=quantizers))
    parts = _measured(_Measure(prepared, exact, subjects, alone=True), probe, workers)
    float_logits, int8_logits = _joined(part.exact for part in parts), _joined(part.int8 for part in parts)
    return [
        _row(
            subject,
            float_logits,
            int8_logits,
            _joined(part.alone[index] for part in parts),
            _joined(part.without[index] for part in parts),
            _layer_sqnr_db(parts, index),
        )
        for index, subject in enumerate(subjects)
    ]


def divergences(
    prepared: Quantized, layers: Iterable[str], probe: FloatArray, workers: Workers = ONE
) -> tuple[float, dict[str, float]]:
    """Measure the KL divergence with each layer alone left in float.

    Args:
        prepared: A quantized graph.
        layers: Weighted layers that are quantized.
        probe: Images (N, C, H, W).
        workers: Workers of the measurement.

    Returns:
        KL divergence of the softmax from the float network's, in nats per image: of the quantized network,
        and by layer in float.
    """
    requested = set(layers)
    subjects = tuple(s for s in _subjects(prepared, quantizers=False) if s.name in requested)
    parts = _measured(_Measure(prepared, prepared.exact, subjects, alone=False), probe, workers)
    float_logits = _joined(part.exact for part in parts)
    by_layer = {
        subject.name: kl_divergence(float_logits, _joined(part.without[index] for part in parts))
        for index, subject in enumerate(subjects)
    }
    return kl_divergence(float_logits, _joined(part.int8 for part in parts)), by_layer


def to_json(rows: Iterable[Row]) -> dict[str, list[dict[str, Any]]]:
    """Convert rows to the JSON form of a target: {"layers": [...], "quantizers": [...]}."""
    described = [asdict(row) for row in rows]
    return {
        "layers": [row for row in described if row["kind"] in KINDS.values()],
        "quantizers": [row for row in described if row["kind"] not in KINDS.values()],
    }


@dataclass(frozen=True, slots=True)
class _Subject:
    """A layer, or the quantizer of a tensor.

    Attributes:
        name: Name of the node, the tensor or the initializer.
        kind: See `Row`.
        freed: Tensors without a Q/DQ pair if the subject is in float.
    """

    name: str
    kind: str
    freed: frozenset[str] = frozenset()

    @property
    def is_layer(self) -> bool:
        """True for a layer, False for a quantizer."""
        return self.kind in KINDS.values()

    def is_layer_of(self, node: ir.Node) -> bool:
        """Return True if the subject is the layer of a node."""
        return self.is_layer and node.name == self.name


def _subjects(prepared: Quantized, *, quantizers: bool) -> Iterator[_Subject]:
    for node in prepared.exact.graph:
        if is_weighted(node):
            name = str(node.name)
            rest = prepared.place_with_float_layers({name})
            freed = frozenset(prepared.activations).difference(rest.activations)
            yield _Subject(name, KINDS[node.op_type], freed)
    if quantizers:
        yield from (_Subject(name, "activation", frozenset({name})) for name in prepared.activations)
        yield from (_Subject(name, "weight") for name in prepared.weights)


@dataclass(frozen=True, slots=True)
class _PartLogits:
    """Logits of some images, (N, classes), and signal and noise of layer outputs.

    Attributes:
        exact: Logits of the float network.
        int8: Logits of the quantized network.
        alone: Logits with one subject alone quantized.
        without: Logits with one subject alone in float.
        powers: Signal and noise power of each layer's output.
    """

    exact: FloatArray
    int8: FloatArray
    alone: tuple[FloatArray, ...]
    without: tuple[FloatArray, ...]
    powers: tuple[tuple[float, float], ...]


class _Measure:
    """Measurement of subjects on images; pickled without networks, which each process builds.

    Args:
        prepared: A quantized graph.
        exact: Its float graph.
        subjects: Layers and quantizers to measure.
        alone: Also quantize each alone, and measure the error power of layer outputs.
    """

    def __init__(
        self, prepared: Quantized, exact: ir.Model, subjects: tuple[_Subject, ...], *, alone: bool
    ) -> None:
        empty = Statistics(0, {}, np.zeros((0, 1, 1, 1), np.float32))
        self._state = replace(prepared, statistics=empty), exact, subjects, alone
        self._load()

    def _load(self) -> None:
        prepared, exact, _, _ = self._state
        self._reference, self._int8 = (
            TorchExecutor(model, execution=prepared.execution) for model in (exact, prepared.model)
        )
        for name, qparams in prepared.weights.items():  # `_Runs` adds bias corrections
            self._int8.constants[name] = fake_quantize(self._int8.constants[name], qparams)

    def __getstate__(self) -> Any:
        return self._state

    def __setstate__(self, state: Any) -> None:
        self._state = state
        self._load()

    def __call__(self, batches: list[FloatArray]) -> list[_PartLogits]:
        return [self._run(images) for images in batches]

    @torch.inference_mode()
    def _run(self, images: FloatArray) -> _PartLogits:
        prepared, _, subjects, alone = self._state
        runs = _Runs(prepared, self._reference, self._int8, torch.tensor(images))
        layers = {str(node.name): str(node.outputs[0].name) for node in self._reference.nodes}
        powers = []
        for subject in subjects if alone else ():
            result = layers.get(subject.name, "") if subject.is_layer else ""
            powers.append(_signal_and_noise(runs.exact[result], runs.raw[result]) if result else (0.0, 0.0))
        return _PartLogits(
            runs.logits(runs.exact).numpy(),
            runs.logits(runs.raw).numpy(),
            tuple(runs.alone(subject).numpy() for subject in subjects) if alone else (),
            tuple(runs.without(subject).numpy() for subject in subjects),
            tuple(powers),
        )


def _measured(measure: _Measure, probe: FloatArray, workers: Workers) -> list[_PartLogits]:
    """Run a measurement on the probe by workers; return the parts in image order."""
    size = max(BATCH_PIXELS // int(np.prod(probe.shape[2:])), 1)
    batches = [np.ascontiguousarray(probe[start : start + size]) for start in range(0, len(probe), size)]
    # a process has to load the networks, so it runs several batches; a thread runs one at a time
    each = 1 if workers.backend == "threading" else -(-len(batches) // workers.count)
    parts = [batches[start : start + each] for start in range(0, len(batches), each)]
    results = ordered(
        measure, parts, workers=workers.count, backend=workers.backend, label="measuring sensitivity"
    )
    return [part for result in results for part in result]


class _Runs:
    """All tensors of the float and the quantized network on some images.

    Attributes:
        images: (N, C, H, W).
        exact: Tensor name -> value in the float network.
        raw: Tensor name -> value in the quantized network, before its Q.
        read: Tensor name -> value in the quantized network, after its DQ.
    """

    def __init__(
        self, prepared: Quantized, reference: TorchExecutor, int8: TorchExecutor, images: Tensor
    ) -> None:
        self._prepared, self._reference, self._int8 = prepared, reference, int8
        self.images = images
        self.exact: dict[str, Tensor] = {reference.input: images}
        self.raw: dict[str, Tensor] = {reference.input: images}
        self.read = {reference.input: self._round(reference.input, images)}
        for node in reference.nodes:
            self.exact |= reference.apply(node, self.exact)
            results = self._apply(node, self.read)
            self.raw |= results
            self.read |= {name: self._round(name, value) for name, value in results.items()}

    def logits(self, values: dict[str, Tensor]) -> Tensor:
        """Return the logits among the tensors of a network."""
        return values[self._reference.output]

    def alone(self, subject: _Subject) -> Tensor:
        """Return the logits of the float network with the subject quantized."""
        changed: dict[str, Tensor] = {}
        special: dict[int, dict[str, Tensor]] = {}
        if subject.kind == "activation":
            changed[subject.name] = self._round(subject.name, self.exact[subject.name])
        for index, node in enumerate(self._reference.nodes):
            if subject.is_layer_of(node):
                source = str(node.inputs[0].name)  # type: ignore[union-attr]
                special[index] = self._apply(
                    node, {**self.exact, source: self._round(source, self.exact[source])}
                )
            elif subject.kind == "weight" and _reads(node, subject.name):
                special[index] = self._int8.apply(node, self.exact)
        return self._rerun(changed, special)

    def without(self, subject: _Subject) -> Tensor:
        """Return the logits of the quantized network with the subject in float."""
        changed = {name: self.raw[name] for name in subject.freed}
        for node in self._reference.nodes:
            values = {**self.read, **changed}
            if subject.is_layer_of(node):
                results = self._reference.apply(node, values)
            elif subject.kind == "weight" and _reads(node, subject.name):
                results = self._corrected(node, self._reference.apply(node, values))
            elif self._is_changed(node, changed):
                results = self._apply(node, values)
            else:
                continue
            for name, result in results.items():
                changed[name] = result if name in subject.freed else self._round(name, result)
        return changed.get(self._reference.output, self.read[self._reference.output])

    def _is_changed(self, node: ir.Node, changed: dict[str, Tensor]) -> bool:
        """Return True if a node reads a changed tensor."""
        return any(name in changed for name in self._reference.inputs[str(node.name)])

    def _rerun(self, changed: dict[str, Tensor], special: dict[int, dict[str, Tensor]]) -> Tensor:
        """Recompute in float the tensors downstream of changed tensors and of replaced node results."""
        for index, node in enumerate(self._reference.nodes):
            is_changed = self._is_changed(node, changed)
            if index in special and not is_changed:
                changed |= special[index]
            elif is_changed:
                changed |= self._reference.apply(node, {**self.exact, **changed})
        return changed.get(self._reference.output, self.exact[self._reference.output])

    def _apply(self, node: ir.Node, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._corrected(node, self._int8.apply(node, values))

    def _corrected(self, node: ir.Node, results: dict[str, Tensor]) -> dict[str, Tensor]:
        if str(node.name) not in self._prepared.biases:
            return results
        return {name: value + self._correction(node) for name, value in results.items()}

    def _correction(self, node: ir.Node) -> Tensor:
        shift = self._prepared.biases.get(str(node.name))
        if shift is None or node.op_type == "MatMul":  # no bias input
            return torch.zeros(())
        values = torch.tensor(shift)  # a copy: arrays in other processes may be read-only
        weight = node.inputs[1]
        assert weight is not None, "a weighted layer"
        return values.reshape(-1, *[1] * (constant(weight).ndim - 2))

    def _round(self, name: str, value: Tensor) -> Tensor:
        qparams = self._prepared.activations.get(name)
        return value if qparams is None else fake_quantize(value, qparams)


def _reads(node: ir.Node, initializer: str) -> bool:
    return any(value is not None and value.name == initializer for value in node.inputs)


def _signal_and_noise(exact: Tensor, actual: Tensor) -> tuple[float, float]:
    return float(exact.double().square().sum()), float((exact - actual).double().square().sum())


def _layer_sqnr_db(parts: list[_PartLogits], index: int) -> float:
    """Return the SQNR of a layer's output over all images, in dB."""
    signal, noise = (sum(part.powers[index][side] for part in parts) for side in (0, 1))
    return 10 * math.log10(max(signal, 1e-300) / max(noise, 1e-300))


def _joined(logits: Iterable[FloatArray]) -> FloatArray:
    joined: FloatArray = np.concatenate(list(logits))
    return joined


def _row(
    subject: _Subject,
    exact: FloatArray,
    int8: FloatArray,
    alone: FloatArray,
    without: FloatArray,
    output_db: float,
) -> Row:
    return Row(
        subject.name,
        subject.kind,
        alone_sqnr_db=_sqnr_db(exact, alone),
        alone_kl=kl_divergence(exact, alone),
        float_sqnr_db=_sqnr_db(exact, without),
        float_kl=kl_divergence(exact, without),
        drop_db=_sqnr_db(exact, without) - _sqnr_db(exact, int8),
        sqnr_db=min(output_db, EXACT_DB) if subject.is_layer else None,
    )


def _sqnr_db(exact: FloatArray, actual: FloatArray) -> float:
    return min(sqnr_db(exact, actual), EXACT_DB)
