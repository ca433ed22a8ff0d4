"""INT8 quantization and its peers: accuracy, INT8 layers, latency, seconds, memory; NVIDIA's parser.

    python tests/benchmarks/quantization.py                      the main path, NNCF and ONNX Runtime
    python tests/benchmarks/quantization.py --peers              every peer
    python tests/benchmarks/quantization.py --weights net.pth --size 224 \\
        --calibration imagenet/train --evaluation imagenet/val.csv

Peers are no part of the product: `pip install 'edgeship[bench,peers]'`. One that is missing has its reason as
row. No row of --peers is AIMET's AdaRound: its 10,000 steps a layer want over an hour on one thread for
ResNet-18 at 64 px (45 s for 100 were seen): `--tools 'AIMET AdaRound' --timeout 14400`.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from _common import SHARED, machine, ratio_interval, table, tell, write
from quantization_jobs import Images, Network, Runner
from quantization_measure import FLOAT, Engine, Quality, build, latencies, qualities, reshaped
from quantization_tools import BATCH, CONTROLLED_DROP, FLOOR

from edgeship.calibration.loader import batches
from edgeship.targets.tensorrt import rtx_check
from edgeship.toolkit.core.errors import ToolkitError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.models.export import export
from edgeship.toolkit.models.resnet import ResNet, architecture
from edgeship.toolkit.models.weights import load
from edgeship.toolkit.pipeline import preprocessing
from edgeship.toolkit.pipeline.recipe import PreprocessOptions

OURS, NNCF = "edgeship balanced", "NNCF default"
MAIN = ("edgeship fast", OURS, NNCF, "ONNX Runtime min-max")
PEERS = (
    "edgeship fast",
    OURS,
    "edgeship max",
    NNCF,
    "NNCF mixed preset",
    "NNCF accuracy control",
    "ONNX Runtime min-max",
    "ONNX Runtime entropy",
    "ONNX Runtime percentile",
    "Model Optimizer entropy",
    "Model Optimizer max",
    "AIMET min-max",
    "AIMET tf-enhanced",
    "AIMET equalized",
)
TIMED = (
    OURS,
    "edgeship fast",
    NNCF,
    "ONNX Runtime min-max",
    "ONNX Runtime entropy",
    "Model Optimizer entropy",
    "AIMET min-max",
)
DRAWN = ("edgeship fast", OURS, "edgeship max", NNCF)
RETARGETED = ("edgeship", "AIMET")  # their graph for TensorRT is another one
SPEED_SIZE = 224
GATED = {  # network -> size of its input in pixels
    "resnet18": 224,
    "resnet34": 224,
    "resnet50": 224,
    "preact_resnet50": 224,
    "plain_resnet34": 224,
    "resnet20": 32,
}
SECTIONS = ("accuracy", "latency", "draws", "time", "memory", "gate")
DEFAULT_SIZE = 64  # of the networks in ../shared


@click.command()
@click.option(
    "--weights", multiple=True, type=click.Path(path_type=Path), help="Checkpoints; may be repeated."
)
@click.option("--calibration", default="", help="Folder, archive or CSV; labels are not needed.")
@click.option("--evaluation", default="", help="Folder, archive or CSV with labels.")
@click.option("--size", type=int, help="Input side of the networks in pixels; default: the checkpoint's own.")
@click.option("--images", default=300, show_default=True, help="Calibration images.")
@click.option("--evaluation-images", default=0, help="Evaluate on so many only; 0 is all.")
@click.option("--control-images", default=2000, show_default=True, help="Labelled, for accuracy control.")
@click.option("--peers", is_flag=True, help="Every peer, instead of the two the main path is held against.")
@click.option("--tools", default="", help="Only these, separated by commas.")
@click.option("--sections", default=",".join(SECTIONS), show_default=True, help="Only these parts.")
@click.option("--latency-seconds", default=20.0, show_default=True, help="For each engine.")
@click.option("--draws", default=5, show_default=True, help="Sets of calibration images, in section draws.")
@click.option("--rounds", default=3, show_default=True, help="Times that quantizing is timed.")
@click.option("--memory-images", default=10_000, show_default=True, help="Calibration images, against 100.")
@click.option("--memory-limit-gb", default=8.0, show_default=True, help="A tool that wants more is stopped.")
@click.option("--timeout", default=3600.0, show_default=True, help="Seconds that a tool may take.")
@click.option("--out", default="", help="Name of the report in results/.")
def main(
    *,
    weights: tuple[Path, ...],
    calibration: str,
    evaluation: str,
    size: int | None,
    images: int,
    evaluation_images: int,
    control_images: int,
    peers: bool,
    tools: str,
    sections: str,
    latency_seconds: float,
    draws: int,
    rounds: int,
    memory_images: int,
    memory_limit_gb: float,
    timeout: float,
    out: str,
) -> None:
    """Quantize checkpoints with edgeship and its peers, and compare what comes out."""
    wanted = sections.split(",")
    if unknown := set(wanted) - set(SECTIONS):
        raise click.ClickException(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    names = tuple(tools.split(",")) if tools else PEERS if peers else MAIN
    if not weights:
        weights = tuple(sorted((SHARED / "checkpoints").glob("*")))
        size = size or DEFAULT_SIZE
    calibration = calibration or str(SHARED / "data" / "cifar10-jpeg-train.zip")
    evaluation = evaluation or str(SHARED / "data" / "cifar10-jpeg-test.zip")
    parts = [
        "# INT8 quantization compared with its peers" if peers else "# INT8 quantization on the main path",
        machine(("nncf", "nvidia-modelopt", "aimet-onnx", "tensorrt-rtx-cu12"))
        + f"\n- Command: `python {shlex.join(['tests/benchmarks/quantization.py', *sys.argv[1:]])}`",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        runner = Runner(Path(temporary), int(memory_limit_gb * 2**30), timeout)
        if set(wanted) - {"gate"}:
            if not weights or not Path(calibration).exists() or not Path(evaluation).exists():
                raise click.UsageError(
                    "name --weights, --calibration and --evaluation: there is no ../shared"
                )
            chosen = Images.choose(calibration, images)
            judged = Images.choose(evaluation, evaluation_images)
            control = Images.choose(evaluation, control_images)
            parts.append(_basis(chosen, judged, control))
            for network in _networks(weights, size):
                parts.append(f"## {network.name}")
                if {"accuracy", "latency"} & set(wanted):
                    seconds = latency_seconds if "latency" in wanted else 0.0
                    parts += compared(network, names, chosen, judged, control, runner, seconds)
                if "draws" in wanted:
                    some = [Images.choose(calibration, images, seed) for seed in range(draws)]
                    parts += drawn(network, [tool for tool in DRAWN if tool in names], some, judged, runner)
                if "time" in wanted:
                    timed = [tool for tool in TIMED if tool in names]
                    parts += timing(network, timed, chosen, runner, rounds)
                if "memory" in wanted:
                    parts += memory(network, Images.choose(calibration, memory_images), runner)
        if "gate" in wanted:
            parts += gates(runner)
    write(out or ("quantization-peers.md" if peers else "quantization.md"), "\n\n".join(parts) + "\n")


def compared(
    network: Network,
    names: Sequence[str],
    chosen: Images,
    judged: Images,
    control: Images,
    runner: Runner,
    latency_seconds: float,
) -> list[str]:
    """Accuracy, layers in INT8, latency; then the graphs for TensorRT, simulated."""
    model, preprocess = network.exported(network.size, runner.folder), network.at(network.size)
    files = chosen.described(preprocess)
    results, engines, signed = _quantized(names, model, files, runner, control.described(preprocess))
    tell(f"{network.name}: evaluating on {len(judged.indices)} images")
    quality = _qualities(engines, signed, model, judged, preprocess)
    medians = _latencies(network, model, engines, runner.folder, latency_seconds) if latency_seconds else {}
    columns = (
        "OpenVINO",
        "top-1 %",
        "drop pp (95 %)",
        "agreement %",
        f"flipped / {NNCF}'s",
        "SQNR dB",
        "Conv INT8",
        "Add INT8",
        "latency ms",
        f"latency / {NNCF}'s (95 %)",
        "peak MB",
    )
    rows = [_float_row(quality[FLOAT], medians)]
    for tool, result in results.items():
        if tool not in engines:
            rows.append((tool, result["reason"], *[None] * 9))
            continue
        rows.append(
            (
                tool,
                *_quality_cells(quality[tool], quality.get(NNCF)),
                engines[tool].in_int8("Convolution"),
                engines[tool].in_int8("Add"),
                *_latency_cells(tool, medians),
                f"{result['peak_bytes'] / 1e6:.0f}",
            )
        )
    parts = [
        f"Input {network.size} px, one image an inference; latency at {SPEED_SIZE} px on one thread.",
        table(columns, rows),
    ]
    if medians:
        parts.append(_against_fastest(medians))
    rows = [
        (tool, signed[tool]["reason"], *[None] * 4)
        if f"TensorRT: {tool}" not in quality
        else (tool, *_quality_cells(quality[f"TensorRT: {tool}"], quality.get(NNCF)))
        for tool in signed
    ]
    return [*parts, table(("TensorRT graph, simulated by ONNX Runtime", *columns[1:6]), rows)]


def drawn(
    network: Network, names: Sequence[str], draws: Sequence[Images], judged: Images, runner: Runner
) -> list[str]:
    """Flipped predictions with several draws of calibration images: one count alone is a matter of luck."""
    model, preprocess = network.exported(network.size, runner.folder), network.at(network.size)
    flips: dict[str, list[int]] = {}
    for number, images in enumerate(draws, 1):
        run = f"draw-{number}"
        _, engines, signed = _quantized(names, model, images.described(preprocess), runner, run=run)
        for name, quality in _qualities(engines, signed, model, judged, preprocess).items():
            if name != FLOAT:
                flips.setdefault(name, []).append(round((1 - quality.agreement) * len(judged.indices)))
    peer = np.mean(flips[NNCF]) if NNCF in flips else None
    rows = [
        (
            name,
            ", ".join(map(str, counts)),
            f"{np.mean(counts):.1f}",
            f"{100 * (1 - np.mean(counts) / len(judged.indices)):.2f}",
            f"{np.mean(counts) / peer:.2f}" if peer else None,
        )
        for name, counts in sorted(flips.items(), key=lambda item: item[0].startswith("TensorRT"))
    ]
    heading = f"Predictions flipped with {len(draws)} draws of {len(draws[0].indices)} calibration images."
    columns = ("flipped", "in each draw", "mean", "mean agreement %", f"mean / {NNCF}'s mean")
    return [heading, table(columns, rows)]


def timing(network: Network, names: Sequence[str], chosen: Images, runner: Runner, rounds: int) -> list[str]:
    """Seconds and peak memory of quantizing at `SPEED_SIZE`, tools in turn, each in a process of its own."""
    model, preprocess = network.exported(SPEED_SIZE, runner.folder), network.at(SPEED_SIZE)
    files = chosen.described(preprocess)
    decoded = runner.folder / "decoded.npy"
    stream = batches(chosen.dataset, chosen.indices, preprocess, batch=BATCH)
    np.save(decoded, np.concatenate([batch.images for batch in stream]))
    arrays = {**files, "array": str(decoded)}
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    tools = [*names, FLOOR]
    for number in range(rounds):
        for tool in tools if number % 2 == 0 else reversed(tools):
            for kind, images in (("arrays", arrays), ("files", files)):
                known = results.setdefault((tool, kind), [])
                if not known or "seconds" in known[-1]:  # what failed once is not tried again
                    known.append(runner.run(tool, model, images, run=f"{kind}-{number + 1}"))
    rows = []
    for tool in tools:
        cells: list[object] = []
        for kind in ("arrays", "files"):
            mine, peer = results[tool, kind], results.get((NNCF, kind), [])
            floor = _median(results[FLOOR, kind], "seconds")
            if "reason" in mine[-1]:
                cells += [mine[-1]["reason"], None, None, None]
                continue
            seconds = _median(mine, "seconds")
            cells += [
                f"{seconds:.1f}",
                _ratios(mine, peer),
                f"{seconds / floor:.2f}" if floor else None,
                f"{_median(mine, 'process_s'):.1f}",
            ]
        peak = _median(results[tool, "files"], "peak_bytes")
        rows.append((tool, *cells, f"{peak / 1e6:.0f}" if peak else None))
    columns = [
        f"{kind}: {what}"
        for kind in ("arrays", "files")
        for what in ("s", f"/ {NNCF}'s (lowest..highest)", "in FP32 passes", "with start-up s")
    ]
    heading = (
        f"Quantizing with {len(chosen.indices)} images at {SPEED_SIZE} px, from decoded arrays in memory and "
        f"from image files; medians of {rounds} rounds in turn. Seconds leave out imports. Peak memory is "
        "that of the process that reads image files."
    )
    return [heading, table((f"Quantize at {SPEED_SIZE} px", *columns, "peak MB"), rows)]


def memory(network: Network, many: Images, runner: Runner) -> list[str]:
    """Peak memory and time of `OURS` at many calibration images and at 100, read from files."""
    model, preprocess = network.exported(network.size, runner.folder), network.at(network.size)
    few = Images(many.source, many.dataset, many.indices[:100])
    rows, peaks = [], []
    for images in (few, many):
        count = len(images.indices)
        result = runner.run(OURS, model, images.described(preprocess), run=f"{count}-images")
        if "reason" in result:
            return [f"Memory: {result['reason']}"]
        peaks.append(result["peak_bytes"])
        rows.append((count, f"{peaks[-1] / 1e6:.0f}", f"{result['seconds']:.1f}"))
    ratio = f"Peak memory at {len(many.indices)} images over that at 100: {peaks[1] / peaks[0]:.3f}."
    return [table(("calibration images", "peak MB", "seconds"), rows), ratio]


def gates(runner: Runner) -> list[str]:
    """Return results of NVIDIA's parser and ahead-of-time builder for untrained networks and noise."""
    try:
        rtx_check.sdk()
    except ToolkitError as error:
        return ["## TensorRT-RTX", f"Not run: {error}; {error.hint}."]
    rows = []
    jobs = [(OURS, name) for name in GATED] + [("ONNX Runtime default", "resnet18")]
    for tool, name in jobs:
        size = GATED[name]
        model, noise = runner.folder / f"untrained-{name}.onnx", runner.folder / f"noise-{size}.npy"
        torch.manual_seed(0)
        export(ResNet(architecture(name)).eval(), model, size=size, batch=1)
        np.save(noise, np.random.default_rng(0).normal(size=(16, 3, size, size)).astype(np.float32))
        images = {"array": str(noise), "indices": list(range(16))}
        result = runner.run(tool, model, images, target="tensorrt", run="gate")
        if "reason" in result:
            rows.append((name, tool, result["reason"], None))
            continue
        verdict = rtx_check.check(Path(result["graph"]))
        weighted = [layer for layer in verdict.layers if layer.weighted]
        outcome = "accepted" if verdict.accepted else f"refused: {verdict.errors[0].splitlines()[0]}"
        in_int8 = f"{sum(layer.precision == 'int8' for layer in weighted)}/{len(weighted)}"
        rows.append((name, tool, outcome, in_int8 if verdict.accepted else None))
    columns = ("network", "quantized by", "TensorRT-RTX parser and builder", "weighted layers in INT8")
    return ["## TensorRT-RTX", table(columns, rows)]


