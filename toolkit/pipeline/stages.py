"""The stages of a run, in order.

Every stage is a function of the recipe and the folders of the stages before it; it writes files into the
empty folder `out` and may write checkpoints into `work_dir`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from edgeship.targets.tensorrt import jetson
from edgeship.toolkit.core.artifact import read_json, write_json
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.pipeline import (
    accuracy,
    baseline_check,
    compilation,
    datasets,
    distillation_time,
    evaluation,
    finetuning,
    guarding,
    load_and_export,
    measure,
    mixed_precision,
    pruning,
    quantizing,
    verbs,
)
from edgeship.toolkit.pipeline.preprocessing import check_known
from edgeship.toolkit.pipeline.recipe import Recipe
from edgeship.toolkit.pipeline.stage import Inputs, Stage
from edgeship.toolkit.runs.compiled import CompiledVariants, engines, float_engines
from edgeship.toolkit.runs.description import MONITOR
from edgeship.toolkit.runs.guarded import Guards, guarded_engines, guarded_record
from edgeship.toolkit.runs.index import RunIndex
from edgeship.toolkit.runs.measured import Accuracies, EvaluationData
from edgeship.toolkit.runs.network import ExportedGraphs, ModelInfo
from edgeship.toolkit.runs.variant_id import REFERENCE, GraphName, quantized_name


def load(recipe: Recipe, _inputs: Inputs, out: Path, work_dir: Path) -> None:
    """Load the network from a checkpoint or an ONNX file, or train it.

    Writes model.safetensors and widths.json, or float.onnx; and model.json (`ModelInfo`).
    """
    load_and_export.loader(recipe)(recipe, out, work_dir)


def prune(recipe: Recipe, inputs: Inputs, out: Path, work_dir: Path) -> None:
    """Prune the network, or copy it unchanged. Writes the network and plan.json {method, ...}."""
    if recipe.prune.method == "none":
        _link_network(inputs["load"], out)
        write_json(out / "plan.json", {"method": "none"})
    else:
        pruning.prune(recipe, inputs["load"], out, checkpoint=work_dir / "states")


def finetune(recipe: Recipe, inputs: Inputs, out: Path, work_dir: Path) -> None:
    """Distill the unpruned network into the pruned one, or copy it. Writes the network and history.json."""
    unpruned = read_json(inputs["prune"] / "plan.json")["method"] == "none"
    if unpruned or not distillation_time.distills(recipe, inputs["prune"]):
        _link_network(inputs["prune"], out)
        write_json(out / "history.json", {})
    else:
        state = work_dir / "checkpoint.pt"
        finetuning.finetune(recipe, inputs["load"], inputs["prune"], out, checkpoint=state)


def _link_network(folder: Path, out: Path) -> None:
    """Link the files of a network into the next stage's folder; stored files are never modified."""
    for name in ("model.safetensors", "widths.json", "float.onnx"):
        if (folder / name).is_file():
            try:
                os.link(folder / name, out / name)
            except OSError:  # a file system without links
                shutil.copyfile(folder / name, out / name)


