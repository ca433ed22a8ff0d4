"""Verification of the PyTorch executor against ONNX Runtime, and its execution settings.

The operator table does not cover all attributes, opsets and uses of the batch axis. A graph with operators
outside `torch_ops.PLAIN` is compared on a few images first: nodes that differ run in ONNX Runtime, graphs
that mix the batch with other axes run one image at a time.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgeship.quantization.torch_executor import Execution, TorchExecutor
from edgeship.quantization.torch_ops import PLAIN
from edgeship.toolkit.core.errors import ModelError
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.graph import io
from edgeship.toolkit.graph.reference import Reference

TOLERANCE = 1e-2  # of the norm: float sums differ by 1e-6, results of step functions by more
EQUAL_INTEGERS = 0.99  # fraction of equal integers or booleans


def matching_executor(model: ir.Model, images: FloatArray) -> TorchExecutor:
    """Return an executor whose results equal ONNX Runtime's.

    Args:
        model: A float graph.
        images: A few images (N, C, H, W); at least 2, to detect mixing of images.

    Raises:
        ModelError: ONNX Runtime cannot run a single node, or the results still differ.
    """
    if all(node.op_type in PLAIN for node in model.graph):
        network = TorchExecutor(model)
        network(torch.from_numpy(images))  # fails if a shape has a fixed batch
        return network
    expected = _logits(model, images)
    execution, error = Execution(), None
    while True:
        for one_image in (False, True):
            network = TorchExecutor(model, execution=Execution(one_image, execution.by_runtime))
            try:
                with torch.inference_mode():
                    logits = network(torch.from_numpy(images))
            except ModelError as failure:
                error = error or failure
                continue
            if _close(logits, expected):
                return network
        differing = _differing_nodes(network, images[:1])
        if not differing:
            raise error or ModelError(
                "the PyTorch network and ONNX Runtime compute different logits",
                hint="set quantize.effort=fast",
            )
        execution = Execution(by_runtime=execution.by_runtime | differing)


def gradient_warnings(estimated: Iterable[ir.Node]) -> list[str]:
    """Return a warning that names the nodes whose gradients are estimated, or none."""
    nodes = [f"{node.op_type} (node '{node.name}')" for node in estimated]
    if not nodes:
        return []
    return [
        f"no gradient through {', '.join(nodes)}: the sections before and after are fitted separately; "
        "ranges before minimize the error at its input"
    ]


def _logits(model: ir.Model, images: FloatArray) -> Tensor:
    """Compute logits (N, classes) by ONNX Runtime, one image at a time."""
    reference = Reference(model, [str(model.graph.outputs[0].name)])
    return torch.cat([torch.from_numpy(reference.run(_batch(model, image))[0][:1]) for image in images])


def _batch(model: ir.Model, image: FloatArray) -> FloatArray:
    """Repeat an image to the batch size of the graph."""
    shape = model.graph.inputs[0].shape
    count = shape[0] if shape is not None and isinstance(shape[0], int) else 1
    return np.repeat(image[None], count, 0)


def _differing_nodes(network: TorchExecutor, images: FloatArray) -> frozenset[str]:
    """Return the PyTorch nodes whose results differ from ONNX Runtime's for equal inputs."""
    exposed = io.copy(network.model)
    values = {str(value.name): value for node in exposed.graph for value in node.outputs if value.name}
    outputs = {str(value.name) for value in exposed.graph.outputs}
    exposed.graph.outputs.extend(value for name, value in values.items() if name not in outputs)
    names = list(values)
    results = Reference(exposed, names).run(_batch(network.model, images[0]))
    reference = {network.input: torch.from_numpy(images)} | {
        name: torch.from_numpy(np.array(result))
        for name, result in zip(names, results, strict=True)
        if isinstance(result, np.ndarray) and result.dtype.kind in "biuf"
    }
    runtime = {str(node.name) for node in network.estimated}
    differing = set()
    for node in network.nodes:
        if str(node.name) in runtime:
            continue
        try:
            with torch.inference_mode():
                actual = network.apply(node, reference)
            differs = not all(_close(value, reference[name]) for name, value in actual.items())
        except (ModelError, KeyError):
            differs = True
        if differs:
            differing.add(str(node.name))
    return frozenset(differing)


def _close(actual: Tensor, expected: Tensor) -> bool:
    if actual.numel() != expected.numel():
        return False
    actual, expected = actual.flatten(), expected.flatten()
    if not expected.is_floating_point():
        equal = (actual.long() == expected.long()).float()
        return bool(equal.mean() >= EQUAL_INTEGERS) if len(expected) else True
    difference = torch.linalg.vector_norm(actual.float() - expected.float())
    return bool(difference <= TOLERANCE * torch.linalg.vector_norm(expected.float()))