def _quantized(
    names: Sequence[str],
    model: Path,
    files: Mapping[str, Any],
    runner: Runner,
    control: Mapping[str, Any] | None = None,
    run: str = "",
) -> tuple[dict[str, dict[str, Any]], dict[str, Engine], dict[str, dict[str, Any]]]:
    """Return each tool's result, its OpenVINO engine, and its graph for TensorRT."""
    results = {tool: runner.run(tool, model, files, control=control, run=run) for tool in names}
    engines = {}
    for tool, result in results.items():
        if "graph" in result:
            try:
                engines[tool] = build(Path(result["graph"]), model, Path(result["graph"]).parent / "engine")
            except ToolkitError as error:
                results[tool] = {"reason": f"OpenVINO refuses it: {error}"}
    signed = {
        tool: runner.run(tool, model, files, target="tensorrt", run=run)
        if tool.startswith(RETARGETED)
        else results[tool]
        for tool in names
        if tool.startswith((*RETARGETED, "Model Optimizer"))
    }
    return results, engines, signed


def _qualities(
    engines: Mapping[str, Engine],
    signed: Mapping[str, Mapping[str, Any]],
    model: Path,
    judged: Images,
    preprocess: Preprocess,
) -> dict[str, Quality]:
    """Tool, or "TensorRT: " and the tool -> quality of what it made."""
    simulated = {f"TensorRT: {tool}": Path(made["graph"]) for tool, made in signed.items() if "graph" in made}
    files = {tool: engine.file for tool, engine in engines.items()}
    return qualities(files, simulated, model, judged.dataset, judged.indices, preprocess)