def export(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Export the ONNX graphs: float.onnx, and pruned.onnx of a pruned network.

    Also graphs.json (`ExportedGraphs`).
    """
    options, info = recipe.export, ModelInfo.read(inputs["load"])
    check_known(options.input, info.preprocess_source)
    networks: dict[GraphName, Path] = {"float": inputs["load"]}
    if read_json(inputs["prune"] / "plan.json")["method"] != "none":
        networks["pruned"] = inputs["finetune"]
    exported = {
        name: load_and_export.export(options, folder, info, out / f"{name}.onnx")
        for name, folder in networks.items()
    }
    ExportedGraphs(
        graphs={name: graph for name, (graph, _) in exported.items()},
        parity=max(parity for _, parity in exported.values()),
        batch=None if options.batch == "dynamic" else options.batch,
        classes=info.classes,
        class_names=info.class_names,
        preprocess=info.preprocess,
    ).write(out)


def select(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Select calibration images, disjoint from the evaluation images. Writes manifest.json, findings.json."""
    from edgeship.calibration import doctor, manifest
    from edgeship.calibration.datasets import open_dataset

    options, graphs = recipe.select, ExportedGraphs.read(inputs["export"])
    dataset = open_dataset(options.source, use="train")
    excluded = None
    if recipe.evaluate.source:
        excluded = datasets.open_evaluation(recipe.evaluate.source, graphs.classes, names=graphs.class_names)
    chosen = manifest.select(
        dataset, options.images, options.seed, exclude=excluded, skip_bad=options.skip_unreadable
    )
    manifest.write(out / "manifest.json", chosen)
    indices = manifest.locate(chosen, dataset)
    findings = datasets.opened(dataset) + datasets.left_out(dataset, options, chosen)
    if not options.skip_unreadable:
        datasets.check_readable(dataset, indices)
    findings += doctor.examine(
        dataset,
        indices,
        graphs.preprocess,
        classes=graphs.classes,
        stem=load_and_export.first_layer(inputs["load"]).stem
        if (inputs["load"] / "widths.json").is_file()
        else None,
    )
    write_json(out / "findings.json", findings)


def calibrate(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Run the calibration images through the float graphs and write the statistics of every activation.

    Also writes scales.json {graph: {images, scale, enough}}, the scales against the number of images, and
    findings.json.
    """
    from edgeship.calibration import sample_size

    graphs = ExportedGraphs.read(inputs["export"])
    dataset, indices = datasets.calibration(recipe.select.source, inputs["select"])
    curves = {}
    for name, graph in graphs.graphs.items():
        batch = recipe.calibrate.batch
        stream = datasets.stream(dataset, indices, graphs.preprocess, batch, f"calibrating {name}")
        maxima: list[FloatArray] = []
        statistics = verbs.calibrate(
            inputs["export"] / graph.file, stream, maxima.append, early_stop=recipe.calibration_stops_early
        )
        statistics.save(out / name)
        curves[name] = sample_size.scale_curve(np.concatenate(maxima))
    write_json(out / "scales.json", curves)
    write_json(
        out / "findings.json",
        [sample_size.sample_size_finding(curve, len(indices), name) for name, curve in curves.items()],
    )


def quantize(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Write a Q/DQ graph per target, by the target's scheme, from one calibration.

    Writes <target>.onnx, <target>-pruned.onnx, quantize.json {target: summary} and sensitivity.json.
    """
    from edgeship.calibration import manifest
    from edgeship.quantization import float8
    from edgeship.quantization.statistics import Statistics
    from edgeship.toolkit.graph import io

    graphs = ExportedGraphs.read(inputs["export"])
    validation = None
    if mixed_precision.limited(recipe.quantize):
        calibration = manifest.read(inputs["select"] / "manifest.json")
        validation = mixed_precision.select_validation_images(
            recipe, calibration, graphs.classes, graphs.preprocess, graphs.class_names
        )
    summaries, workers = {}, quantizing.workers(recipe)
    for graph_name, graph in graphs.graphs.items():
        statistics = Statistics.load(inputs["calibrate"] / graph_name)
        model = io.read_classifier(inputs["export"] / graph.file)
        for target in track(quantizing.quantized_targets(recipe, "int8"), f"quantizing {graph_name}"):
            name = quantized_name(target, graph_name)
            summaries[name] = verbs.quantize(
                model,
                statistics,
                target,
                out / f"{name}.onnx",
                recipe.quantize,
                workers=workers,
                validation=validation,
            )
        for target in quantizing.quantized_targets(recipe, "fp8"):
            name = quantized_name(f"{target}-fp8", graph_name)
            summaries[name] = float8.write(
                model, statistics, quantizing.scheme(recipe.quantize, target), out / f"{name}.onnx"
            )
    costs = {name: summary.pop("sensitivity", None) for name, summary in summaries.items()}
    write_json(out / "sensitivity.json", {name: cost for name, cost in costs.items() if cost})
    write_json(out / "quantize.json", summaries)


def compile(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Compile every variant, with an audit of the layer precisions that the runtime executes.

    Writes one folder per variant, and compiled.json (`CompiledVariants`).
    """
    graphs = ExportedGraphs.read(inputs["export"])
    preprocess = graphs.preprocess if recipe.export.input == "uint8" else None
    precisions = jetson.available(recipe.compile.precisions, recipe.compile.module)
    CompiledVariants(
        {
            each.name: compilation.recorded(
                each, inputs, out, preprocess, version=recipe.compile.device_version(each.target)
            )
            for each in compilation.planned(recipe.compile.targets, tuple(graphs.graphs), precisions)
        }
    ).write(out)


def guard(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Set the threshold of guarded INT8 variants on unlabelled images.

    Writes guards.json (`Guards`), and <variant>/guard.json for devices.
    """
    guards = Guards({})
    if recipe.guard.max_flips is not None:
        graphs = ExportedGraphs.read(inputs["export"])
        guards = guarding.set_guards(recipe, inputs, graphs.preprocess, out)
    guards.write(out)


def evaluate(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Run the evaluation images through every variant; compare each with the float reference, image by image.

    Writes accuracy.json (`Accuracies`), guarded.json (`GuardedRuns`), logits/<variant>.npy, labels.npy,
    images.json (`EvaluatedImages`), findings.json [`DataFinding`], input_checks.json [`InputCheck`],
    monitor.json (`prove.watching`) and time.json (`EvaluationTime`).
    """
    options, graphs = recipe.evaluate, ExportedGraphs.read(inputs["export"])
    dataset = datasets.open_evaluation(options.source, graphs.classes, names=graphs.class_names)
    built = CompiledVariants.read(inputs["compile"]).built()
    work = evaluation.Work(
        evaluation.engines(built, inputs),
        options.source,
        graphs.classes,
        graphs.preprocess,
        options.batch,
        options.skip_unreadable,
        graphs.class_names,
    )
    outcome, skipped = verbs.evaluate(
        work,
        datasets.subset(dataset, options.images),
        workers=options.workers,
        backend=options.backend,
        label="evaluating",
    )
    if outcome.time is not None:
        outcome.time.write(out)
    guards = Guards.read(inputs["guard"])
    guarding.evaluate(outcome, guards).write(out)
    left_out = evaluation.leave_out_not_numbers(outcome)
    records = built | {each: guarded_record(each, own, built) for each, own in guards.by_id().items()}
    records = {each: record for each, record in records.items() if each.name in outcome.logits}
    np.save(out / "labels.npy", outcome.labels)
    (out / "logits").mkdir()
    for name, logits in outcome.logits.items():
        np.save(out / "logits" / f"{name}.npy", logits)
    datasets.identity(dataset, outcome.indices).write(out)
    write_json(out / "findings.json", datasets.opened(dataset) + datasets.unreadable(dataset, skipped))
    reference = outcome.logits[REFERENCE.name]
    write_json(
        out / "input_checks.json", baseline_check.check_run(inputs, dataset, outcome.indices, reference)
    )
    watched = evaluation.monitor_reference(dataset, outcome, graphs.preprocess)
    if watched is not None:
        write_json(out / MONITOR, watched)
    data = EvaluationData(dataset.name, len(outcome.labels), dataset.classes)
    Accuracies(data, accuracy.accuracies(outcome, records), left_out).write(out)


def bench(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Time every variant that runs here, interleaved in one process; then throughput, memory and energy.

    Writes latency.json (`Latencies`) and device.json (`Environment`).
    """
    from edgeship.targets._cpu_load import Watch

    graphs = ExportedGraphs.read(inputs["export"])
    batch = measure.bench_batch(recipe.bench, graphs.batch)
    shape = (batch, len(graphs.preprocess.mean), *graphs.preprocess.sides)
    dataset, indices = datasets.calibration(recipe.select.source, inputs["select"])
    guarded, stream = guarded_engines(inputs), None
    if guarded:
        evaluated = datasets.open_validation(recipe.evaluate.source, None)
        stream = guarding.traffic(evaluated, graphs.preprocess, pixels=bool(float_engines(inputs)))
    with Watch() as watch:
        measured = verbs.benchmark(
            recipe.bench,
            engines(inputs),
            np.random.default_rng(0).normal(size=shape).astype(np.float32),
            ready=float_engines(inputs),
            dynamic=graphs.batch is None,
            pictures=[dataset.image(index) for index in indices[: measure.PICTURES]],
            preprocess=graphs.preprocess,
            guarded=guarded,
            traffic=stream,
        )
    measured.write(out)
    write_json(out / "device.json", measure.environment(watch.activity))


def report(recipe: Recipe, inputs: Inputs, out: Path, _work_dir: Path) -> None:
    """Gather the results of all stages into report.json, report.md and report.html, and check the limits."""
    from edgeship.toolkit.report import gather, render

    limits, run = recipe.report, RunIndex.read(inputs["run"])
    gathered = gather.gather(
        inputs,
        recipe=run.recipe,
        stages=run.stages,
        command=run.command,
        max_drop_pp=limits.max_drop_pp,
        min_speedup=limits.min_speedup,
        max_latency_ms=limits.max_latency_ms,
        latency_by=limits.latency_by,
        judge_by=limits.judge_by,
    )
    thumbnails = datasets.thumbnails(run.option("evaluate.source", str), inputs["evaluate"])
    render.write(gathered, out, thumbnails=thumbnails, evaluated=inputs["evaluate"])


def _always(_recipe: Recipe) -> bool:
    return True


def _times_candidates(recipe: Recipe) -> bool:
    return recipe.prune.latency_ratio is not None


def _timed(recipe: Recipe) -> bool:
    return recipe.prune.budget_s is not None


def _times_or_timed(recipe: Recipe) -> bool:
    return _times_candidates(recipe) or _timed(recipe)


def _unpruned(recipe: Recipe) -> bool:
    return recipe.prune.method == "none"


def _not_finetuned(recipe: Recipe) -> bool:
    return (recipe.finetune.epochs == 0 and recipe.prune.budget_s is None) or _unpruned(recipe)


def _read_by_prune(recipe: Recipe) -> tuple[str, ...]:
    if _unpruned(recipe):
        return ()
    source = () if recipe.prune.source else ("select.source",)
    target = ("compile.targets",) if _times_or_timed(recipe) else ()
    threads = ("bench.threads",) if _times_candidates(recipe) else ()
    return ("evaluate.source", *source, *target, *threads)


def _read_by_finetune(recipe: Recipe) -> tuple[str, ...]:
    if _not_finetuned(recipe):
        return ("prune.budget_s",)
    source = () if recipe.finetune.source else ("select.source",)
    return ("evaluate.source", "prune.budget_s", *source)


def _times_layers(recipe: Recipe) -> bool:
    return recipe.quantize.limited


def _read_by_quantize(recipe: Recipe) -> tuple[str, ...]:
    limit = ("select.source", "select.skip_unreadable", "evaluate.source", "evaluate.batch")
    workers = ("evaluate.workers", "evaluate.backend")
    return (
        "compile.targets",
        "compile.precisions",
        "compile.module",
        *workers,
        *(limit if recipe.quantize.limited else ()),
    )


def _unguarded(recipe: Recipe) -> bool:
    return recipe.guard.max_flips is None


def _guarded(recipe: Recipe) -> bool:
    return not _unguarded(recipe)


def _read_by_guard(recipe: Recipe) -> tuple[str, ...]:
    if _unguarded(recipe):
        return ()
    evaluation_options = ("evaluate.batch", "evaluate.workers", "evaluate.backend")
    return ("select.source", "select.skip_unreadable", "evaluate.source", *evaluation_options)


def _read_by_bench(recipe: Recipe) -> tuple[str, ...]:
    return ("select.source", *(("evaluate.source",) if _guarded(recipe) else ()))


STAGES = (
    Stage("load", load, reads=("export.size",), implementation=load_and_export.loader),
    Stage("prune", prune, needs=("load",), reads=_read_by_prune, idle=_unpruned, on_device=_times_or_timed),
    Stage(
        "finetune",
        finetune,
        needs=("load", "prune"),
        reads=_read_by_finetune,
        idle=_not_finetuned,
        on_device=_timed,
    ),
    Stage("export", export, needs=("load", "prune", "finetune")),
    Stage("select", select, needs=("load", "export"), reads=("evaluate.source",)),
    Stage(
        "calibrate",
        calibrate,
        needs=("export", "select"),
        reads=("select.source", "quantize.observer"),
        extra_key=quantizing.float_types,
    ),
    Stage(
        "quantize",
        quantize,
        needs=("export", "select", "calibrate"),
        reads=_read_by_quantize,
        on_device=_times_layers,
        extra_key=quantizing.cache_key_parts,
    ),
    Stage("compile", compile, needs=("export", "quantize"), reads=("export.input",), on_device=_always),
    Stage(
        "guard",
        guard,
        needs=("export", "select", "quantize", "compile"),
        reads=_read_by_guard,
        idle=_unguarded,
        on_device=_guarded,
    ),
    Stage("evaluate", evaluate, needs=("load", "export", "quantize", "compile", "guard"), on_device=_always),
    Stage(
        "bench",
        bench,
        needs=("export", "select", "compile", "guard"),
        reads=_read_by_bench,
        on_device=_always,
    ),
    Stage(
        "report",
        report,
        needs=(
            "load",
            "prune",
            "finetune",
            "export",
            "select",
            "calibrate",
            "quantize",
            "compile",
            "guard",
            "evaluate",
            "bench",
        ),
        needs_run_info=True,
    ),
)
