"""`edgeship export-jetson`: a folder to carry to a Jetson, with the two commands to type there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.cli._options import JSON

if TYPE_CHECKING:
    from toolkit.core.quant import FloatArray


@click.command(
    epilog="""\b
Examples:
  edgeship export-jetson resnet18-int8.onnx --out orin-nano
  edgeship export-jetson int8.onnx --float float.onnx --jetpack 5.1.2 --module "AGX Orin" --dla 0 --out orin
"""
)
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--module", default="Orin Nano", show_default=True, help="Name of the Jetson module.")
@click.option("--trt", metavar="VERSION", help="TensorRT on it.  [default: from --jetpack]")
@click.option(
    "--jetpack", default="6.2", show_default=True, metavar="VERSION", help="JetPack or L4T version on it."
)
@click.option(
    "--float",
    "plain",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The float ONNX, to build FP16 beside INT8.",
)
@click.option(
    "--images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Preprocessed images for the self-test: .npy, float32, (N, C, H, W).  [default: noise]",
)
@click.option("--dla", "dla_core", type=int, metavar="CORE", help="Also for this DLA core.")
@JSON
def command(
    *,
    model: Path,
    out: Path,
    module: str,
    trt: str | None,
    jetpack: str,
    plain: Path | None,
    images: Path | None,
    dla_core: int | None,
    as_json: bool,
) -> None:
    """Write a folder for a Jetson: MODEL, the runner, golden inputs, and a README with two commands.

    Nothing is built here: an engine runs only on the kind of device, and the version, it was built on.
    """
    from targets.tensorrt import handoff, jetson
    from toolkit.core.artifact import plain as as_plain

    done = handoff.write(
        model,
        out,
        version=trt or jetson.jetpack(jetpack).tensorrt,
        module=module,
        plain=plain,
        images=_images(images) if images is not None else None,
        dla_core=dla_core,
    )
    if as_json:
        click.echo(json.dumps(as_plain(done), indent=1))
        return
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    for name in done.files:
        click.echo(f"  {name}")
    click.echo(f"wrote {done.folder}: its README.md has the commands for the device")


def _images(path: Path) -> FloatArray:
    import numpy as np

    from toolkit.core.errors import DataError

    try:
        values: FloatArray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not an array in .npy form", hint="numpy.save(path, images)") from error
    if getattr(values, "ndim", 0) != 4 or values.dtype != np.float32 or not len(values):
        raise DataError(f"{path} is not float32 (N, C, H, W)", hint="save preprocessed images, N at least 1")
    return values
