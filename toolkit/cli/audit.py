"""`edgeship audit`: list the precision of the layers, and the problems of a graph or engine."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from edgeship.toolkit.cli._options import JSON, Command, recipe_options
from edgeship.toolkit.cli._outputs import OutPath, refuse_inputs
from edgeship.toolkit.core.errors import GateError, ModelError, TargetError
from edgeship.toolkit.core.results import HALVES, Precision

if TYPE_CHECKING:
    from edgeship.targets.tensorrt.engine_analysis import Explanation
    from edgeship.toolkit.core.results import Finding, LayerAudit

RECORD_SUFFIXES = (".json", ".txt", ".log")
ENGINE_SUFFIXES = (".plan", ".engine", ".trt")


@click.command(
    cls=Command,
    epilog="""\b
Examples:
  edgeship audit model.onnx --target openvino
  edgeship audit model.onnx --target tensorrt --jetpack 6.2
  edgeship audit model.onnx --target tensorrt --trt 8.5 --fix --out legal.onnx
  edgeship audit graph.json --profile profile.json --model model.onnx
  edgeship audit engines/fp16 --precision fp16
  edgeship audit engines/int8 engines/fp16
""",
)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("other", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--target",
    default="tensorrt",
    show_default=True,
    help="Target of an ONNX file: openvino, onnxruntime or tensorrt.",
)
@click.option(
    "--precision",
    default="int8",
    show_default=True,
    type=click.Choice([name for name in get_args(Precision) if name != "fp32"]),
    help="Precision that the layers with weights should run in.",
)
@recipe_options("compile.jetpack", "compile.tensorrt")
@click.option("--fix", is_flag=True, help="Write a repaired graph to --out.")
@click.option(
    "--out",
    type=OutPath(dir_okay=False),
    help="File of the repaired graph.  [default: SOURCE-fixed.onnx]",
)
@click.option(
    "--profile",
    type=click.Path(exists=True, path_type=Path),
    help="Layer times for an engine record (trtexec --exportProfile).",
)
@click.option(
    "--model",
    type=click.Path(exists=True, path_type=Path),
    help="ONNX file that the engine was built from, to name its nodes.",
)
@JSON
def command(
    *,
    source: Path,
    other: Path | None,
    target: str,
    precision: Precision,
    options: dict[str, Any],
    fix: bool,
    out: Path | None,
    profile: Path | None,
    model: Path | None,
    as_json: bool,
) -> None:
    """Audit an ONNX file or a TensorRT engine.

    SOURCE is an ONNX file, checked against the rules of the device's TensorRT or compiled for another
    --target; a TensorRT engine record (the graph.json of `trtexec --exportLayerInfo` or of the runner's
    `inspect`, a log of `trtexec --dumpLayerInfo`, or a folder with graph.json and profile.json); or a
    TensorRT engine, if this machine's GPU can load it. With a second engine record as OTHER, the two are
    compared layer by layer.

    Exit code 3: the graph violates a TensorRT rule, a layer does not run in the precision, or that of a
    weighted layer is unknown.
    """
    from edgeship import targets
    from edgeship.targets.tensorrt import jetson
    from edgeship.toolkit.pipeline.recipe import Recipe

    if other is not None:
        _compare(source, other, model, as_json=as_json)
    elif source.is_dir() or not source.suffix or source.suffix.lower() in RECORD_SUFFIXES:
        _explain(source, profile, model, precision, as_json=as_json)
    elif source.suffix == ".onnx" and targets.get(target).checks_rules:
        fixed = (out or source.with_name(f"{source.stem}-fixed.onnx")) if fix else None
        if fixed is not None:
            refuse_inputs(fixed, source)
        version = Recipe.build({}, options).compile.device_version() or jetson.PORTABLE
        _lint(source, version, fixed, precision, as_json=as_json)
    elif source.suffix == ".onnx":
        _compile(source, target, precision, as_json=as_json)
    elif source.suffix in ENGINE_SUFFIXES:
        _live(source, model, precision, as_json=as_json)
    else:
        raise ModelError(
            f"{source.name} is neither an ONNX file (.onnx), nor a TensorRT engine "
            f"({', '.join(ENGINE_SUFFIXES)}) or its record ({', '.join(RECORD_SUFFIXES)}, or a folder)",
            hint="audit the ONNX file it was built from, e.g. with --target openvino",
        )


def _lint(source: Path, version: str, fixed: Path | None, precision: Precision, *, as_json: bool) -> None:
    from edgeship.targets.tensorrt import lint, repair
    from edgeship.toolkit.core.artifact import plain

    fixed_findings: tuple[Finding, ...] = ()
    if fixed is None:
        left = tuple(lint.lint(source, version))
    else:
        done = repair.fix(source, version, fixed)
        fixed_findings, left = done.fixed, done.left
    errors = [finding for finding in left if finding.severity == "error"]
    if as_json:
        click.echo(
            json.dumps(
                {"tensorrt": version, "findings": plain(left), "fixed": plain(fixed_findings)}, indent=1
            )
        )
    else:
        for finding in fixed_findings:
            click.echo(f"fixed    {finding.rule:<26} {finding.node}")
        for finding in left:
            _print_finding(finding)
        verdict = f"{len(errors)} errors, {len(left) - len(errors)} warnings"
        where = f"; {len(fixed_findings)} fixed in {fixed}" if fixed is not None else ""
        nothing = "nothing to change" if precision in HALVES or _quantized(source) else "nothing in INT8"
        click.echo(f"TensorRT {version}: {verdict if left else nothing}{where}")
    _check_quantized(source, "tensorrt", precision)
    if errors:
        repairable = any(finding.repairable for finding in errors) and fixed is None
        raise GateError(
            f"{source}: {len(errors)} violations of TensorRT {version} rules, expected 0",
            hint="--fix repairs some of this" if repairable else errors[0].fix,
        )


def _print_finding(finding: Finding) -> None:
    click.echo(f"{finding.severity:<8} {finding.rule:<26} {finding.node}")
    for label, text in (("", finding.message), ("fix: ", finding.fix), ("source: ", finding.source)):
        click.echo(f"         {label}{text}")


def _compile(source: Path, target: str, precision: Precision, *, as_json: bool) -> None:
    import tempfile

    from edgeship import targets
    from edgeship.toolkit.core.artifact import plain

    with tempfile.TemporaryDirectory() as scratch:
        runtime = targets.get(target)
        if precision not in runtime.precisions():
            raise TargetError(
                f"{runtime.title} has no {precision.upper()} on this machine",
                hint=f"--precision {', '.join(each for each in runtime.precisions() if each != 'fp32')}",
            )
        compiled = runtime.compile(source, Path(scratch), precision)
    if as_json:
        click.echo(json.dumps(plain(compiled), indent=1))
    else:
        _layers(compiled.audit, precision)
        click.echo(compiled.note)
    _check_quantized(source, target, precision)
    _gate(compiled.audit, precision)


def _live(source: Path, model: Path | None, precision: Precision, *, as_json: bool) -> None:
    from edgeship.targets.tensorrt import local_gpu
    from edgeship.toolkit.core.artifact import plain

    with local_gpu.opened(source) as session:
        layers = session.audit(model)
    if as_json:
        click.echo(json.dumps(plain(layers), indent=1))
    else:
        _layers(layers, precision)
    _gate(layers, precision)


def _explain(
    source: Path, profile: Path | None, model: Path | None, precision: Precision, *, as_json: bool
) -> None:
    from edgeship.targets.tensorrt.engine_analysis import ADVICE, explain
    from edgeship.toolkit.core.artifact import plain

    explanation = explain(source, profile, model)
    profiles = (explanation, *explanation.other_profiles)
    if as_json:
        click.echo(json.dumps(plain(explanation), indent=1))
    else:
        for number, each in enumerate(profiles):
            if len(profiles) > 1:
                click.echo(f"optimization profile {number}")
            _explained(each, precision)
    unknown = sum(each.precisions.get("unknown", 0) for each in profiles)
    if unknown:
        weighted = sum(sum(each.precisions.values()) for each in profiles)
        raise GateError(f"precision of {unknown} of {weighted} weighted layers unknown", hint=ADVICE)
    if not any(each.precisions for each in profiles):
        hint = "name the ONNX file with --model" if explanation.detailed else ADVICE
        raise GateError(f"no layer with weights recognized in {source.name}", hint=hint)
    _gate(tuple(layer for each in profiles for layer in each.layers), precision)


def _explained(explanation: Explanation, precision: Precision) -> None:
    _layers(explanation.layers, precision, explanation)
    for item in explanation.reformats:
        click.echo(f"reformat {_time(item.time_ms)}  {item.change:<14} {item.cause}")
    for problem in explanation.problems:
        click.echo(f"problem  {problem.rule}: {problem.message}\n         fix: {problem.fix}")
    click.echo(explanation.verdict)


def _compare(first: Path, second: Path, model: Path | None, *, as_json: bool) -> None:
    from edgeship.targets.tensorrt.engine_diff import compare
    from edgeship.toolkit.core.artifact import plain

    diff = compare(first, second, model)
    if as_json:
        click.echo(json.dumps(plain(diff), indent=1))
        return
    for role, (one, two) in diff.by_role.items():
        click.echo(f"{role:<15} {one:8.3f} ms {two:8.3f} ms {one - two:+8.3f} ms")
    for item in diff.layers[:10]:
        kinds = f"{item.first[0]} / {item.second[0]}"
        click.echo(f"{item.layer:<30} {item.first[1]:8.3f} ms {item.second[1]:8.3f} ms  {kinds}")
    click.echo(diff.verdict)


def _layers(
    layers: tuple[LayerAudit, ...], precision: Precision, explanation: Explanation | None = None
) -> None:
    width = max((len(layer.name) for layer in layers), default=0)
    for layer in layers:
        share = explanation.share(layer.time_ms) if explanation is not None else None
        percent = f"{100 * share:5.1f} %" if share is not None else ""
        line = (
            f"{layer.name:<{width}}  {layer.kind:<14} {layer.precision:<7} {_time(layer.time_ms)} {percent}"
        )
        click.echo(f"{line.rstrip()}  {layer.warning}".rstrip())
    weighted: list[Any] = [layer for layer in layers if layer.weighted]
    if weighted:
        counts = Counter(layer.precision for layer in weighted)
        own = counts.pop(precision, 0)
        others = "".join(
            f", {count} {name if name == 'unknown' else f'in {name.upper()}'}"
            for name, count in counts.items()
        )
        click.echo(f"{own} of {len(weighted)} weighted layers run in {precision.upper()}{others}")


def _time(time_ms: float | None) -> str:
    return f"{time_ms:7.3f} ms" if time_ms is not None else " " * 10


def _quantized(source: Path) -> bool:
    import onnx

    from edgeship.toolkit.graph.standard import QUANTIZED_OPS

    nodes = onnx.load(str(source), load_external_data=False).graph.node
    return any(node.op_type in QUANTIZED_OPS for node in nodes)


def _check_quantized(source: Path, target: str, precision: Precision) -> None:
    """Raise if a graph has no Q/DQ node, so that no target can run it in 8 bits.

    Raises:
        GateError: The graph is a float graph.
    """
    if precision not in HALVES and not _quantized(source):
        raise GateError(
            f"no Q/DQ in {source.name}: nothing would run in {precision.upper()}",
            hint=f"quantize it: edgeship quantize {source} IMAGES --target {target} --out FILE",
        )


def _gate(layers: tuple[LayerAudit, ...], precision: Precision) -> None:
    """Raise for layers with a warning, and, except in INT8, for weights in another precision.

    An INT8 graph may leave layers in float on purpose.
    """
    missed = [
        layer
        for layer in layers
        if layer.warning or (precision != "int8" and layer.weighted and layer.precision != precision)
    ]
    if missed:
        raise GateError(
            f"{len(missed)} of {len(layers)} layers do not run in {precision.upper()}, first "
            f"{missed[0].name}",
            hint=missed[0].warning or f"it runs in {missed[0].precision.upper()}",
        )
