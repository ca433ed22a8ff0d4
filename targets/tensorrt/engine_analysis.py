"""Why an engine is as fast as it is: what ran in INT8, what was converted in between, and what to change."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeship.targets.tensorrt import engine_info as records
from edgeship.targets.tensorrt.engine_info import Engine, Layer
from edgeship.toolkit.core.results import LayerAudit

FLOATS = ("fp32", "fp16", "bf16")
TENSOR_CORES = ("imma", "hmma", "xmma", "i88", "884", "h88", "i168", "h168")  # in names of kernels
OPERATORS = ("Conv", "Gemm", "MatMul", "MaxPool", "GlobalAveragePool", "AveragePool", "Add", "Relu")
REFORMATS_OF_A_GOOD_ENGINE = 2  # one at the input, one at the output


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
    """What makes an engine slower than it need be.

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
    """What an engine executes.

    Attributes:
        layers: Weighted layers, Adds and poolings, with what they compute in.
        reformats: Every copy, in order.
        problems: What to change; what usually costs most comes first.
        time_ms: Sum of all layer times; None without a profile.
        time_by_role: Role ("Convolution", "Reformat", ...) -> ms; empty without a profile.
        verdict: One sentence.
    """

    layers: tuple[LayerAudit, ...]
    reformats: tuple[Reformat, ...]
    problems: tuple[Problem, ...]
    time_ms: float | None
    time_by_role: dict[str, float]
    verdict: str

    def share(self, time_ms: float | None) -> float | None:
        """Fraction of the engine's time; None without a profile."""
        return None if time_ms is None or not self.time_ms else time_ms / self.time_ms


def explain(record: Path, profile: Path | None = None, model: Path | None = None) -> Explanation:
    """Explain an engine from its record.

    Args:
        record: The inspector's JSON, the device runner's, or a folder of both (see `record.load`).
        profile: trtexec's profile, for times.
        model: The ONNX file it was built from, so that layers are called like its nodes.

    Raises:
        DataError: The record or profile cannot be read, or they do not belong together.
        ModelError: The ONNX file cannot be read.
    """
    return explained(records.load(record, profile), onnx_nodes(model) if model is not None else {})


def explained(engine: Engine, nodes: Mapping[str, str]) -> Explanation:
    """`explain` of a record in memory; `nodes` is ONNX node name -> operator."""
    view = _View(engine, nodes)
    reformats = tuple(_reformat(view, layer) for layer in engine.layers if layer.kind == "Reformat")
    times = [layer.time_ms for layer in engine.layers if layer.time_ms is not None]
    by_role: dict[str, float] = defaultdict(float)
    for layer in engine.layers:
        if layer.time_ms is not None:
            by_role[view.role(layer)] += layer.time_ms
    problems = tuple(_problems(view, reformats))
    total = sum(times) if times else None
    return Explanation(
        layers=tuple(_audit(view, problems)),
        reformats=reformats,
        problems=problems,
        time_ms=total,
        time_by_role=dict(by_role),
        verdict=_verdict(engine, problems, reformats, total),
    )


def layers(content: Mapping[str, Any], nodes: Mapping[str, str]) -> tuple[LayerAudit, ...]:
    """The layers of the inspector's JSON as an audit; `nodes` is ONNX node name -> operator.

    Raises:
        DataError: It is not a record.
    """
    return explained(records.parse(dict(content), "the engine's listing"), nodes).layers


def onnx_nodes(model: Path) -> dict[str, str]:
    """Node name -> operator of an ONNX file.

    Raises:
        ModelError: The file cannot be read.
    """
    from edgeship.targets.tensorrt._index import label, load

    return {label(node): str(node.op_type) for node in load(model).graph.node}


