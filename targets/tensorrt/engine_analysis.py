"""Engine analysis: precision of each layer, reformats with their cause, and changes that make it faster."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeship.targets.tensorrt import engine_info as records
from edgeship.targets.tensorrt.engine_info import Engine, Layer
from edgeship.targets.tensorrt.engine_precision import UNKNOWN
from edgeship.toolkit.core.results import LayerAudit

FLOATS = ("fp32", "fp16", "bf16")
TENSOR_CORES = ("imma", "hmma", "xmma", "i88", "884", "h88", "i168", "h168")  # in names of kernels
OPERATORS = ("Conv", "Gemm", "MatMul", "MaxPool", "GlobalAveragePool", "AveragePool", "Add", "Relu")
REFORMATS_OF_A_GOOD_ENGINE = 2  # one at the input, one at the output

ADVICE = (
    "build with --profilingVerbosity=detailed and a fixed profile (--minShapes = --optShapes = --maxShapes), "
    "and export the record of that engine"
)


@dataclass(frozen=True, slots=True)
class Reformat:
    """A copy of a tensor into another type or layout.

    Attributes:
        layer: Name of the layer.
        change: What it changes ("fp32 -> int8", "layout of int8").
        cause: Why the engine needs it.
        avoidable: Whether another Q/DQ placement or input type would spare it.
        time_ms: Its time; None without a profile.
    """

    layer: str
    change: str
    cause: str
    avoidable: bool
    time_ms: float | None


@dataclass(frozen=True, slots=True)
class Problem:
    """Cause of a slow engine.

    Attributes:
        rule: Name of the rule, stable.
        layers: The layers it shows in.
        message: What is wrong.
        fix: What to change in the graph or the build.
    """

    rule: str
    layers: tuple[str, ...]
    message: str
    fix: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Analysis of one optimization profile of an engine.

    Attributes:
        layers: Weighted layers, Adds, poolings and fused regions, with their precision.
        reformats: Every recorded copy, in order.
        problems: Changes to make; the one that usually costs most comes first.
        time_ms: Sum of all layer times; None without a profile.
        time_by_role: Role ("Convolution", "Reformat", ...) -> ms; empty without a profile.
        verdict: One sentence.
        precisions: Precision -> number of weighted layers, "unknown" included.
        detailed: False where the record holds names only, so that reformats may be missing.
        other_profiles: The same for each further optimization profile.
    """

    layers: tuple[LayerAudit, ...]
    reformats: tuple[Reformat, ...]
    problems: tuple[Problem, ...]
    time_ms: float | None
    time_by_role: dict[str, float]
    verdict: str
    precisions: dict[str, int] = field(default_factory=dict)
    detailed: bool = True
    other_profiles: tuple[Explanation, ...] = ()

    def share(self, time_ms: float | None) -> float | None:
        """Fraction of the engine's time; None without a profile."""
        return None if time_ms is None or not self.time_ms else time_ms / self.time_ms


def explain(record: Path, profile: Path | None = None, model: Path | None = None) -> Explanation:
    """Explain an engine from its record.

    Args:
        record: A record or a folder (see `engine_info.load`).
        profile: Profile of trtexec, for times.
        model: The ONNX file of the engine, for names and operators of its nodes.

    Raises:
        DataError: The record or profile cannot be read, or they do not belong together.
        ModelError: The ONNX file cannot be read.
    """
    return explained(records.load(record, profile), onnx_nodes(model) if model is not None else {})


def explained(engine: Engine, nodes: Mapping[str, str]) -> Explanation:
    """Explain a record in memory; `nodes` is ONNX node name -> operator."""
    others = [
        explained(replace(engine, layers=group, other_profiles=()), nodes) for group in engine.other_profiles
    ]
    view = _View(engine, nodes)
    reformats = tuple(_reformat(view, layer) for layer in engine.layers if layer.kind == "Reformat")
    times = [layer.time_ms for layer in engine.layers if layer.time_ms is not None]
    by_role: dict[str, float] = defaultdict(float)
    for layer in engine.layers:
        if layer.time_ms is not None:
            by_role[view.role(layer)] += layer.time_ms
    problems = tuple(_problems(view, reformats))
    total = sum(times) if times else None
    audit = tuple(_audit(view))
    precisions = dict(Counter(layer.precision for layer in audit if layer.weighted))
    return Explanation(
        layers=audit,
        reformats=reformats,
        problems=problems,
        time_ms=total,
        time_by_role=dict(by_role),
        verdict=_verdict(engine, problems, reformats, total, precisions),
        precisions=precisions,
        detailed=engine.detailed,
        other_profiles=tuple(others),
    )


