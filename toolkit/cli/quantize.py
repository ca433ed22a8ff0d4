"""`edgeship quantize`: quantize a float ONNX file to INT8 with calibration images."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, get_args

import click

from edgeship.toolkit.cli._options import JSON, PREPROCESS, Command, SizeType
from edgeship.toolkit.cli._outputs import refuse_inputs
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.errors import GateError, TargetError
from edgeship.toolkit.core.tensors import InputType, Size, preprocess_metadata


@click.command(
    cls=Command,
    former={
        "--int8-sums": "--overflow-fix",
        "--max-drop-pp": "--max-validation-drop-pp",
        "--skip-bad": "--skip-unreadable",
    },
    epilog="""\b
Examples:
  edgeship quantize net.onnx photos/ --target openvino --out net-int8.onnx
  edgeship quantize net.onnx train.zip --target tensorrt --images 500 --out trt.onnx
  edgeship quantize net.onnx photos/ --target onnxruntime --preprocess resize=256 --out q.onnx
  edgeship quantize net.onnx photos/ --target openvino --input uint8 --out pixels.onnx
  edgeship quantize net.onnx photos/ --target tensorrt --min-agreement 0.995 --out trt.onnx
  edgeship quantize net.onnx photos/ --target openvino --overflow-fix pairs --out old-cpus.onnx
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source")
@click.option(
    "--target",
    "target_name",
    required=True,
    metavar="TARGET",
    help="Runtime: openvino, onnxruntime or tensorrt.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="ONNX file to write."
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Number of calibration images.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the image selection.")
@click.option(
    "--observer",
    default="logits",
    show_default=True,
    help="Range estimator: logits, mse, minmax, percentile or entropy.",
)
@click.option(
    "--effort",
    default="balanced",
    show_default=True,
    help="Accuracy against time: fast, balanced or max (minutes).",
)
@click.option(
    "--input",
    "input_type",
    type=click.Choice(get_args(InputType)),
    default="float32",
    show_default=True,
    help="Input of OUT: preprocessed images, or pixels (N, H, W, C) that the graph normalizes.",
)
@click.option(
    "--overflow-fix",
    type=click.Choice(["auto", "exact", "pairs"]),
    default="auto",
    show_default=True,
    help="INT8 accumulation of the target CPU: exact (VNNI), pairs (older x86: int16, may overflow) or "
    "auto (as on this machine).",
)
@click.option(
    "--max-validation-drop-pp",
    type=click.FloatRange(min=0),
    metavar="POINTS",
    help="Limit of the top-1 drop on up to 1000 held-out images of SOURCE, in percentage points; layers "
    "are moved to float until it is met.",
)
@click.option(
    "--min-agreement",
    type=click.FloatRange(0, 1),
    metavar="PART",
    help="Minimum fraction of these images with the top-1 class of the float network; needs no labels.",
)
@click.option("--output", "logits", metavar="NAME", help="Name of the logits, if MODEL has several outputs.")
@click.option(
    "--size", type=SizeType(), help="Fixed input size of OUT in pixels, N or HxW.  [default: as MODEL]"
)
@click.option("--skip-unreadable", is_flag=True, help="Skip unreadable images.")
@PREPROCESS
@JSON
def command(
    *,
    model: Path,
    source: str,
    target_name: str,
    out: Path,
    images: int,
    seed: int,
    observer: str,
    effort: str,
    input_type: InputType,
    overflow_fix: str,
    max_validation_drop_pp: float | None,
    min_agreement: float | None,
    logits: str | None,
    size: Size | None,
    skip_unreadable: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Quantize a float ONNX classifier to INT8.

    MODEL has one input, images (N, C, H, W) or (N, H, W, C), and one output, the logits (N, classes), with or
    without a Softmax; of several outputs, --output selects one. OUT keeps the output of MODEL. Q/DQ nodes are
    placed where the kernels of the target fuse them. SOURCE is a folder, an archive, a CSV list or
    digits:train; labels are needed only for a limit of the top-1 drop.

    With an accuracy limit, layers are moved to float until the limit holds on up to 1000 held-out images.
    Exit code 3: the limit was missed; the file is written nevertheless.
    """
    from edgeship.calibration import manifest
    from edgeship.calibration.datasets import open_dataset
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.graph import io
    from edgeship.toolkit.graph.conversion import check_conversion
    from edgeship.toolkit.graph.input_shape import fix_size
    from edgeship.toolkit.graph.layout import InputForm
    from edgeship.toolkit.graph.pixels import add_pixel_input
    from edgeship.toolkit.pipeline import datasets as pictures
    from edgeship.toolkit.pipeline import mixed_precision, preprocessing, verbs
    from edgeship.toolkit.pipeline.recipe import Recipe

    refuse_inputs(out, model, source)
    limits = {"max_validation_drop_pp": max_validation_drop_pp, "min_agreement": min_agreement}
    table: dict[str, Any] = {
        "select": {"source": source, "images": images, "seed": seed, "skip_unreadable": skip_unreadable},
        "compile": {"targets": [target_name]},
        "quantize": {
            "observer": observer,
            "effort": effort,
            "overflow_fix": overflow_fix,
            **_without_none(limits),
        },
    }
    recipe = Recipe.build(table, [f"load.preprocess.{text}" for text in settings])
    limited = mixed_precision.limited(recipe.quantize)
    graph = io.read_classifier(model, logits)
    stated, asked = recipe.load.preprocess, preprocessing.input_size(graph, size)
    prepared = preprocessing.resolve(stated, graph.preprocess, asked, graph.normalization)
    preprocessing.check_channels(prepared, graph.channels, option="--preprocess ")
    origin = preprocessing.source_of(stated, graph.preprocess, graph.preprocess_source, graph.normalization)
    preprocessing.check_known(input_type, origin, option="--preprocess ")
    check_conversion(graph, prepared.crop)
    if size:
        graph = fix_size(graph, size)
    graph.model.metadata_props.update(preprocess_metadata(prepared, origin))
    dataset = open_dataset(source, use="train")
    with show_progress():
        chosen = manifest.select(dataset, images, seed, skip_bad=skip_unreadable)
        validation = (
            mixed_precision.select_validation_images(recipe, chosen, graph.classes, prepared)
            if limited
            else None
        )
        stream = pictures.stream(dataset, manifest.locate(chosen, dataset), prepared, 8, "calibrating")
        with tempfile.TemporaryDirectory() as folder:
            quantized = out if input_type == "float32" else Path(folder) / out.name
            statistics = verbs.calibrate(graph, stream)
            pixels = prepared if input_type == "uint8" else None
            summary = verbs.quantize(
                graph,
                statistics,
                target_name,
                quantized,
                recipe.quantize,
                validation=validation,
                pixels=pixels,
            )
            _check_runs(summary["runtime_check"], target_name, quantized)
            if quantized != out:
                add_pixel_input(quantized, prepared, out)
    written = InputForm("NHWC", "uint8") if input_type == "uint8" else InputForm()
    summary["input"] = {"file": graph.form, "written": written, "normalization": graph.normalization}
    summary |= {"preprocess": prepared, "preprocess_source": origin}
    notes = preprocessing.notes(graph.form, graph.normalization, prepared, written)
    if origin == "assumed":
        message, hint = preprocessing.assumed_note(prepared, "--preprocess ")
        click.echo(f"note: {message}; {hint}", err=True)
    if as_json:
        click.echo(
            json.dumps(plain({**summary, "warnings": [*notes, *summary.get("warnings", ())]}), indent=1)
        )
    else:
        for warning in (*notes, *summary.get("warnings", ())):
            click.echo(f"note: {warning}", err=True)
        click.echo(out)
    if mixed := summary["mixed"]:
        _check_limit(mixed)


def _check_runs(checked: dict[str, Any] | None, target: str, file: Path) -> None:
    """Raise if the target's runtime rejected the graph.

    Raises:
        TargetError: The runtime rejected the graph; the file is removed.
    """
    if checked and checked["status"] == "refused":
        file.unlink(missing_ok=True)
        raise TargetError(
            f"{target} does not run the quantized graph: {checked['reason']}",
            hint="list the operators with `edgeship inspect graph`, or try another --target",
        )


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
        click.echo(f"note: {limit}: {reached}", err=True)


def _without_none(values: dict[str, float | None]) -> dict[str, float]:
    """Return the options that are set."""
    return {name: value for name, value in values.items() if value is not None}
