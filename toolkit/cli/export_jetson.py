"""`edgeship export-jetson`: a folder to carry to a Jetson, with the two commands to type there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeship.toolkit.cli._options import JSON

if TYPE_CHECKING:
    from edgeship.toolkit.core.quant import FloatArray, PixelArray


@click.command(
    epilog="""\b
Examples:
  edgeship export-jetson runs/main --out orin-nano
  edgeship export-jetson runs/main --jetpack 5.1.2 --module "AGX Orin" --dla 0 --out orin
  edgeship export-jetson int8.onnx --float float.onnx --images calibration.npy --out orin-nano
"""
)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--module", default="Orin Nano", show_default=True, help="Name of the Jetson module.")
@click.option("--trt", metavar="VERSION", help="TensorRT on it.  [default: from --jetpack]")
@click.option(
    "--jetpack", metavar="VERSION", help="JetPack or L4T version on it.  [default: the module's newest]"
)
@click.option(
    "--float",
    "plain",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The float ONNX, to build FP16 beside INT8.  [default: of a run, its own]",
)
@click.option(
    "--images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Preprocessed images, for the self-test and the DLA's ranges: .npy, float32, (N, C, H, W); of a "
    "graph that takes pixels uint8, (N, H, W, C).  [default: of a run, what calibrated it; else noise]",
)
@click.option(
    "--dla",
    "dla_core",
    type=click.IntRange(0),
    metavar="CORE",
    help="Also for this DLA core: graph without Q/DQ, calibration cache, layers that stay FP16.",
)
@JSON
def command(
    *,
    model: Path,
    out: Path,
    module: str,
    trt: str | None,
    jetpack: str | None,
    plain: Path | None,
    images: Path | None,
    dla_core: int | None,
    as_json: bool,
) -> None:
    """Write a folder for a Jetson: MODEL, the runner, golden inputs, and a README with two commands.

    MODEL is an ONNX file, or a folder written by `edgeship run --out`: its INT8 graph for TensorRT, pruned if
    the run pruned. Nothing is built here: an engine runs only on the kind of device, and the version, it was
    built on.
    """
    from edgeship.targets.tensorrt import jetson, jetson_folder
    from edgeship.toolkit.core.artifact import plain as as_plain

    version = jetson.choose(jetson.module(module), jetpack=jetpack, tensorrt=trt)
    given = _images(images) if images is not None else None
    if model.is_dir():
        model, float_of_run, calibration = _of_run(model, ready=dla_core is not None)
        plain, given = plain or float_of_run, given if given is not None else calibration
    done = jetson_folder.write(
        model, out, version=version, module=module, plain=plain, images=given, dla_core=dla_core
    )
    if as_json:
        click.echo(json.dumps(as_plain(done), indent=1))
        return
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    for name in done.files:
        click.echo(f"  {name}")
    click.echo(f"wrote {done.folder}: its README.md has the commands for the device")


def _of_run(out: Path, *, ready: bool) -> tuple[Path, Path, FloatArray | None]:
    """A finished run's INT8 graph for TensorRT, the float one it was made from, and calibration images.

    `ready`: both take ready images, even if the run's engines take pixels.
    """
    from edgeship.quantization.statistics import Statistics
    from edgeship.toolkit.core.artifact import read_json
    from edgeship.toolkit.core.errors import DataError
    from edgeship.toolkit.pipeline.graphs import quantized_name
    from edgeship.toolkit.pipeline.publish import read_run

    folders = {stage["name"]: Path(stage["folder"]) for stage in read_run(out)["stages"]}
    if not {"export", "calibrate", "quantize"} <= set(folders):
        raise DataError(f"{out} has no INT8 graphs", hint="run the recipe to its end, or to --until quantize")
    pruned = (folders["export"] / "pruned.onnx").is_file()
    model = folders["quantize"] / f"{quantized_name('tensorrt', pruned=pruned)}.onnx"
    if not model.is_file():
        raise DataError(
            f"{out} has no graph for TensorRT",
            hint="run it with --set compile.targets=tensorrt (the others may stand beside it)",
        )
    name = "pruned" if pruned else "float"
    compiled = {} if ready or "compile" not in folders else read_json(folders["compile"] / "compiled.json")
    pixels = [
        compiled.get(quantized_name(f"tensorrt-{precision}", pruned=pruned), {}).get("graph")
        for precision in ("int8", "fp32")
    ]
    if all(pixels):
        return folders["compile"] / pixels[0], folders["compile"] / pixels[1], None
    seen = Statistics.load(folders["calibrate"] / name).probe
    return model, folders["export"] / f"{name}.onnx", seen


def _images(path: Path) -> FloatArray | PixelArray:
    import numpy as np

    from edgeship.toolkit.core.errors import DataError

    try:
        values: FloatArray | PixelArray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not an array in .npy form", hint="numpy.save(path, images)") from error
    if getattr(values, "ndim", 0) != 4 or values.dtype not in (np.float32, np.uint8) or not len(values):
        raise DataError(
            f"{path} is neither float32 (N, C, H, W) nor uint8 (N, H, W, C)",
            hint="save preprocessed images, or pixels for a graph that takes these; N at least 1",
        )
    return values
