"""Folder to copy to a Jetson: graphs, runner, golden inputs, and a README with the commands."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeship.targets import onnxruntime, runner
from edgeship.targets.tensorrt import builder, dla, fp16_graph, jetson, repair, tuner, versions
from edgeship.targets.tensorrt.builder import BuildOptions
from edgeship.toolkit.core.artifact import sha256_file, write_bytes, write_json, write_text
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.graph.load import load_unchanged
from edgeship.toolkit.graph.query import QUANTIZE

NOISE_IMAGES = 8
GOLDEN_IMAGES = 32  # at most
RUNNER_FROM = (8, 5)  # the runner reads tensors by name, and needs Python 3.8


@dataclass(frozen=True, slots=True)
class Handoff:
    """Folder that was written.

    Attributes:
        folder: Its path.
        files: Names inside, sorted.
        warnings: Findings of the linter and of the DLA.
    """

    folder: Path
    files: tuple[str, ...]
    warnings: tuple[str, ...]


def write(
    model: Path,
    out: Path,
    *,
    version: str,
    module: str,
    plain: Path | None = None,
    float8: Path | None = None,
    images: FloatArray | PixelArray | None = None,
    dla_core: int | None = None,
) -> Handoff:
    """Write the folder; it appears when it is complete.

    Args:
        model: The Q/DQ graph (or a float one, to run in FP16).
        out: Folder to make; it must not exist, or be empty.
        version: TensorRT version on the device.
        module: Name of the Jetson module.
        plain: The float graph, to build and compare FP16 too.
        float8: The FP8 graph, to build and compare it too.
        images: (N, C, H, W) preprocessed images, or uint8 (N, H, W, C) of a graph that takes pixels: some for
            the self-test, all for the DLA's scales of tensors without Q/DQ; None tests with noise, and leaves
            layers without a scale in FP16 on the DLA.
        dla_core: DLA core to write files for; None writes none.

    Raises:
        DataError: `out` has something in it, or the images do not fit the network, or the DLA.
        DeviceError: The module computes no INT8, or has no such TensorRT or DLA core.
        TargetError: The graph breaks a rule of that TensorRT.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not an empty folder", hint="choose another --out, or remove it")
    board = jetson.module(module)
    version = jetson.choose(board, tensorrt=version)
    known = versions.rules(version)
    if dla_core is not None and _takes_pixels(model):
        raise DataError(
            f"{model} takes uint8 pixels, which a DLA cannot normalize",
            hint="give the graph with a float32 input for a DLA",
        )
    graphs = {_precision(model): model}
    if "int8" in graphs:
        jetson.require_int8(board)
    if plain is not None:
        if _takes_pixels(plain) != _takes_pixels(model):
            raise DataError(
                f"of {model} and {plain} one takes uint8 pixels, the other ready images",
                hint="give both in one form: the self-test has one set of images",
            )
        graphs["fp16"] = plain
    if float8 is not None:
        graphs["fp8"] = float8
    if "fp8" in graphs:
        jetson.require_fp8(board.name, version)
    warnings: list[str] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:24]}.", dir=out.parent) as scratch:
        for precision, graph in graphs.items():
            graphs[precision] = Path(scratch) / f"{precision}.onnx"
            fitted = repair.fit(graph, version, graphs[precision])
            warnings += [f"{graph.name}: {fitted.note}"] if fitted.note else []
            warnings += [f"{finding.node}: {finding.message}" for finding in fitted.findings]
        folder = Path(scratch) / "out"
        folder.mkdir()
        plans: dict[str, dict[str, Any]] = {
            precision: _graph(graph, folder, precision, version) for precision, graph in graphs.items()
        }
        write_bytes(folder / runner.FILE_NAME, runner.source())
        tested, logits = _golden(model, folder / "golden", images)
        if dla_core is not None:
            ready: Any = images  # never pixels, as checked above
            bundle = dla.write(
                next(iter(graphs.values())),
                folder / "dla",
                module=module,
                version=version,
                images=ready,
                core=dla_core,
            )
            warnings.extend(f"{item.node}: {item.message}" for item in bundle.findings)
            if bundle.half_layers:
                warnings.append(
                    f"{len(bundle.half_layers)} layers have no scale and run in FP16 on the DLA, first "
                    f"{bundle.half_layers[0]}: give calibration images"
                )
            arguments = tuple(item.replace(f"={dla.CACHE}", f"=dla/{dla.CACHE}") for item in bundle.trtexec)
            plans["dla"] = {
                "graph": f"dla/{bundle.graph}",
                "half_layers": bundle.half_layers,
                "trtexec": _command(arguments, f"dla/{bundle.graph}"),
                "dla_core": dla_core,
                "notes": bundle.notes,
            }
        readme = _readme(board.name, known, plans)
        if tuner.available(known.version):
            readme += _tuning(model, next(iter(plans.values())), tested, logits, folder)
        write_text(folder / "README.md", readme)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        manifest = {
            "schema": 1,
            "module": board.name,
            "sm": board.sm,
            "tensorrt": version,
            "builds": plans,
            "files": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
        }
        write_json(folder / "manifest.json", manifest)
        if out.exists():
            out.rmdir()
        shutil.move(str(folder), str(out))
    names = tuple(sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()))
    return Handoff(out, names, tuple(warnings))


def _precision(model: Path) -> Precision:
    graph = load_unchanged(model).graph
    if any(value.dtype == ir.DataType.FLOAT8E4M3FN for value in graph.initializers.values()):
        return "fp8"
    return "int8" if any(node.op_type == QUANTIZE for node in graph) else "fp16"


def _takes_pixels(model: Path) -> bool:
    return load_unchanged(model).graph.inputs[0].dtype == ir.DataType.UINT8


