"""Which layer and which quantizer costs what: each quantized alone, and each alone left in float."""

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
from edgeship.quantization.options import QuantizeOptions
from edgeship.quantization.placement import is_weighted
from edgeship.quantization.quantized_model import Quantized
from edgeship.quantization.statistics import Statistics
from edgeship.quantization.torch_executor import TorchExecutor
from edgeship.toolkit.core.parallel import ordered
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.statistics import kl_divergence, sqnr_db

BATCH_PIXELS = 2**14  # every tensor of so many pixels is kept three times: 4 images at 64 px, 1 at 224 px
DEFAULT = QuantizeOptions()
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


def analyse(
    prepared: Quantized,
    exact: ir.Model,
    probe: FloatArray,
    *,
    quantizers: bool = True,
    options: QuantizeOptions = DEFAULT,
) -> list[Row]:
    """Find out what every layer and quantizer costs.

    The float and the quantized network run once and all their tensors are kept; for each row only what
    depends on the changed tensor is computed again.

    Args:
        prepared: A quantized graph.
        exact: The float graph with the same channel scales (equalized, its rounding not learned).
        probe: Images (N, C, H, W).
        quantizers: Whether activations and weights get rows of their own, beside layers.
        options: Who works on the images.

    Returns:
        Layers in the order of the graph, then activations, then weights.
    """
    subjects = tuple(_subjects(prepared, quantizers=quantizers))
    seen = _measured(_Measure(prepared, exact, subjects, alone=True), probe, options)
    exactly, coarsely = _joined(part.exact for part in seen), _joined(part.coarse for part in seen)
    return [
        _row(
            subject,
            exactly,
            coarsely,
            _joined(part.alone[index] for part in seen),
            _joined(part.without[index] for part in seen),
            _power(seen, index),
        )
        for index, subject in enumerate(subjects)
    ]


def divergences(
    prepared: Quantized, layers: Iterable[str], probe: FloatArray, options: QuantizeOptions = DEFAULT
) -> tuple[float, dict[str, float]]:
    """What it would help to leave layers in float, one at a time.

    Args:
        prepared: A quantized graph.
        layers: Weighted layers that are quantized.
        probe: Images (N, C, H, W).
        options: Who works on the images.

    Returns:
        KL divergence of the softmax from the float network's, in nats an image: as it is, and with each layer
        in float.
    """
    asked = set(layers)
    subjects = tuple(s for s in _subjects(prepared, quantizers=False) if s.name in asked)
    seen = _measured(_Measure(prepared, prepared.exact, subjects, alone=False), probe, options)
    exactly = _joined(part.exact for part in seen)
    left = {
        subject.name: kl_divergence(exactly, _joined(part.without[index] for part in seen))
        for index, subject in enumerate(subjects)
    }
    return kl_divergence(exactly, _joined(part.coarse for part in seen)), left


def to_json(rows: Iterable[Row]) -> dict[str, list[dict[str, Any]]]:
    """Rows as quantize/sensitivity.json holds them for a target: {"layers": [...], "quantizers": [...]}."""
    described = [asdict(row) for row in rows]
    return {
        "layers": [row for row in described if row["kind"] in KINDS.values()],
        "quantizers": [row for row in described if row["kind"] not in KINDS.values()],
    }


@dataclass(frozen=True, slots=True)
class _Subject:
    """A layer, or the quantizer of a tensor.

    Attributes:
        name: Of the node, the tensor or the initializer.
        kind: As of `Row`.
        points: Tensors that are no longer quantized without it.
    """

    name: str
    kind: str
    points: frozenset[str] = frozenset()

    @property
    def is_layer(self) -> bool:
        """Whether it is a layer."""
        return self.kind in KINDS.values()

    def is_made_by(self, node: ir.Node) -> bool:
        """Whether it is this layer."""
        return self.is_layer and node.name == self.name


