"""`edgeship export-jetson`: write a folder with graph, runner and commands for a Jetson."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import JSON, Command, recipe_options
from edgeship.toolkit.cli._outputs import OutPath

if TYPE_CHECKING:
    from edgeship.toolkit.core.quant import FloatArray, PixelArray
    from edgeship.toolkit.core.results import Precision


@click.command(
    cls=Command,
    former={"--images": "--data"},
    epilog="""\b
Examples:
  edgeship export-jetson runs/main --out orin-nano
  edgeship export-jetson runs/main --module "AGX Orin" --jetpack 5.1.2 \\
      --dla 0 --out orin
  edgeship export-jetson int8.onnx --float float.onnx --data calibration.npy \\
      --out orin-nano
""",
)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=OutPath(file_okay=False), help="Folder to write.")
@click.option(
    "--module", default="Orin Nano", show_default=True, help="Jetson module, e.g. 'Orin Nano' or 'AGX Orin'."
)
@recipe_options("compile.jetpack", "compile.tensorrt")
@click.option(
    "--float",
    "plain",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Float ONNX file, to build an FP16 engine for comparison.  [default: that of the run]",
)
@click.option(
    "--data",
    "images",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Preprocessed images for self-test and DLA calibration: .npy, float32 (N, C, H, W), or uint8 "
    "(N, H, W, C) for a graph with pixel input.  [default: calibration images of the run, else noise]",
)
@click.option(
    "--dla",
    "dla_core",
    type=click.IntRange(0, 7),
    metavar="CORE",
    help="Also write the files for this DLA core: graph without Q/DQ, calibration cache, FP16 layers.",
)
@JSON
def command(
    *,
    model: Path,
    out: Path,
    module: str,
    options: dict[str, Any],
    plain: Path | None,
    images: Path | None,
    dla_core: int | None,
    as_json: bool,
) -> None:
    """Write a folder to copy to a Jetson.

    MODEL is an ONNX file, or a folder written by `edgeship run --out`, of which the INT8 graph for TensorRT
    is taken, for a module without INT8 (Nano, TX2) the float graph, built in FP16 (the pruned one if the run
    pruned). The folder has the graph, the runner, golden inputs and a
    README.md with the two commands to run on the Jetson. The engine is built there, because a TensorRT engine
    runs only on the GPU type and TensorRT version that it was built with.
    """
    from edgeship.targets.tensorrt import jetson, jetson_folder
    from edgeship.toolkit.core.artifact import plain as as_plain
    from edgeship.toolkit.pipeline.recipe import Recipe

    device = Recipe.build({}, options).compile
    version = jetson.choose(jetson.module(module), jetpack=device.jetpack, tensorrt=device.tensorrt)
    samples = _images(images) if images is not None else None
    float8 = None
    if model.is_dir():
        has = jetson.module(module).precisions
        model, float_of_run, float8, calibration = _of_run(model, ready=dla_core is not None, has=has)
        plain, samples = plain or float_of_run, samples if samples is not None else calibration
    done = jetson_folder.write(
        model,
        out,
        version=version,
        module=module,
        plain=plain,
        float8=float8,
        images=samples,
        dla_core=dla_core,
    )
    if as_json:
        click.echo(json.dumps(as_plain(done), indent=1))
        return
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    for name in done.files:
        click.echo(f"  {name}")
    click.echo(f"wrote {done.folder}; see README.md there for the commands to run on the device")


def _of_run(
    out: Path, *, ready: bool, has: tuple[Precision, ...]
) -> tuple[Path, Path | None, Path | None, FloatArray | None]:
    """Return the INT8 graph for TensorRT of a run, its float and FP8 graphs to compare, calibration images.

    Args:
        out: Folder of the run.
        ready: Return graphs with float32 input even if the run's engines have pixel input.
        has: Precisions of the module; without INT8 the float graph is the one to build, in FP16.
    """
    from edgeship.quantization.statistics import Statistics
    from edgeship.toolkit.core.errors import DataError
    from edgeship.toolkit.runs.compiled import CompiledVariants
    from edgeship.toolkit.runs.index import RunIndex
    from edgeship.toolkit.runs.variant_id import VariantId

    folders = RunIndex.read(out).folders
    int8 = "int8" in has
    if not {"export", "calibrate", *(["quantize"] if int8 else [])} <= set(folders):
        raise DataError(
            f"{out} has no {'INT8' if int8 else 'float'} graphs",
            hint="run the recipe without --until, or with --until quantize",
        )
    pruned = (folders["export"] / "pruned.onnx").is_file()
    first = VariantId("tensorrt", "int8" if int8 else "fp16", pruned)
    fp32, fp8 = VariantId("tensorrt", "fp32", pruned), VariantId("tensorrt", "fp8", pruned)
    model = first.graph(folders)
    if not model.is_file():
        raise DataError(
            f"{out} has no graph for TensorRT", hint="run the recipe with --set compile.targets=tensorrt"
        )
    if not ready and "compile" in folders:
        built = CompiledVariants.read(folders["compile"]).built()
        pixels = {
            v: folders["compile"] / each.graph
            for v in (first, fp32, fp8)
            if (each := built.get(v)) and each.graph
        }
        if first in pixels and fp32 in pixels:
            eight = pixels.get(fp8) if "fp8" in has else None
            return pixels[first], pixels[fp32] if int8 else None, eight, None
    probe = Statistics.load(folders["calibrate"] / fp32.float_graph).probe
    eight = fp8.graph(folders) if "fp8" in has and "quantize" in folders else None
    return (
        model,
        fp32.graph(folders) if int8 else None,
        eight if eight is not None and eight.is_file() else None,
        probe,
    )


def _images(path: Path) -> FloatArray | PixelArray:
    import numpy as np

    from edgeship.toolkit.core.errors import DataError

    try:
        values: FloatArray | PixelArray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} is not an .npy array", hint="write it with numpy.save(path, images)"
        ) from error
    if getattr(values, "ndim", 0) != 4 or values.dtype not in (np.float32, np.uint8) or not len(values):
        form = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else "not one array"
        raise DataError(
            f"{path} is {form}, expected float32 (N, C, H, W) or uint8 (N, H, W, C)",
            hint="save preprocessed images, or pixels for a graph with pixel input",
        )
    return values