def layers(content: Mapping[str, Any], nodes: Mapping[str, str]) -> tuple[LayerAudit, ...]:
    """Return the audit of the inspector's JSON; `nodes` is ONNX node name -> operator.

    Raises:
        DataError: It is not a record.
    """
    return explained(records.parse(dict(content), "the engine's listing"), nodes).layers


def onnx_nodes(model: Path) -> dict[str, str]:
    """Return node name -> operator of an ONNX file.

    Raises:
        ModelError: The file cannot be read.
    """
    from edgeship.toolkit.graph.load import load_unchanged
    from edgeship.toolkit.graph.query import label

    return {label(node): node.op_type for node in load_unchanged(model).graph}


class _View:
    """An engine with the producer and the readers of each tensor, and the role of each layer."""

    def __init__(self, engine: Engine, nodes: Mapping[str, str]) -> None:
        self.engine, self._operators = engine, nodes
        self._producer = {tensor.name: layer for layer in engine.layers for tensor in layer.outputs}
        self._readers: dict[str, list[Layer]] = defaultdict(list)
        self.warnings: dict[int, list[str]] = defaultdict(list)
        for layer in engine.layers:
            for tensor in layer.inputs:
                self._readers[tensor.name].append(layer)

    def operator(self, node: str) -> str:
        """Return the ONNX operator of a node, else that in names like "Conv_34" or "layer1.0/Add"."""
        tail = node.rsplit("/", 1)[-1].split("_", 1)[0].rsplit(".", 1)[-1]
        return self._operators.get(node) or (tail if tail in OPERATORS else "")

    def operators(self, layer: Layer) -> set[str]:
        """Return the ONNX operators in a layer."""
        return {operator for node in self.nodes(layer) if (operator := self.operator(node))}

    def nodes(self, layer: Layer) -> tuple[str, ...]:
        """Return the ONNX nodes of a layer: those of its name where its metadata has no known operator."""
        named = records.node_names(layer.name)
        unlisted = not any(map(self.operator, layer.nodes)) and any(map(self.operator, named))
        return named if unlisted else layer.nodes

    def short(self, layer: Layer) -> str:
        """Return the node that names a layer: convolution, product, pooling or Add, not weights or ReLU."""
        plain = [node for node in self.nodes(layer) if not _is_helper(node)]
        named = [node for operator in OPERATORS for node in plain if self.operator(node) == operator]
        return (named or plain or [layer.name])[0]

    def role(self, layer: Layer) -> str:
        """Return Convolution, FullyConnected, Pooling, Add, Reformat, NoOp, Fused or Other."""
        operators = self.operators(layer)
        if layer.kind in ("Reformat", "NoOp"):
            return layer.kind
        if _is_region(layer):
            return "Fused"
        if operators & {"Gemm", "MatMul"} or layer.kind in ("gemm", "MatrixMultiply", "FullyConnected"):
            return "FullyConnected"
        if "Conv" in operators or "conv" in layer.kind.lower() or layer.kind == "correlation":
            return "Convolution"
        if operators & {"MaxPool", "GlobalAveragePool", "AveragePool"} or "pool" in layer.kind.lower():
            return "Pooling"
        return "Add" if "Add" in operators else "Other"

    def weighted(self, layer: Layer) -> bool:
        """Return True if a layer has weights, or is a region that may hold layers that have."""
        role = self.role(layer)
        if role != "Fused":
            return role in ("Convolution", "FullyConnected")
        return (
            not layer.nodes
            or len(layer.nodes) > 1
            or bool(self.operators(layer) & {"Conv", "Gemm", "MatMul"})
        )

    def before(self, tensor: str) -> Layer | None:
        """Return the layer that computed a tensor, through copies."""
        layer = self._producer.get(tensor)
        visited = set()
        while (
            layer is not None
            and layer.kind in ("Reformat", "NoOp")
            and layer.name not in visited
            and layer.inputs
        ):
            visited.add(layer.name)
            layer = self._producer.get(layer.inputs[0].name)
        return layer

    def producer(self, tensor: str) -> Layer | None:
        """Return the layer that wrote a tensor, copies included."""
        return self._producer.get(tensor)

    def readers(self, tensor: str) -> list[Layer]:
        """Return the layers that compute with a tensor, through copies."""
        readers: list[Layer] = []
        waiting, visited = [tensor], set[str]()
        while waiting:
            name = waiting.pop(0)
            if name in visited:
                continue
            visited.add(name)
            for layer in self._readers[name]:
                if layer.kind in ("Reformat", "NoOp"):
                    waiting.extend(output.name for output in layer.outputs)
                else:
                    readers.append(layer)
        return readers

    def problem(self, rule: str, layers: Sequence[Layer], message: str, fix: str) -> Problem:
        """Make a problem, and note its message on its layers: two layers may share a name."""
        for layer in layers:
            self.warnings[id(layer)].append(message)
        return Problem(rule, tuple(self.short(layer) for layer in layers), message, fix)

    def is_binding(self, tensor: str) -> bool:
        """Return True if a tensor is an input or output of the network."""
        if self.engine.bindings:
            return tensor in self.engine.bindings
        return tensor not in self._producer or not self._readers[tensor]


