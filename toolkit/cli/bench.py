"""`edgeship bench`: measure the latency of ONNX files or of a run's engines."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeship.toolkit.cli._options import JSON, Command, note, recipe_options
from edgeship.toolkit.cli._outputs import OutPath

if TYPE_CHECKING:
    from edgeship.toolkit.core.quant import FloatArray, PixelArray
    from edgeship.toolkit.pipeline.loadgen import Scenario
    from edgeship.toolkit.runs.guarded import GuardedEngine
    from edgeship.toolkit.runs.measured import Latencies

DEFAULT_SIZE = 224  # pixels, if no graph fixes the size
Engines = dict[str, tuple[str, Path]]
Shape = tuple[int | None, int, int | None, int | None]  # batch, channels, height, width; None: dynamic


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  edgeship bench runs/quickstart
  edgeship bench float.onnx int8.onnx --target openvino --threads 2
  edgeship bench net.onnx --target openvino --target onnxruntime --batch 8
  edgeship bench runs/quickstart --loadgen logs --scenario SingleStream
""",
)
@click.argument(
    "paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True, path_type=Path)
)
@recipe_options("compile.targets", text="Runtime of the ONNX files: openvino or onnxruntime; repeatable.")
@recipe_options("bench.batch", "bench.threads", "bench.duration_s", "bench.runs")
@click.option(
    "--loadgen",
    "logs",
    type=OutPath(file_okay=False),
    help="Also time by MLPerf LoadGen (pip install 'edgeship[loadgen]') and write its logs into this folder.",
)
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(["SingleStream", "MultiStream", "Offline"]),
    help="Scenario of --loadgen; repeatable.  [default: all]",
)
@click.option(
    "--loadgen-duration-s",
    "loadgen_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Shortest duration of a scenario; MLCommons' checker refuses less than 600.",
)
@JSON
def command(
    *,
    paths: tuple[Path, ...],
    options: dict[str, Any],
    logs: Path | None,
    scenarios: tuple[Scenario, ...],
    loadgen_s: float,
    as_json: bool,
) -> None:
    """Measure latency on this machine.

    PATH is an ONNX file (name its --target) or a folder written by `edgeship run --out`. All networks are
    timed in one process, in interleaved turns, so that background load affects all of them alike. Latencies
    are printed in milliseconds; the last column is the ratio to the median of the first row. With a guarded
    variant all are timed on the evaluation images of its run, else on noise; --loadgen leaves it out.
    """
    from edgeship.toolkit.cli._progress import show_progress
    from edgeship.toolkit.core.artifact import plain
    from edgeship.toolkit.pipeline import verbs
    from edgeship.toolkit.pipeline.recipe import Recipe

    names = options.get("compile.targets", ())
    how = Recipe.build({}, {**options, "bench.throughput_s": 0.0}).bench
    with tempfile.TemporaryDirectory() as folder, show_progress():
        engines: Engines = {}
        guards: dict[str, GuardedEngine] = {}
        streams: list[Path] = []
        shapes: dict[str, Shape] = {}
        for label, path in _labels(paths).items():
            compiled, shapes[label] = (
                _of_run(path) if path.is_dir() else _compiled(path, names, Path(folder) / str(len(shapes)))
            )
            prefix = f"{label}:" if len(paths) > 1 else ""
            engines |= {f"{prefix}{name}": engine for name, engine in compiled.items()}
            if path.is_dir() and (guarded := _guards_of(path, prefix)):
                guards |= guarded
                streams.append(path)
        images = _noise(how, _common(shapes))
        stream = _traffic(streams[0]) if streams else None
        measured, results = verbs.benchmark(how, engines, images, guarded=guards, traffic=stream), []
        if logs is not None:
            from edgeship.toolkit.pipeline import loadgen

            shape, wanted = images.shape, scenarios or loadgen.SCENARIOS
            results = loadgen.measure(engines, shape, wanted, logs, threads=how.threads, duration_s=loadgen_s)
    if as_json:
        click.echo(json.dumps(plain(measured) | ({"loadgen": plain(results)} if results else {}), indent=1))
        return
    click.echo(_table(measured), nl=False)
    for each in results:
        state = "valid" if each.valid else "INVALID (see its summary)"
        short = "" if each.official else ", shorter than the official 600 s"
        click.echo(
            f"{each.engine}  {each.scenario}  {each.unit} {each.value:.3f}  {state}{short}: {each.folder}"
        )


def _labels(paths: Sequence[Path]) -> dict[str, Path]:
    """Return label -> path; a label is the shortest trailing part of a path that is unique.

    Raises:
        RecipeError: A path occurs twice.
    """
    from edgeship.toolkit.core.errors import RecipeError

    places = [Path(os.path.normpath(path.absolute())).parts for path in paths]
    labels = {}
    for path, parts in zip(paths, places, strict=True):
        if places.count(parts) > 1:
            raise RecipeError(f"{path} occurs twice, expected once", hint="name each file or folder once")
        ends = (parts[-count:] for count in range(1, len(parts) + 1))
        end = next(end for end in ends if sum(other[-len(end) :] == end for other in places) == 1)
        labels[str(Path(*end))] = path
    return labels