def _networks(weights: Sequence[Path], size: int | None) -> list[Network]:
    found = []
    for file in weights:
        loaded = load(file)
        side = preprocessing.resolve(PreprocessOptions(), loaded.preprocess, size).crop
        found.append(Network(file.stem, loaded.model, loaded.preprocess, side))
    return found


def _basis(chosen: Images, judged: Images, control: Images) -> str:
    return "\n".join(
        [
            f"- Calibration: {len(chosen.indices)} images of {chosen.dataset.name}; "
            f"evaluation: {len(judged.indices)} of {judged.dataset.name}",
            "- edgeship: its calibration pass ends when the statistics have converged, at 224 px before the "
            "last image (`calibrate.early_stop`)",
            f"- {NNCF}: OpenVINO backend, every calibration image. Accuracy control: a drop of "
            f"{100 * CONTROLLED_DROP:g} pp at most on {len(control.indices)} of the evaluation images "
            "themselves, which flatters it",
            "- ONNX Runtime: quantize_static after quant_pre_process, uint8 activations and int8 weights per "
            "channel, of seven bits on CPUs without VNNI, as it advises",
            "- AIMET: its default configuration, weights per channel, uint8 activations with a zero point; "
            "for TensorRT signed symmetric activations, which NVIDIA's parser wants",
        ]
    )


