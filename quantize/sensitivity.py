"""Which layer and which quantizer costs what: each quantized alone, and each alone left in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from quantize.network import Network
from quantize.placement import is_weighted, place
from quantize.quantized import Quantized
from quantize.simulate import fake_quantize
from toolkit.core.progress import tell
from toolkit.core.quant import FloatArray
from toolkit.core.statistics import kl_divergence, sqnr_db

BATCH_PIXELS = 2**14  # every tensor of so many pixels is kept three times: 4 images at 64 px, 1 at 224 px
EXACT_DB = 200.0  # stands for no noise at all: JSON has no infinity
KINDS = {"Conv": "Convolution", "Gemm": "FullyConnected", "MatMul": "FullyConnected"}


@dataclass(frozen=True, slots=True)
class Row:
    """What one layer or quantizer does to the logits.

    A layer is its weights, its bias correction, and its reading of its input. In float it reads a tensor
    as it was made only if no other layer wants that quantized (see `placement`). An activation is quantized
    for all that read it.

    Attributes:
        name: Node of a layer, tensor of an activation, initializer of weights.
        kind: "Convolution", "FullyConnected", "activation" or "weight".
        alone_sqnr_db: SQNR of the logits with only this one quantized, in dB.
        alone_kl: KL divergence of the softmax with only this one quantized, in nats an image.
        float_sqnr_db: SQNR of the logits with everything quantized but this one.
        float_kl: KL divergence with everything quantized but this one.
        drop_db: SQNR that the logits lose by this one: float_sqnr_db less that of the quantized network.
        sqnr_db: SQNR of a layer's output when everything is quantized; None for a quantizer.
    """

    name: str
    kind: str
    alone_sqnr_db: float
    alone_kl: float
    float_sqnr_db: float
    float_kl: float
    drop_db: float
    sqnr_db: float | None


def analyse(prepared: Quantized, exact: ir.Model, probe: FloatArray, *, quantizers: bool = True) -> list[Row]:
    """Find out what every layer and quantizer costs.

    The float and the quantized network run once and all their tensors are kept; for each row only what
    depends on the changed tensor is computed again.

    Args:
        prepared: A quantized graph.
        exact: The float graph with the same channel scales (equalized, its rounding not learned).
        probe: Images (N, C, H, W).
        quantizers: Whether activations and weights get rows of their own, beside layers.

    Returns:
        Layers in the order of the graph, then activations, then weights.
    """
    reference, coarse = Network(exact), _quantized(prepared)
    subjects = list(_subjects(reference, prepared, quantizers=quantizers))
    batches = _batches(probe)
    seen = _Logits([], [])
    found = {subject: (_Logits([], []), _Power()) for subject in subjects}
    with torch.inference_mode():
        for index, images in enumerate(batches):
            runs = _Runs(prepared, reference, coarse, images)
            seen.alone.append(runs.logits(runs.exact))
            seen.without.append(runs.logits(runs.raw))
            for done, (subject, (logits, power)) in enumerate(found.items()):
                tell("measuring sensitivity", index * len(found) + done, len(batches) * len(found))
                logits.alone.append(runs.alone(subject))
                logits.without.append(runs.without(subject))
                if subject.layer is not None:
                    result = str(subject.layer.outputs[0].name)
                    power.add(runs.exact[result], runs.raw[result])
    tell("measuring sensitivity", len(batches) * len(found), len(batches) * len(found))
    exactly, coarsely = _joined(seen.alone), _joined(seen.without)
    return [
        _row(subject, exactly, coarsely, _joined(logits.alone), _joined(logits.without), power)
        for subject, (logits, power) in found.items()
    ]


def divergences(
    prepared: Quantized, layers: Iterable[str], probe: FloatArray
) -> tuple[float, dict[str, float]]:
    """What it would help to leave layers in float, one at a time.

    Args:
        prepared: A quantized graph.
        layers: Weighted layers that are quantized.
        probe: Images (N, C, H, W).

    Returns:
        KL divergence of the softmax from the float network's, in nats an image: as it is, and with each layer
        in float.
    """
    reference, coarse = Network(prepared.exact), _quantized(prepared)
    asked = set(layers)
    subjects = [s for s in _subjects(reference, prepared, quantizers=False) if s.name in asked]
    exact: list[Tensor] = []
    found: dict[str, list[Tensor]] = {"": [], **{subject.name: [] for subject in subjects}}
    with torch.inference_mode():
        for images in _batches(probe):
            runs = _Runs(prepared, reference, coarse, images)
            exact.append(runs.logits(runs.exact))
            found[""].append(runs.logits(runs.raw))
            for subject in subjects:
                found[subject.name].append(runs.without(subject))
    wanted = _joined(exact)
    kl = {name: kl_divergence(wanted, _joined(logits)) for name, logits in found.items()}
    return kl.pop(""), kl


def to_json(rows: Iterable[Row]) -> dict[str, list[dict[str, Any]]]:
    """Rows as quantize/sensitivity.json holds them for a target: {"layers": [...], "quantizers": [...]}."""
    described = [asdict(row) for row in rows]
    return {
        "layers": [row for row in described if row["kind"] in KINDS.values()],
        "quantizers": [row for row in described if row["kind"] not in KINDS.values()],
    }


@dataclass(frozen=True, eq=False, slots=True)
class _Subject:
    """A layer, or the quantizer of a tensor.

    Attributes:
        name: Of the node, the tensor or the initializer.
        kind: As of `Row`.
        points: Tensors that are no longer quantized without it.
        layer: The node of a layer.
    """

    name: str
    kind: str
    points: frozenset[str] = frozenset()
    layer: ir.Node | None = None


def _subjects(network: Network, prepared: Quantized, *, quantizers: bool) -> Iterator[_Subject]:
    for node in network.nodes:
        if is_weighted(node):
            name = str(node.name)
            rest = place(prepared.source, prepared.scheme, {*prepared.placement.float_layers, name})
            points = frozenset(prepared.activations).difference(rest.activations)
            yield _Subject(name, KINDS[node.op_type], points, node)
    if quantizers:
        yield from (_Subject(name, "activation", frozenset({name})) for name in prepared.activations)
        yield from (_Subject(name, "weight") for name in prepared.weights)


def _quantized(prepared: Quantized) -> Network:
    """The network with its weights on their grids; bias corrections are added apart."""
    network = Network(prepared.model)
    for name, qparams in prepared.weights.items():
        network.constants[name] = fake_quantize(network.constants[name], qparams)
    return network


class _Runs:
    """The float and the quantized network on some images, every tensor kept.

    Attributes:
        images: (N, C, H, W).
        exact: Tensor name -> value in the float network.
        raw: Tensor name -> value in the quantized network, before its Q.
        read: Tensor name -> value in the quantized network as others read it, after its DQ.
    """

    def __init__(self, prepared: Quantized, reference: Network, coarse: Network, images: Tensor) -> None:
        self._prepared, self._reference, self._coarse = prepared, reference, coarse
        self.images = images
        self.exact: dict[str, Tensor] = {reference.input: images}
        self.raw: dict[str, Tensor] = {reference.input: images}
        self.read = {reference.input: self._round(reference.input, images)}
        for node in reference.nodes:
            name = str(node.outputs[0].name)
            self.exact[name] = reference.apply(node, self.exact)
            self.raw[name] = self._apply(node, self.read)
            self.read[name] = self._round(name, self.raw[name])

    def logits(self, values: dict[str, Tensor]) -> Tensor:
        return values[self._reference.output]

    def alone(self, subject: _Subject) -> Tensor:
        """Logits of the float network with the subject quantized."""
        changed: dict[str, Tensor] = {}
        special: dict[int, Tensor] = {}
        if subject.kind == "activation":
            changed[subject.name] = self._round(subject.name, self.exact[subject.name])
        for index, node in enumerate(self._reference.nodes):
            if node is subject.layer:
                source = str(node.inputs[0].name)  # type: ignore[union-attr]
                special[index] = self._apply(
                    node, {**self.exact, source: self._round(source, self.exact[source])}
                )
            elif subject.kind == "weight" and _reads(node, subject.name):
                special[index] = self._coarse.apply(node, self.exact)
        return self._rerun(changed, special)

    def without(self, subject: _Subject) -> Tensor:
        """Logits of the quantized network with the subject in float."""
        changed = {name: self.raw[name] for name in subject.points}  # as others read them
        for node in self._reference.nodes:
            name = str(node.outputs[0].name)
            values = {**self.read, **changed}
            if node is subject.layer:
                result = self._reference.apply(node, values)
            elif subject.kind == "weight" and _reads(node, subject.name):
                result = self._reference.apply(node, values) + self._correction(node)
            elif any(value is not None and str(value.name) in changed for value in node.inputs):
                result = self._apply(node, values)
            else:
                continue
            changed[name] = result if name in subject.points else self._round(name, result)
        return changed.get(self._reference.output, self.read[self._reference.output])

    def _rerun(self, changed: dict[str, Tensor], special: dict[int, Tensor]) -> Tensor:
        """Compute in float what depends on the changed tensors and on the nodes whose result is given."""
        for index, node in enumerate(self._reference.nodes):
            name = str(node.outputs[0].name)
            if index in special and not any(str(v.name) in changed for v in node.inputs if v is not None):
                changed[name] = special[index]
            elif any(v is not None and str(v.name) in changed for v in node.inputs):
                changed[name] = self._reference.apply(node, {**self.exact, **changed})
        return changed.get(self._reference.output, self.exact[self._reference.output])

    def _apply(self, node: ir.Node, values: dict[str, Tensor]) -> Tensor:
        return self._coarse.apply(node, values) + self._correction(node)

    def _correction(self, node: ir.Node) -> Tensor:
        shift = self._prepared.biases.get(str(node.name))
        if shift is None or node.op_type == "MatMul":  # which has no bias to correct
            return torch.zeros(())
        return torch.from_numpy(shift) if node.op_type != "Conv" else torch.from_numpy(shift)[:, None, None]

    def _round(self, name: str, value: Tensor) -> Tensor:
        qparams = self._prepared.activations.get(name)
        return value if qparams is None else fake_quantize(value, qparams)


def _batches(probe: FloatArray) -> list[Tensor]:
    size = max(BATCH_PIXELS // int(np.prod(probe.shape[2:])), 1)
    return list(torch.split(torch.from_numpy(probe), size))


def _reads(node: ir.Node, initializer: str) -> bool:
    return any(value is not None and value.name == initializer for value in node.inputs)


@dataclass(slots=True)
class _Logits:
    """Logits of batches, with one subject alone quantized, and without it."""

    alone: list[Tensor]
    without: list[Tensor]


@dataclass(slots=True)
class _Power:
    """Signal and noise, summed over batches."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, exact: Tensor, found: Tensor) -> None:
        self.signal += float(exact.double().square().sum())
        self.noise += float((exact - found).double().square().sum())

    @property
    def sqnr_db(self) -> float:
        return 10 * math.log10(max(self.signal, 1e-300) / max(self.noise, 1e-300))


def _joined(logits: list[Tensor]) -> FloatArray:
    joined: FloatArray = torch.cat(logits).numpy()
    return joined


def _row(
    subject: _Subject,
    exact: FloatArray,
    coarse: FloatArray,
    alone: FloatArray,
    without: FloatArray,
    power: _Power,
) -> Row:
    return Row(
        subject.name,
        subject.kind,
        alone_sqnr_db=_sqnr_db(exact, alone),
        alone_kl=kl_divergence(exact, alone),
        float_sqnr_db=_sqnr_db(exact, without),
        float_kl=kl_divergence(exact, without),
        drop_db=_sqnr_db(exact, without) - _sqnr_db(exact, coarse),
        sqnr_db=min(power.sqnr_db, EXACT_DB) if subject.layer is not None else None,
    )


def _sqnr_db(exact: FloatArray, found: FloatArray) -> float:
    return min(sqnr_db(exact, found), EXACT_DB)
