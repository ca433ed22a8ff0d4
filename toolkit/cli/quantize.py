"""`edgeship quantize`: quantize a float model to INT8 with calibration images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import (
    JSON,
    PREPROCESS,
    Command,
    data_argument,
    note,
    own_words,
    recipe_options,
)
from edgeship.toolkit.cli._outputs import OutPath, refuse_inputs
from edgeship.toolkit.core.errors import GateError


@click.command(
    cls=Command,
    former={"--skip-bad": "--skip-unreadable", "--max-drop-pp": "--max-drop"},
    epilog="""\b
Examples:
  edgeship quantize net.onnx photos/ --target openvino --out net-int8.onnx
  edgeship quantize resnet18.pth train.zip --target tensorrt --out trt.onnx
  edgeship quantize net.onnx photos/ --target onnxruntime --out q.onnx \\
      --preprocess resize=256
  edgeship quantize net.onnx photos/ --target openvino --out pixels.onnx \\
      --input uint8
  edgeship quantize net.onnx photos/ --target tensorrt --out trt.onnx \\
      --min-agreement 0.995
  edgeship quantize net.onnx photos/ --target openvino --out old-cpus.onnx \\
      --overflow-fix pairs
""",
)
@click.argument("model")
@data_argument("source")
@recipe_options("select.source", needed=("select.source",))
@recipe_options(
    "compile.targets",
    needed=("compile.targets",),
    text="Runtime that OUT is for: openvino, onnxruntime or tensorrt.  [required]",
)
@click.option("--out", required=True, type=OutPath(dir_okay=False), help="ONNX file to write.")
@recipe_options(
    "select.images",
    text="Number of calibration images.  [default: 300, or four fifths of fewer images]",
)
@recipe_options(
    "select.seed",
    "select.skip_unreadable",
    "quantize.effort",
    "quantize.observer",
    "quantize.weight_rounding",
    "quantize.bias_correction",
    "quantize.overflow_fix",
    "quantize.float_layers",
    "quantize.max_validation_drop_pp",
    "quantize.min_agreement",
    "quantize.validation_images",
    "export.input",
    "export.size",
    "load.output",
    "compile.jetpack",
    "compile.tensorrt",
)
@PREPROCESS
@JSON
@click.option("--histograms", is_flag=True, help="Include the histograms of all activations in --json.")
def command(*, model: str, options: dict[str, Any], out: Path, as_json: bool, histograms: bool) -> None:
    """Quantize a float classifier to INT8, and compare it with the float one on held-out images.

    MODEL is an ONNX file, a ResNet checkpoint or a recipe. An ONNX file has one input, images (N, C, H, W) or
    (N, H, W, C), and one output, the logits (N, classes), with or without a Softmax; of several outputs,
    --output selects one. OUT keeps the output of MODEL. Q/DQ nodes are placed where the kernels of the target
    fuse them. SOURCE (or --data) is a folder, an archive, a CSV list or digits:train; labels are needed only
    for a limit of the top-1 drop.

    With an accuracy limit, layers are moved to float until the limit holds on up to 1000 held-out images.
    Exit code 3: the limit was missed; the file is written nevertheless.
    """
    from edgeship.toolkit.api.quantize import quantize_by
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.pipeline.recipe import Recipe

    recipe = Recipe.build({}, options)
    if len(recipe.compile.targets) != 1:
        raise click.UsageError(f"OUT is for one target, got {', '.join(recipe.compile.targets)}")
    source = recipe.select.source
    refuse_inputs(out, model, source)
    with show_progress():
        result = quantize_by(recipe, model, source, calibration_images=options.get("select.images"))
    result.save(out)
    for warning in result.warnings:
        note(warning)
    if as_json:
        content = result.to_json(histograms=histograms)
        content["warnings"] = [own_words(text) for text in content["warnings"]]
        click.echo(json.dumps(content, indent=1))
    else:
        click.echo(result.summary(notes=False))
        click.echo(f"file        {out}")
        timed = result.measured_on == "this machine" and model.endswith(".onnx")
        command = f"bench {model} {out}" if timed else f"audit {out}"
        click.echo(f"next        edgeship {command} --target {result.target}")
    if mixed := result.details["mixed"]:
        _check_limit(mixed)


def _check_limit(mixed: dict[str, Any]) -> None:
    """Print the accuracy reached if no layer had to run in float.

    Raises:
        GateError: The accuracy limit was missed.
    """
    limit = f"{mixed['limit']} = {mixed['value']:g}"
    if not mixed["met"]:
        raise GateError(
            f"{limit} is missed: {mixed['reached']:.4g} on {mixed['images']} images",
            hint="more layers in float did not help; the file was written nevertheless",
        )
    if not mixed["layers"]:
        reached = f"{mixed['reached']:.4g} on {mixed['images']} images, every layer in INT8"
        note(f"{limit}: {reached}")