def _latencies(
    network: Network, model: Path, engines: Mapping[str, Engine], folder: Path, seconds: float
) -> dict[str, list[float]]:
    files = {FLOAT: reshaped(model, 1, SPEED_SIZE, folder / f"{network.name}-fp32.xml")}
    for tool, engine in engines.items():
        out = folder / f"{network.name}-{tool.replace(' ', '-')}.xml"
        files[tool] = reshaped(engine.file, 1, SPEED_SIZE, out)
    return latencies(files, SPEED_SIZE, seconds)


def _float_row(quality: Quality, medians: Mapping[str, Sequence[float]]) -> tuple[object, ...]:
    top1 = None if quality.top1 is None else f"{100 * quality.top1:.2f}"
    return (FLOAT, top1, *[None] * 6, *_latency_cells(FLOAT, medians), None)


def _quality_cells(quality: Quality, peer: Quality | None) -> tuple[object, ...]:
    top1 = drop = flipped = None
    if quality.top1 is not None and quality.drop_pp is not None:
        value, (low, high) = quality.drop_pp
        top1, drop = f"{100 * quality.top1:.2f}", f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    if peer is not None and peer.agreement < 1:
        flipped = f"{(1 - quality.agreement) / (1 - peer.agreement):.2f}"
    return top1, drop, f"{100 * quality.agreement:.2f}", flipped, f"{quality.sqnr_db:.1f}"


