"""`edgeship predict`: classify images with an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeship.toolkit.cli._options import JSON, Command
from edgeship.toolkit.core.text import printable


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  edgeship predict runs/r18 photo.jpg
  edgeship predict runs/r18 photos/ --variant onnxruntime-int8 --json
  edgeship predict net-int8.onnx 'camera/*.png' --top 1
  cat photo.jpg | edgeship predict runs/r18/engines/openvino/openvino-int8 -
""",
)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--variant",
    metavar="NAME",
    help="Variant of a run or a bundle.  [default: an INT8 engine of this machine]",
)
@click.option(
    "--top",
    type=click.IntRange(1, 10**6),
    default=5,
    show_default=True,
    help="Number of classes for each image.",
)
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads.  [default: all]")
@JSON
def command(
    *, path: Path, images: tuple[str, ...], variant: str | None, top: int, threads: int | None, as_json: bool
) -> None:
    """Classify images; print the most probable classes with their probabilities.

    PATH is the folder of a run, an engine folder of it, a bundle (.tar), model.xml of OpenVINO, or an ONNX
    file. IMAGE is an image file, a folder, a pattern, or - for standard input. The images are preprocessed
    as for calibration.
    """
    from edgeship.targets.runner.classifier import Classifier
    from edgeship.targets.runner.classify import classify
    from edgeship.targets.runner.failures import Failure
    from edgeship.toolkit.api.classifier import engine_at, is_simulated
    from edgeship.toolkit.core.errors import DataError, missing

    try:
        with engine_at(path, variant) as engine, Classifier(engine, threads=threads) as classifier:
            if is_simulated(engine):
                click.echo(f"{engine.name}: simulated, its graph runs in ONNX Runtime", err=True)
            failed = classify(classifier, images, top=top, as_json=as_json, write=_echo)
            if (guard := classifier.guard) is not None and guard["images"]:
                click.echo(_guard_note(guard), err=True)
    except Failure as failure:
        if failure.code == "engine-missing":
            message = f"no engine at {path}: expected a run, an engine of it, a bundle, or an ONNX file"
            hint = "make engines of a model with `edgeship run MODEL --data FOLDER`"
            raise missing(DataError(message, hint=hint)) from failure
        cure = failure.cure
        if failure.code == "description-missing":
            cure = "`edgeship quantize` and `edgeship run` write it: quantize the model, or name a run"
        error = DataError(f"{failure} ({failure.cause})", hint=cure)
        raise (missing(error) if failure.code == "image-missing" else error) from failure
    if failed:
        raise DataError(
            f"{failed} {'image was' if failed == 1 else 'images were'} not classified",
            hint="replace or remove the files named above",
        )


def _guard_note(guard: dict[str, Any]) -> str:
    """Return what a guard did, against its promise."""
    text = (
        f"guard: {guard['rerun']} of {guard['images']} images ran again in {guard['reference'].upper()} "
        f"({100 * guard['rerun_share']:.2g} %, promised {100 * guard['promised_rerun_share']:.2g} %), "
        f"{guard['changed']} got another class"
    )
    unlike = "; they are of another kind than the images of its threshold: its bound does not hold for them"
    return text + unlike * bool(guard["differs"])


def _echo(line: str) -> None:
    click.echo(printable(line))  # names of files and classes