def _subjects(prepared: Quantized, *, quantizers: bool) -> Iterator[_Subject]:
    for node in prepared.exact.graph:
        if is_weighted(node):
            name = str(node.name)
            rest = prepared.placed({name})
            points = frozenset(prepared.activations).difference(rest.activations)
            yield _Subject(name, KINDS[node.op_type], points)
    if quantizers:
        yield from (_Subject(name, "activation", frozenset({name})) for name in prepared.activations)
        yield from (_Subject(name, "weight") for name in prepared.weights)


@dataclass(frozen=True, slots=True)
class _Seen:
    """Logits of some images, (N, classes): of the networks, and by subject.

    Attributes:
        exact: Of the float network.
        coarse: Of the quantized network.
        alone: With one subject alone quantized.
        without: With everything quantized but one subject.
        powers: Of the output of a layer, signal and noise.
    """

    exact: FloatArray
    coarse: FloatArray
    alone: tuple[FloatArray, ...]
    without: tuple[FloatArray, ...]
    powers: tuple[tuple[float, float], ...]


class _Measure:
    """Runs subjects on images; in another process, with networks of its own.

    Args:
        prepared: A quantized graph.
        exact: Its float graph.
        subjects: What is measured.
        alone: Whether to quantize each alone too, and to tell the power of a layer's error.
    """

    def __init__(
        self, prepared: Quantized, exact: ir.Model, subjects: tuple[_Subject, ...], *, alone: bool
    ) -> None:
        nothing = Statistics(0, {}, np.zeros((0, 1, 1, 1), np.float32))
        self._given = replace(prepared, statistics=nothing), exact, subjects, alone
        self._load()

    def _load(self) -> None:
        prepared, exact, _, _ = self._given
        self._reference, self._coarse = (
            TorchExecutor(model, execution=prepared.execution) for model in (exact, prepared.model)
        )
        for name, qparams in prepared.weights.items():  # bias corrections are added apart
            self._coarse.constants[name] = fake_quantize(self._coarse.constants[name], qparams)

    def __getstate__(self) -> Any:
        return self._given

    def __setstate__(self, state: Any) -> None:
        self._given = state
        self._load()

    def __call__(self, batches: list[FloatArray]) -> list[_Seen]:
        return [self._run(images) for images in batches]

    @torch.inference_mode()
    def _run(self, images: FloatArray) -> _Seen:
        prepared, _, subjects, alone = self._given
        runs = _Runs(prepared, self._reference, self._coarse, torch.tensor(images))
        layers = {str(node.name): str(node.outputs[0].name) for node in self._reference.nodes}
        powers = []
        for subject in subjects if alone else ():
            result = layers.get(subject.name, "") if subject.is_layer else ""
            powers.append(_signal_and_noise(runs.exact[result], runs.raw[result]) if result else (0.0, 0.0))
        return _Seen(
            runs.logits(runs.exact).numpy(),
            runs.logits(runs.raw).numpy(),
            tuple(runs.alone(subject).numpy() for subject in subjects) if alone else (),
            tuple(runs.without(subject).numpy() for subject in subjects),
            tuple(powers),
        )