def _latency_cells(tool: str, medians: Mapping[str, Sequence[float]]) -> tuple[object, object]:
    if tool not in medians:
        return None, None
    ratio = _interval(medians[tool], medians[NNCF]) if NNCF in medians and tool != NNCF else None
    return f"{np.median(medians[tool]):.2f}", ratio


def _against_fastest(medians: Mapping[str, Sequence[float]]) -> str:
    peers = [tool for tool in medians if tool != FLOAT and not tool.startswith("edgeship")]
    if not peers or OURS not in medians:
        return "No peer was timed."
    fastest = min(peers, key=lambda tool: float(np.median(medians[tool])))
    return (
        f"Latency of {OURS} over that of the fastest peer, {fastest}: "
        f"{_interval(medians[OURS], medians[fastest])}."
    )


def _interval(mine: Sequence[float], other: Sequence[float]) -> str:
    middle, low, high = ratio_interval([a / b for a, b in zip(mine, other, strict=True)])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _median(results: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [result[key] for result in results if key in result]
    return float(np.median(values)) if values else None


def _ratios(mine: Sequence[Mapping[str, Any]], peer: Sequence[Mapping[str, Any]]) -> str | None:
    pairs = [(a["seconds"], b["seconds"]) for a, b in zip(mine, peer, strict=False) if "seconds" in b]
    ratios = [a / b for a, b in pairs]
    return f"{np.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})" if ratios else None


if __name__ == "__main__":
    main()