class _View:
    """An engine with who makes and reads each tensor, and what each layer is."""

    def __init__(self, engine: Engine, nodes: Mapping[str, str]) -> None:
        self.engine, self._operators = engine, nodes
        self._producer = {tensor.name: layer for layer in engine.layers for tensor in layer.outputs}
        self._readers: dict[str, list[Layer]] = defaultdict(list)
        for layer in engine.layers:
            for tensor in layer.inputs:
                self._readers[tensor.name].append(layer)

    def operator(self, node: str) -> str:
        """ONNX operator of a node: looked up, else read from names like "Conv_34" or "layer1.0/Add"."""
        tail = node.rsplit("/", 1)[-1].split("_", 1)[0].rsplit(".", 1)[-1]
        return self._operators.get(node) or (tail if tail in OPERATORS else "")

    def operators(self, layer: Layer) -> set[str]:
        """ONNX operators in a layer."""
        return {operator for node in layer.nodes if (operator := self.operator(node))}

    def short(self, layer: Layer) -> str:
        """The node that names a layer: its convolution, product, pooling or Add, not weights or ReLU."""
        plain = [node for node in layer.nodes if not _is_helper(node)]
        named = [node for operator in OPERATORS for node in plain if self.operator(node) == operator]
        return (named or plain or [layer.name])[0]

    def role(self, layer: Layer) -> str:
        """Convolution, FullyConnected, Pooling, Add, Reformat, NoOp or Other."""
        operators = self.operators(layer)
        if layer.kind in ("Reformat", "NoOp"):
            return layer.kind
        if operators & {"Gemm", "MatMul"} or layer.kind in ("gemm", "MatrixMultiply", "FullyConnected"):
            return "FullyConnected"
        if "Conv" in operators or "conv" in layer.kind.lower() or layer.kind == "correlation":
            return "Convolution"
        if operators & {"MaxPool", "GlobalAveragePool", "AveragePool"} or "pool" in layer.kind.lower():
            return "Pooling"
        return "Add" if "Add" in operators else "Other"

    def before(self, tensor: str) -> Layer | None:
        """The layer that computed a tensor, through copies."""
        layer = self._producer.get(tensor)
        seen = set()
        while (
            layer is not None
            and layer.kind in ("Reformat", "NoOp")
            and layer.name not in seen
            and layer.inputs
        ):
            seen.add(layer.name)
            layer = self._producer.get(layer.inputs[0].name)
        return layer

    def producer(self, tensor: str) -> Layer | None:
        """The layer that wrote a tensor, copies included."""
        return self._producer.get(tensor)

    def readers(self, tensor: str) -> list[Layer]:
        """The layers that compute with a tensor, through copies."""
        found: list[Layer] = []
        waiting, seen = [tensor], set[str]()
        while waiting:
            name = waiting.pop(0)
            if name in seen:
                continue
            seen.add(name)
            for layer in self._readers[name]:
                if layer.kind in ("Reformat", "NoOp"):
                    waiting.extend(output.name for output in layer.outputs)
                else:
                    found.append(layer)
        return found

    def is_binding(self, tensor: str) -> bool:
        """Whether a tensor is an input or output of the network."""
        if self.engine.bindings:
            return tensor in self.engine.bindings
        return tensor not in self._producer or not self._readers[tensor]


def reads(layer: Layer) -> str:
    """What a layer computes in: the precision of its first input."""
    return layer.inputs[0].precision if layer.inputs else records.UNKNOWN


def writes(layer: Layer) -> str:
    """Precision of its first output."""
    return layer.outputs[0].precision if layer.outputs else records.UNKNOWN


def _float_skip(view: _View, layer: Layer) -> bool:
    """Whether a fused Add reads a shortcut that was never INT8 (a copy made from INT8 has Q/DQ)."""
    for tensor in layer.inputs[1:]:
        maker = view.producer(tensor.name)
        from_int8 = maker is not None and maker.kind == "Reformat" and reads(maker) == "int8"
        if tensor.precision in FLOATS and not from_int8:
            return True
    return False


def _reformat(view: _View, layer: Layer) -> Reformat:
    source, target = reads(layer), writes(layer)
    change = f"layout of {target}" if source == target else f"{source} -> {target}"
    cause, avoidable = _cause(view, layer, source, target)
    return Reformat(layer.name, change, cause, avoidable, layer.time_ms)


