"""Agreement of the PyTorch network with ONNX Runtime, and how its nodes are run so that the two agree.

Operators have attributes, opsets and uses of the batch that a table cannot foresee. A graph with other
operators than the plainest is compared on a few images before anything is learned from it: a node that
differs is run by ONNX Runtime, a graph that mixes the batch with other axes image by image.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization.torch_executor import Execution, TorchExecutor
from edgeship.quantization.torch_ops import PLAIN, key
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.reference import Reference

TOLERANCE = 1e-2  # of the norm: float sums differ by 1e-6, what a step function rounds by more
INTEGERS_ALIKE = 0.99  # of integers and truth values


def agreeing(model: ir.Model, images: FloatArray) -> TorchExecutor:
    """Return the network of a graph, its nodes run so that it computes what ONNX Runtime does.

    Args:
        model: A float graph.
        images: A few images (N, C, H, W), 2 at least to see whether they are mixed.

    Raises:
        ModelError: ONNX Runtime cannot run a node by itself, or what remains differs.
    """
    if all(key(node) in PLAIN for node in model.graph):
        network = TorchExecutor(model)
        network(torch.from_numpy(images))  # shapes may not suit more than one image
        return network
    wanted = _logits(model, images)
    execution, error = Execution(), None
    while True:
        for one_image in (False, True):
            tried = TorchExecutor(model, execution=Execution(one_image, execution.by_runtime))
            try:
                with torch.inference_mode():
                    logits = tried(torch.from_numpy(images))
            except ModelError as refused:
                error = error or refused
                continue
            if _alike(logits, wanted):
                return tried
        wrong = _wrong(tried, images[:1])
        if not wrong:
            raise error or ModelError(
                "the network differs from ONNX Runtime here", hint="quantize.effort = fast does not need it"
            )
        execution = Execution(by_runtime=execution.by_runtime | wrong)


def note(estimated: Iterable[ir.Node]) -> list[str]:
    """Return a warning that names the nodes whose gradients are estimated, or none."""
    nodes = [f"{node.op_type} (node '{node.name}')" for node in estimated]
    if not nodes:
        return []
    return [
        f"no gradient through {', '.join(nodes)}: the sections before and after are fitted separately; "
        "ranges before minimize the error at its input"
    ]


def _logits(model: ir.Model, images: FloatArray) -> Tensor:
    """Logits by ONNX Runtime, each image by itself, (N, classes)."""
    reference = Reference(model, [str(model.graph.outputs[0].name)])
    return torch.cat([torch.from_numpy(reference.run(_batch(model, image))[0][:1]) for image in images])


def _batch(model: ir.Model, image: FloatArray) -> FloatArray:
    """An image as often as the graph takes images at once."""
    shape = model.graph.inputs[0].shape
    count = shape[0] if shape is not None and isinstance(shape[0], int) else 1
    return np.repeat(image[None], count, 0)


def _wrong(network: TorchExecutor, images: FloatArray) -> frozenset[str]:
    """Nodes that differ from ONNX Runtime's where they read the same, of those not run by it already."""
    shown = io.copy(network.model)
    values = {str(value.name): value for node in shown.graph for value in node.outputs if value.name}
    present = {str(value.name) for value in shown.graph.outputs}
    shown.graph.outputs.extend(value for name, value in values.items() if name not in present)
    names = list(values)
    results = Reference(shown, names).run(_batch(network.model, images[0]))
    read = {network.input: torch.from_numpy(images)} | {
        name: torch.from_numpy(np.array(result))
        for name, result in zip(names, results, strict=True)
        if isinstance(result, np.ndarray) and result.dtype.kind in "biuf"
    }
    runtime = {str(node.name) for node in network.estimated}
    wrong = set()
    for node in network.nodes:
        if str(node.name) in runtime:
            continue
        try:
            with torch.inference_mode():
                found = network.apply(node, read)
            differs = not all(_alike(value, read[name]) for name, value in found.items())
        except (ModelError, KeyError):
            differs = True
        if differs:
            wrong.add(str(node.name))
    return frozenset(wrong)


def _alike(found: Tensor, wanted: Tensor) -> bool:
    if found.numel() != wanted.numel():
        return False
    found, wanted = found.flatten(), wanted.flatten()
    if not wanted.is_floating_point():
        return bool((found.long() == wanted.long()).float().mean() >= INTEGERS_ALIKE) if len(wanted) else True
    difference = torch.linalg.vector_norm(found.float() - wanted.float())
    return bool(difference <= TOLERANCE * torch.linalg.vector_norm(wanted.float()))