def _graph(model: Path, folder: Path, precision: Precision, version: str) -> dict[str, Any]:
    """Copy one graph with the types for the version, and return its build record."""
    strong = precision == "fp8" or versions.rules(version).strongly_typed in ("recommended", "always")
    name = f"model-{precision}.onnx"
    if strong:
        fp16_graph.to_half(model, folder / name)
    else:
        shutil.copyfile(model, folder / name)
    options = BuildOptions(precision=precision, half_typed=strong, timing_cache="timing.cache")
    built = builder.plan(version, options)
    return {
        "graph": name,
        "strongly_typed": strong,
        "network_flags": built.network_flags,
        "builder_flags": built.builder_flags,
        "workspace": built.workspace,
        "optimization_level": built.optimization_level,
        "io": built.io,
        "trtexec": _command(built.trtexec, name),
        "notes": built.notes,
    }


def _command(arguments: tuple[str, ...], graph: str) -> str:
    plan = f"{Path(graph).stem}.plan"
    filled = [item.replace("{onnx}", graph).replace("{plan}", plan) for item in arguments]
    return " ".join(["/usr/src/tensorrt/bin/trtexec", *filled])


def _golden(
    model: Path, folder: Path, images: FloatArray | PixelArray | None
) -> tuple[FloatArray | PixelArray, FloatArray]:
    """Write golden inputs and their logits by an exact simulation of the graph; return both."""
    shape = [dim if isinstance(dim, int) else 0 for dim in load_unchanged(model).graph.inputs[0].shape or ()]
    if len(shape) != 4 or 0 in shape[1:]:
        raise DataError(f"the image size of {model} is not fixed", hint="export it with a fixed size")
    noise = _noise((max(NOISE_IMAGES, shape[0]), *shape[1:]), pixels=_takes_pixels(model))
    if images is None:
        images = noise
    if (images.dtype, images.shape[1:]) != (noise.dtype, noise.shape[1:]):
        value, expected = (f"{each.dtype} {each.shape[1:]}" for each in (images, noise))
        raise DataError(
            f"the images are {value}, {model} takes {expected}",
            hint="prepare them as the calibration images, or leave --data out",
        )
    tested = images[: max(GOLDEN_IMAGES, shape[0])]
    with onnxruntime.simulate(model) as session:
        logits = session.infer(tested)
    runner.write_golden(folder, tested, logits)
    return tested, logits


def _tuning(
    model: Path, plan: dict[str, Any], tested: FloatArray | PixelArray, logits: FloatArray, folder: Path
) -> str:
    """Write the files of the tuner; return its part of the README."""
    graph = load_unchanged(model).graph
    first = graph.inputs[0]
    batch = first.shape[0] if first.shape is not None and isinstance(first.shape[0], int) else 1
    names = str(first.name), str(graph.outputs[0].name)
    commands = tuner.write(folder, plan["trtexec"].split(), names, tested, logits, batch)
    return (
        "\nTensorRT's tuner tries other build routes, an hour at most, here of convolutions, and keeps the "
        "fastest whose logits are as close to the simulated ones as in the self-test (not run by us):\n\n"
        f"```sh\n{commands}\n```\n\nShip the plan, not the route: a second build gives another engine.\n"
    )


def _noise(shape: tuple[int, ...], *, pixels: bool) -> FloatArray | PixelArray:
    random = np.random.default_rng(0)
    return (
        random.integers(0, 256, shape, np.uint8) if pixels else random.normal(size=shape).astype(np.float32)
    )


def _readme(module: str, known: versions.Rules, plans: dict[str, dict[str, Any]]) -> str:
    first = next(iter(plans))
    plan = f"model-{first}.plan"
    typed = " --strongly-typed" if plans[first]["strongly_typed"] and known.group == "10" else ""
    if known.version >= RUNNER_FROM:
        commands = (
            f"python3 {runner.FILE_NAME} build --graph model-{first}.onnx --out {plan} "
            f"--precision {first}{typed}\n"
            f"python3 {runner.FILE_NAME} selftest --engine {plan} --golden golden"
        )
        explanation = "The last line of each is JSON: `ok` and `verdict` are the result of the check."
    else:
        timing = " ".join(builder.measure(known.name, "gpu"))
        commands = "\n".join(
            f"# {name}\n{item['trtexec']}\n/usr/src/tensorrt/bin/trtexec "
            f"--loadEngine={Path(item['graph']).stem}.plan {timing}"
            + (f" --useDLACore={item['dla_core']}" if "dla_core" in item else "")
            for name, item in plans.items()
        )
        explanation = "The runner needs TensorRT 8.5 and Python 3.8; here trtexec builds and times."
    lines = [
        f"# For {module} with TensorRT {known.name}",
        "Copy this folder to the device, go into it, and type these commands:",
        f"```sh\n{commands}\n```",
        explanation,
    ]
    if known.version >= RUNNER_FROM:
        lines.append(
            f"Then time it: `python3 {runner.FILE_NAME} time --engine {plan}`; with `--trtexec` by NVIDIA's "
            "tool as well, with the difference of the two."
        )
        lines.append("By trtexec instead:")
        builds = "\n".join(f"# {name}\n{item['trtexec']}" for name, item in plans.items())
        lines.append(f"```sh\n{builds}\n```")
    notes = dict.fromkeys(note for item in plans.values() for note in item.get("notes", ()))
    lines.extend(f"- {note}" for note in notes)
    if "fp16" in plans and "int8" in plans:
        lines.append("INT8 is not always faster: build and time both, and keep the faster one that is right.")
    return "\n\n".join(lines) + "\n"