def reads(layer: Layer) -> str:
    """Return the precision of a layer's arithmetic: of its first input, else of kernel and weights."""
    recorded = layer.inputs[0].precision if layer.inputs else UNKNOWN
    return recorded if recorded != UNKNOWN or _is_region(layer) else layer.computes


def writes(layer: Layer) -> str:
    """Return the precision of a layer's first output."""
    return layer.outputs[0].precision if layer.outputs else UNKNOWN


def _is_region(layer: Layer) -> bool:
    """Return True for a region compiled as one layer (Myelin, DLA): its layers are not listed."""
    return layer.kind in ("Myelin", "DLA") or layer.name.startswith("{ForeignNode[")


def _float_skip(view: _View, layer: Layer) -> bool:
    """Return True if a fused Add reads a shortcut that was never INT8 (a copy made from INT8 has Q/DQ)."""
    for tensor in layer.inputs[1:]:
        maker = view.producer(tensor.name)
        from_int8 = maker is not None and maker.kind == "Reformat" and reads(maker) == "int8"
        if tensor.precision in FLOATS and not from_int8:
            return True
    return False


def _reformat(view: _View, layer: Layer) -> Reformat:
    source, target = reads(layer), writes(layer)
    change = f"layout of {target}" if source == target != UNKNOWN else f"{source} -> {target}"
    cause, avoidable = _cause(view, layer, source, target)
    return Reformat(layer.name, change, cause, avoidable, layer.time_ms)


def _cause(view: _View, layer: Layer, source: str, target: str) -> tuple[str, bool]:
    if UNKNOWN in (source, target) or not (layer.inputs and layer.outputs):
        return "unknown: the record has no format for it", False
    if view.is_binding(layer.inputs[0].name) and source in FLOATS:
        return "the network's input is float; only an INT8 input would spare it", False
    if view.is_binding(layer.outputs[0].name) and target in FLOATS:
        return "the network's output is float", False
    made = view.before(layer.inputs[0].name)
    readers = view.readers(layer.outputs[0].name)
    reader = view.short(readers[0]) if readers else "the output"
    if source == target:
        return f"the kernel of {reader} reads another layout", False
    if target == "int8" and made is not None:
        skip = [item for item in view.readers(layer.inputs[0].name) if _is_residual_problem(view, item)]
        if _is_residual_problem(view, made):
            return f"{view.short(made)} writes {source}, because the shortcut of its Add has no Q/DQ", True
        if skip:
            use = f"for the shortcut of {view.short(skip[0])}, which has no Q/DQ"
            return f"{view.short(made)} writes {source} {use}", True
        return f"{view.short(made)} ({view.role(made)}) writes {source}", True
    if source == "int8":
        return f"{reader} computes or writes floats", True
    return f"{reader} runs in {target}", True


def _is_residual_problem(view: _View, layer: Layer) -> bool:
    fused = view.role(layer) == "Convolution" and "Add" in view.operators(layer)
    return fused and reads(layer) == "int8" and writes(layer) in FLOATS and _float_skip(view, layer)