def _cause(view: _View, layer: Layer, source: str, target: str) -> tuple[str, bool]:
    if not layer.inputs or not layer.outputs:
        return "the record does not tell", False
    if view.is_binding(layer.inputs[0].name):
        return "the network's input is float; only an INT8 input would spare it", False
    if view.is_binding(layer.outputs[0].name):
        return "the network's output is float", False
    made = view.before(layer.inputs[0].name)
    readers = view.readers(layer.outputs[0].name)
    reader = view.short(readers[0]) if readers else "the output"
    if source == target:
        return f"the kernel of {reader} wants another layout", False
    if target == "int8" and made is not None:
        skip = [item for item in view.readers(layer.inputs[0].name) if _is_residual_problem(view, item)]
        if _is_residual_problem(view, made):
            return f"{view.short(made)} writes {source}, because the shortcut of its Add has no Q/DQ", True
        if skip:
            wanted = f"for the shortcut of {view.short(skip[0])}, which has no Q/DQ"
            return f"{view.short(made)} writes {source} {wanted}", True
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
            Problem(
                "residual-float",
                tuple(view.short(layer) for layer in residual),
                f"Q/DQ missing on {_many(residual, 'residual input')}",
                "quantize the shortcut input of each Add (TensorRT's scheme does)",
            )
        )
    pools = [layer for layer in layers if view.role(layer) == "Pooling" and reads(layer) in FLOATS and int8]
    pooled = [layer for layer in pools if _fed_by_int8(view, layer)]
    last = [layer for layer in pooled if "GlobalAveragePool" in view.operators(layer)]
    if last:
        problems.append(
            Problem(
                "pool-float",
                tuple(view.short(layer) for layer in last),
                "Q/DQ missing before the global average pool",
                "quantize the input of the pool",
            )
        )
    others = [layer for layer in pooled if layer not in last]
    if others:
        problems.append(
            Problem(
                "pool-float-between",
                tuple(view.short(layer) for layer in others),
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
            Problem(
                "int8-in-float-out",
                tuple(view.short(layer) for layer in stray),
                f"INT8 in, float out: {_many(stray, 'convolution')}",
                "find what reads them without Q/DQ",
            )
        )
    adds = [layer for layer in layers if view.role(layer) == "Add"]
    if adds:
        problems.append(
            Problem(
                "add-unfused",
                tuple(view.short(layer) for layer in adds),
                f"not fused with a convolution: {_many(adds, 'Add')}",
                "remove Q/DQ between the last convolution of a block and its Add",
            )
        )
    floats = [layer for layer in layers if view.role(layer) == "Convolution" and reads(layer) in FLOATS]
    if int8 and floats:
        problems.append(
            Problem(
                "convolution-float",
                tuple(view.short(layer) for layer in floats),
                f"in float: {_many(floats, 'convolution')}",
                "quantize their inputs and weights",
            )
        )
    slow = [layer for layer in layers if view.role(layer) == "Convolution" and _off_tensor_cores(layer)]
    if slow:
        problems.append(
            Problem(
                "no-tensor-cores",
                tuple(view.short(layer) for layer in slow),
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


def _feeds(view: _View, layer: Layer, wanted: tuple[Layer, ...]) -> bool:
    """Whether a float output goes to a layer that is a problem of its own already."""
    return any(reader in wanted for tensor in layer.outputs for reader in view.readers(tensor.name))


def _off_tensor_cores(layer: Layer) -> bool:
    tactic = layer.tactic.lower()
    known = tactic.startswith(("sm", "ampere", "turing", "volta", "trt_"))
    return reads(layer) in ("int8", "fp16") and known and not any(name in tactic for name in TENSOR_CORES)


def _audit(view: _View, problems: tuple[Problem, ...]) -> list[LayerAudit]:
    found = []
    for layer in view.engine.layers:
        role = view.role(layer)
        if role not in ("Convolution", "FullyConnected", "Pooling", "Add"):
            continue
        name = view.short(layer)
        warning = "; ".join(problem.message for problem in problems if name in problem.layers)
        weighted = role in ("Convolution", "FullyConnected")
        found.append(LayerAudit(name, role, reads(layer), weighted, warning, layer.time_ms))
    return found


def _is_helper(name: str) -> bool:
    marks = ("QuantizeLinear", "DequantizeLinear", "_quantized", "_dequantized", ".weight", ".bias")
    return any(mark in name for mark in marks)


def _verdict(
    engine: Engine, problems: tuple[Problem, ...], reformats: tuple[Reformat, ...], total: float | None
) -> str:
    if not engine.detailed:
        return "built without detailed verbosity: layer names only; build with --profilingVerbosity=detailed"
    costs = [item.time_ms for item in reformats if item.time_ms is not None]
    count = _many(reformats, "reformat")
    spent = f"{count}, {100 * sum(costs) / total:.0f} % of the time" if total and costs else count
    if problems:
        return f"{'; '.join(problem.message for problem in problems[:2])}: {spent}"
    return f"nothing to change: {spent}"