def _measured(measure: _Measure, probe: FloatArray, options: QuantizeOptions) -> list[_Seen]:
    """Everything seen, in the order of the images, whoever looked."""
    size = max(BATCH_PIXELS // int(np.prod(probe.shape[2:])), 1)
    batches = [np.ascontiguousarray(probe[start : start + size]) for start in range(0, len(probe), size)]
    # here each batch is a piece of work; another process gets several, for it has to load the networks
    each = 1 if options.backend == "threading" else -(-len(batches) // options.workers)
    parts = [batches[start : start + each] for start in range(0, len(batches), each)]
    found = ordered(
        measure, parts, workers=options.workers, backend=options.backend, label="measuring sensitivity"
    )
    return [seen for part in found for seen in part]


class _Runs:
    """The float and the quantized network on some images, every tensor kept.

    Attributes:
        images: (N, C, H, W).
        exact: Tensor name -> value in the float network.
        raw: Tensor name -> value in the quantized network, before its Q.
        read: Tensor name -> value in the quantized network as others read it, after its DQ.
    """

    def __init__(
        self, prepared: Quantized, reference: TorchExecutor, coarse: TorchExecutor, images: Tensor
    ) -> None:
        self._prepared, self._reference, self._coarse = prepared, reference, coarse
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
        return values[self._reference.output]

    def alone(self, subject: _Subject) -> Tensor:
        """Logits of the float network with the subject quantized."""
        changed: dict[str, Tensor] = {}
        special: dict[int, dict[str, Tensor]] = {}
        if subject.kind == "activation":
            changed[subject.name] = self._round(subject.name, self.exact[subject.name])
        for index, node in enumerate(self._reference.nodes):
            if subject.is_made_by(node):
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
            values = {**self.read, **changed}
            if subject.is_made_by(node):
                results = self._reference.apply(node, values)
            elif subject.kind == "weight" and _reads(node, subject.name):
                results = self._corrected(node, self._reference.apply(node, values))
            elif self._is_changed(node, changed):
                results = self._apply(node, values)
            else:
                continue
            for name, result in results.items():
                changed[name] = result if name in subject.points else self._round(name, result)
        return changed.get(self._reference.output, self.read[self._reference.output])

    def _is_changed(self, node: ir.Node, changed: dict[str, Tensor]) -> bool:
        """Whether a node reads a changed tensor."""
        return any(name in changed for name in self._reference.inputs[str(node.name)])

    def _rerun(self, changed: dict[str, Tensor], special: dict[int, dict[str, Tensor]]) -> Tensor:
        """Compute in float what depends on the changed tensors and on the nodes whose result is given."""
        for index, node in enumerate(self._reference.nodes):
            is_changed = self._is_changed(node, changed)
            if index in special and not is_changed:
                changed |= special[index]
            elif is_changed:
                changed |= self._reference.apply(node, {**self.exact, **changed})
        return changed.get(self._reference.output, self.exact[self._reference.output])

    def _apply(self, node: ir.Node, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._corrected(node, self._coarse.apply(node, values))

    def _corrected(self, node: ir.Node, results: dict[str, Tensor]) -> dict[str, Tensor]:
        if str(node.name) not in self._prepared.biases:
            return results
        return {name: value + self._correction(node) for name, value in results.items()}

    def _correction(self, node: ir.Node) -> Tensor:
        shift = self._prepared.biases.get(str(node.name))
        if shift is None or node.op_type == "MatMul":  # which has no bias to correct
            return torch.zeros(())
        values = torch.tensor(shift)  # a copy: what other processes are given may be read-only
        return values[:, None, None] if node.op_type == "Conv" else values

    def _round(self, name: str, value: Tensor) -> Tensor:
        qparams = self._prepared.activations.get(name)
        return value if qparams is None else fake_quantize(value, qparams)


def _reads(node: ir.Node, initializer: str) -> bool:
    return any(value is not None and value.name == initializer for value in node.inputs)


def _signal_and_noise(exact: Tensor, found: Tensor) -> tuple[float, float]:
    return float(exact.double().square().sum()), float((exact - found).double().square().sum())


def _power(seen: list[_Seen], index: int) -> float:
    """SQNR of the output of a layer over all images, in dB."""
    signal, noise = (sum(part.powers[index][side] for part in seen) for side in (0, 1))
    return 10 * math.log10(max(signal, 1e-300) / max(noise, 1e-300))


def _joined(logits: Iterable[FloatArray]) -> FloatArray:
    joined: FloatArray = np.concatenate(list(logits))
    return joined


def _row(
    subject: _Subject,
    exact: FloatArray,
    coarse: FloatArray,
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
        drop_db=_sqnr_db(exact, without) - _sqnr_db(exact, coarse),
        sqnr_db=min(output_db, EXACT_DB) if subject.is_layer else None,
    )


def _sqnr_db(exact: FloatArray, found: FloatArray) -> float:
    return min(sqnr_db(exact, found), EXACT_DB)