def _problems(view: _View, reformats: tuple[Reformat, ...]) -> list[Problem]:
    layers = view.engine.layers
    int8 = any(reads(layer) == "int8" for layer in layers)
    problems = []
    residual = [layer for layer in layers if _is_residual_problem(view, layer)]
    if residual:
        problems.append(
            view.problem(
                "residual-float",
                residual,
                f"Q/DQ missing on {_many(residual, 'residual input')}",
                "quantize the shortcut input of each Add (TensorRT's scheme does)",
            )
        )
    pools = [layer for layer in layers if view.role(layer) == "Pooling" and reads(layer) in FLOATS and int8]
    pooled = [layer for layer in pools if _fed_by_int8(view, layer)]
    last = [layer for layer in pooled if "GlobalAveragePool" in view.operators(layer)]
    if last:
        problems.append(
            view.problem(
                "pool-float",
                last,
                "Q/DQ missing before the global average pool",
                "quantize the input of the pool",
            )
        )
    others = [layer for layer in pooled if layer not in last]
    if others:
        problems.append(
            view.problem(
                "pool-float-between",
                others,
                "a pooling runs in float between INT8 convolutions",
                "its output is read as float somewhere: quantize the shortcuts that read it",
            )
        )
    explained = {id(layer) for layer in residual}
    stray = [
        layer
        for layer in layers
        if view.role(layer) == "Convolution"
        and reads(layer) == "int8"
        and writes(layer) in FLOATS
        and id(layer) not in explained
        and not _feeds(view, layer, (*residual, *pooled))
        and not any(view.is_binding(tensor.name) for tensor in layer.outputs)
    ]
    if stray:
        problems.append(
            view.problem(
                "int8-in-float-out",
                stray,
                f"INT8 in, float out: {_many(stray, 'convolution')}",
                "find what reads them without Q/DQ",
            )
        )
    adds = [layer for layer in layers if view.role(layer) == "Add"]
    if adds:
        problems.append(
            view.problem(
                "add-unfused",
                adds,
                f"not fused with a convolution: {_many(adds, 'Add')}",
                "remove Q/DQ between the last convolution of a block and its Add",
            )
        )
    floats = [layer for layer in layers if view.role(layer) == "Convolution" and reads(layer) in FLOATS]
    if int8 and floats:
        problems.append(
            view.problem(
                "convolution-float",
                floats,
                f"in float: {_many(floats, 'convolution')}",
                "quantize their inputs and weights",
            )
        )
    slow = [layer for layer in layers if view.role(layer) == "Convolution" and _off_tensor_cores(layer)]
    if slow:
        problems.append(
            view.problem(
                "no-tensor-cores",
                slow,
                f"kernels without Tensor Cores: {_many(slow, 'convolution')}",
                "let them write INT8 (Q/DQ on all that reads them), with channels in multiples of 32",
            )
        )
    if not problems and len([item for item in reformats if item.avoidable]) > REFORMATS_OF_A_GOOD_ENGINE:
        avoidable = tuple(item.layer for item in reformats if item.avoidable)
        message, fix = f"avoidable: {_many(avoidable, 'reformat')}", "see the cause of each"
        problems.append(Problem("reformats", avoidable, message, fix))
    return problems


def _many(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _fed_by_int8(view: _View, layer: Layer) -> bool:
    made = view.before(layer.inputs[0].name) if layer.inputs else None
    return made is not None and view.role(made) == "Convolution" and reads(made) == "int8"


def _feeds(view: _View, layer: Layer, targets: tuple[Layer, ...]) -> bool:
    """Return True if a float output is read by a layer that is a problem of its own already."""
    return any(reader in targets for tensor in layer.outputs for reader in view.readers(tensor.name))


def _off_tensor_cores(layer: Layer) -> bool:
    tactic = layer.tactic.lower()
    named = tactic.startswith(("sm", "ampere", "turing", "volta", "trt_"))
    return reads(layer) in ("int8", "fp16") and named and not any(name in tactic for name in TENSOR_CORES)


def _audit(view: _View) -> list[LayerAudit]:
    audits = []
    for layer in view.engine.layers:
        role = view.role(layer)
        if role not in ("Convolution", "FullyConnected", "Pooling", "Add", "Fused"):
            continue
        name = layer.name if role == "Fused" else view.short(layer)
        precision = UNKNOWN if role == "Fused" else reads(layer)
        warning = "; ".join(view.warnings[id(layer)])
        audits.append(LayerAudit(name, role, precision, view.weighted(layer), warning, layer.time_ms))
    return audits


def _is_helper(name: str) -> bool:
    marks = ("QuantizeLinear", "DequantizeLinear", "_quantized", "_dequantized", ".weight", ".bias")
    return any(mark in name for mark in marks)


def _verdict(
    engine: Engine,
    problems: tuple[Problem, ...],
    reformats: tuple[Reformat, ...],
    total: float | None,
    precisions: Mapping[str, int],
) -> str:
    """Return one sentence over what the record states; the rest is counted as unknown, with the advice."""
    if not engine.detailed:
        return f"precision and reformats unknown: the record holds layer names only; {ADVICE}"
    costs = [item.time_ms for item in reformats if item.time_ms is not None]
    blank = sum(UNKNOWN in item.change for item in reformats)
    count = _many(reformats, "reformat") + (f" ({blank} of unknown formats)" if blank else "")
    spent = f"{count}, {100 * sum(costs) / total:.0f} % of the time" if total and costs else count
    weighted, unknown = sum(precisions.values()), precisions.get(UNKNOWN, 0)
    if not weighted:
        return f"no layer with weights recognized: {spent}; name the ONNX file with --model"
    gap = f"; precision of {unknown} of {weighted} weighted layers unknown: {ADVICE}" if unknown else ""
    if blank and not unknown:
        gap = f"; {ADVICE}"
    if problems:
        return f"{'; '.join(problem.message for problem in problems[:2])}: {spent}{gap}"
    if unknown and unknown == weighted:
        return f"unknown{gap.replace(';', ':', 1)}; {spent}"
    if unknown or blank:
        return f"no problem in what the record states: {spent}{gap}"
    return f"nothing to change: {spent}"
