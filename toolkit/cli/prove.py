"""`edgeship prove`: compare an application with the engine, and name its fault."""

from __future__ import annotations

from pathlib import Path

import click

from edgeship.toolkit.cli._options import JSON, Command
from edgeship.toolkit.cli._outputs import OutPath


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  edgeship prove runs/r18 --write-images golden/
  edgeship prove runs/r18 --images golden/ --outputs mine.jsonl
  edgeship prove runs/r18 --command './my-app --print-logits {image}'
  edgeship prove runs/r18 --images golden/ --tensors dumped/

\b
mine.jsonl has one line for each image, with one of three forms:
  {"image": "0000.jpg", "logits": [-1.3, 4.2, 0.7]}
  {"image": "0000.jpg", "probabilities": [0.004, 0.967, 0.029]}
  {"image": "0000.jpg", "class": "cat"}
""",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--outputs", metavar="FILE", type=click.Path(path_type=Path), help="JSON lines of the application."
)
@click.option(
    "--command",
    metavar="TEXT",
    help="Run the application, without a shell: {image} stands for the path of an image, {folder} for the "
    "folder of all.",
)
@click.option(
    "--tensors",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Tensors that the application fed: NAME.npy, or NAME.bin of float32, for each image.",
)
@click.option(
    "--write-images",
    metavar="FOLDER",
    type=OutPath(file_okay=False),
    help="Write golden images, to show to the application, and exit.",
)
@click.option(
    "--images",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Images that the application was shown.  [default: golden images of the run]",
)
@click.option(
    "--variant", metavar="NAME", help="Variant of the run.  [default: an INT8 engine of this machine]"
)
@click.option(
    "--count", type=click.IntRange(min=1), default=100, show_default=True, help="Number of golden images."
)
@click.option(
    "--cost-images",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Evaluation images on which the cost of a fault is measured.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="Time for one call of --command.",
)
@JSON
def command(
    *,
    run: Path,
    outputs: Path | None,
    command: str | None,
    tensors: Path | None,
    write_images: Path | None,
    images: Path | None,
    variant: str | None,
    count: int,
    cost_images: int,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Prove that an application sees the pixels of the report, or name its fault.

    Shows images to the application, compares its logits, probabilities, classes or input tensors with those
    of the engine, and searches a catalogue of faults for the one that explains a difference: channel order,
    value range, mean and std, memory order, resize filter, crop, EXIF orientation, video range, JPEG decoder,
    softmax, class order, half precision. Prints the line to change, and the accuracy that the fault costs on
    evaluation images. RUN is the folder of a run, or with --images also an engine.

    Exit code 3: a fault was found, the outputs differ for another reason, or the classes of these images do
    not decide.
    """
    import json

    from edgeship.toolkit.api import prove as api
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.core.errors import GateError
    from edgeship.toolkit.prove.proof import as_text

    ways = [each for each in (outputs, command, tensors, write_images) if each is not None]
    if len(ways) != 1:
        raise click.UsageError("give exactly one of --outputs, --command, --tensors and --write-images")
    if write_images is not None:
        written = api.golden_images(run, write_images, count=count, variant=variant)
        if as_json:
            click.echo(json.dumps({"images": [str(path) for path in written]}, indent=1))
        else:
            click.echo(
                f"{len(written)} images in {write_images}; the form of the answers is in example.jsonl"
            )
            click.echo(f"next:    edgeship prove {run} --images {write_images} --outputs mine.jsonl")
        return
    with show_progress():
        proof = api.prove(
            run, outputs, command=command, tensors=tensors, images=images, variant=variant, count=count,
            cost_images=cost_images, timeout_s=timeout_s,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(plain(proof), indent=1))
    else:
        for line in as_text(proof):
            click.echo(line)
    if not proof.proved:
        fault = proof.faults[0].title if proof.faults else "no fault of the catalogue"
        hint = "change the application, and prove it again"
        if proof.verdict == "undecided":
            hint = "show more images, or give logits in place of classes"
        raise GateError(f"{run}: {proof.verdict}: {fault}", hint=hint)
