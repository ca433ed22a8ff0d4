"""`edgeship inspect`: show the structure of an ONNX file and the ranges of its activations."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import JSON, PREPROCESS, Command, data_argument, recipe_options

if TYPE_CHECKING:
    import onnx_ir as ir


@click.group(
    epilog="""\b
Examples:
  edgeship inspect graph net.onnx
  edgeship inspect ranges net.onnx photos/ --images 50
"""
)
def command() -> None:
    """Show structure and activation ranges of an ONNX file."""


@command.command(epilog="\b\nExample:\n  edgeship inspect graph net.onnx")
@click.argument("model", type=click.Path(path_type=Path))
@JSON
def graph(model: Path, as_json: bool) -> None:
    """Show input, output, MACs, parameters and operators of MODEL."""
    from edgeship.toolkit.graph import io
    from edgeship.toolkit.graph.cost import cost

    network = io.read(model)
    ends = network.model.graph
    count = cost(model)
    operators = Counter(node.op_type for node in ends)
    described: dict[str, Any] = {
        "input": {
            "name": network.input,
            "shape": _shape(next(value for value in ends.inputs if value.name == network.input)),
            "dtype": _dtype(ends.inputs, network.input),
        },
        "output": {"name": network.output, "shape": _shape(ends.outputs[0])},
        "macs": count.macs or None,  # not counted for integer operators
        "parameters": count.parameters,
        "quantized": network.quantized,
        "opset": ends.opset_imports.get(""),
        "operators": dict(operators.most_common()),
    }
    if as_json:
        click.echo(json.dumps(described, indent=1))
        return
    for side in ("input", "output"):
        shape = " x ".join("any" if size is None else str(size) for size in described[side]["shape"])
        kind = f"  {described['input']['dtype']}" if side == "input" else ""
        click.echo(f"{side:<12}{described[side]['name']}  {shape}{kind}")
    if count.macs != 0:
        macs = (
            "unknown: the batch or the size of the input is open"
            if count.macs is None
            else f"{count.macs:,} per image"
        )
        click.echo(f"{'macs':<12}{macs}")
    click.echo(f"{'parameters':<12}{count.parameters:,}")
    click.echo(
        f"{'precision':<12}{'quantized' if network.quantized else 'float'}, opset {described['opset']}"
    )
    click.echo(f"{'operators':<12}{', '.join(f'{n} {kind}' for kind, n in operators.most_common())}")


@command.command(cls=Command, epilog="\b\nExample:\n  edgeship inspect ranges net.onnx photos/ --images 50")
@click.argument("model", type=click.Path(path_type=Path))
@data_argument("source")
@recipe_options("select.source", needed=("select.source",))
@click.option(
    "--images", type=click.IntRange(1, 10**6), default=100, show_default=True, help="Number of images."
)
@PREPROCESS
@JSON
def ranges(*, model: Path, images: int, options: dict[str, Any], as_json: bool) -> None:
    """Show the range of every activation of MODEL over images of SOURCE.

    Prints minimum, maximum and the 99.9 percentile of the absolute values. A tensor whose maximum is far
    above the percentile has outliers, which cost INT8 resolution.
    """
    import numpy as np

    from edgeship.calibration import manifest
    from edgeship.calibration.datasets import open_dataset
    from edgeship.quantization.calibrate import collect
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.graph import io
    from edgeship.toolkit.pipeline import datasets as pictures
    from edgeship.toolkit.pipeline.preprocessing import check_channels, input_size, resolve
    from edgeship.toolkit.pipeline.recipe import Recipe

    recipe = Recipe.build({}, options)
    network = io.read_classifier(model)
    prepared = resolve(
        recipe.load.preprocess, network.preprocess, input_size(network, None), network.normalization
    )
    check_channels(prepared, network.channels)
    dataset = open_dataset(recipe.select.source, use="train")
    chosen = manifest.select(dataset, min(images, len(dataset)), seed=0)
    with show_progress():
        stream = pictures.stream(dataset, manifest.locate(chosen, dataset), prepared, 8, "running images")
        statistics = collect(network, stream, exact=True)
    rows = {
        name: {
            "low": float(tensor.low.min()),
            "high": float(tensor.high.max()),
            "percentile_99_9": float(np.percentile(np.abs(tensor.sample), 99.9)),
        }
        for name, tensor in statistics.tensors.items()
    }
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = max(map(len, rows))
    click.echo(f"{'tensor':<{width}}       low      high   99.9 % below")
    for name, row in rows.items():
        click.echo(f"{name:<{width}} {row['low']:9.3f} {row['high']:9.3f} {row['percentile_99_9']:14.3f}")


def _shape(value: ir.Value) -> list[int | None]:
    """Return the shape of a tensor; None for a dynamic dimension."""
    return [dim if isinstance(dim, int) else None for dim in value.shape or ()]


def _dtype(values: Iterable[ir.Value], name: str) -> str:
    """Return the numpy name of a tensor's element type."""
    value = next(value for value in values if value.name == name)
    return "unknown" if value.dtype is None else str(value.dtype.numpy())