def _of_run(out: Path) -> tuple[Engines, Shape]:
    """Return the engines of a finished run and their input shape."""
    from edgeship.toolkit.runs.compiled import engines
    from edgeship.toolkit.runs.index import RunIndex
    from edgeship.toolkit.runs.network import ExportedGraphs

    folders = RunIndex.read(out).folders
    graphs = ExportedGraphs.read(folders["export"])
    shape = (graphs.batch, len(graphs.preprocess.mean), *graphs.preprocess.sides)
    return engines(folders), shape


def _guards_of(out: Path, prefix: str) -> dict[str, GuardedEngine]:
    """Return the guarded variants of a finished run, with a prefix before all names."""
    from edgeship.toolkit.runs.guarded import GuardedEngine, guarded_engines
    from edgeship.toolkit.runs.index import RunIndex

    return {
        f"{prefix}{name}": GuardedEngine(f"{prefix}{each.fast}", f"{prefix}{each.reference}", each.threshold)
        for name, each in guarded_engines(RunIndex.read(out).folders).items()
    }


def _traffic(out: Path) -> FloatArray | PixelArray:
    """Return the evaluation images of a finished run as inputs of its engines."""
    from edgeship.toolkit.pipeline import datasets, guarding
    from edgeship.toolkit.runs.compiled import float_engines
    from edgeship.toolkit.runs.index import RunIndex
    from edgeship.toolkit.runs.network import ExportedGraphs

    index = RunIndex.read(out)
    dataset = datasets.open_validation(index.option("evaluate.source", str), None)
    how = ExportedGraphs.read(index.folders["export"]).preprocess
    return guarding.traffic(dataset, how, pixels=bool(float_engines(index.folders)))


def _compiled(file: Path, names: tuple[str, ...], folder: Path) -> tuple[Engines, Shape]:
    """Compile an ONNX file for the named targets; return the engines and their input shape."""
    from edgeship import targets
    from edgeship.toolkit.core.errors import RecipeError
    from edgeship.toolkit.graph import io
    from edgeship.toolkit.graph.layout import InputForm

    graph = io.read(file)
    if not names:
        raise RecipeError(f"{file.name} needs a target", hint="--target openvino or --target onnxruntime")
    if not graph.quantized and graph.form not in (InputForm(), InputForm("NHWC", "uint8")):
        planes = folder / "planes.onnx"  # input forms of sessions: float32 (N, C, H, W) or uint8 (N, H, W, C)
        note(f"{file.name} takes {graph.form}; timed as {InputForm()}")
        io.save(io.read_classifier(file).model, planes)
        file = planes
    engines = {}
    for name in names:
        built = targets.get(name).compile(file, folder / name, "int8" if graph.quantized else "fp32")
        if not built.runs_here:
            raise RecipeError(
                f"{name} does not run on this machine",
                hint="`edgeship deploy RUN --device NAME` measures it on a device",
            )
        engines[name] = (name, folder / name / built.file)
    return engines, (graph.batch, graph.channels, graph.height, graph.width)


def _common(shapes: Mapping[str, Shape]) -> Shape:
    """Return the input shape that all networks accept.

    Raises:
        RecipeError: There is none.
    """
    from edgeship.toolkit.core.errors import RecipeError

    fixed = [{size for size in sizes if size is not None} for sizes in zip(*shapes.values(), strict=True)]
    if any(len(sizes) > 1 for sizes in fixed):
        listed = "; ".join(f"{label} takes {_shape_text(shape)}" for label, shape in shapes.items())
        raise RecipeError(
            f"the networks have no common input shape: {listed}",
            hint="export them with the same batch, channels and size, or time them in separate commands",
        )
    batch, channels, height, width = (max(sizes, default=None) for sizes in fixed)
    return batch, channels or 0, height, width


def _shape_text(shape: Shape) -> str:
    batch, channels, *area = shape
    pixels = "of any size" if None in area else f"of {area[0]} x {area[1]} pixels"
    return f"batches of {batch or 'any number'}, {channels} channel{'s' * (channels > 1)} {pixels}"


def _noise(options: Any, shape: Shape) -> FloatArray:
    import numpy as np

    from edgeship.toolkit.pipeline.measure import bench_batch

    batch, channels, height, width = shape
    area = (height or width or DEFAULT_SIZE, width or height or DEFAULT_SIZE)
    count = bench_batch(options, batch)
    return np.random.default_rng(0).normal(size=(count, channels, *area)).astype(np.float32)


def _table(measured: Latencies) -> str:
    from edgeship.toolkit.core.statistics import percentile

    rows = measured.variants
    width = max(map(len, rows))
    lines = [f"{'':<{width}}   p50 ms   p90 ms   p99 ms  mean ms   runs   of first"]
    first = None
    for name, row in rows.items():
        samples = row.samples_ms
        middle = percentile(samples, 50)
        first = first or middle
        figures = (middle, percentile(samples, 90), percentile(samples, 99), sum(samples) / len(samples))
        text = " ".join(f"{figure:8.3f}" for figure in figures)
        warning = f"  {row.warning}" if row.warning else ""
        if row.rerun_share is not None:
            warning = f"  {100 * row.rerun_share:.2f} % ran twice{warning and ';'}{warning}"
        lines.append(f"{name:<{width}} {text} {len(samples):6d} {middle / first:9.3f}x{warning}")
    lines.append(f"batch {measured.batch}, {measured.threads} thread(s); {measured.included}")
    return "\n".join(lines) + "\n"
