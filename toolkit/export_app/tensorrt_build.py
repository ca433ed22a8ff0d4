"""Command that builds a TensorRT engine on the device, for generated READMEs."""

from __future__ import annotations

from edgeship.targets.tensorrt import builder, jetson
from edgeship.toolkit.core.tensors import ShapeProfile
from edgeship.toolkit.export_app.source import Source
from edgeship.toolkit.runs.index import RunIndex


def command(source: Source, *, graph: str = "model.onnx", plan: str = "model.plan", batch: int = 1) -> str:
    """Return the trtexec command for the TensorRT version that the run was compiled for.

    Args:
        source: The variant; its precision decides the builder's flags.
        graph: ONNX file.
        plan: Engine to write.
        batch: Most images of one inference, of a graph with a dynamic batch.
    """
    compiled = RunIndex.read(source.run).recipe.get("compile", {})
    version = jetson.choose(jetpack=compiled.get("jetpack"), tensorrt=compiled.get("tensorrt"))
    profile = {}
    if source.input.shape[0] < 0:
        one, most = (1, *source.input.shape[1:]), (batch, *source.input.shape[1:])
        profile = {source.input.name: ShapeProfile(one, most, most)}
    precision = source.variant.precision
    built = builder.plan(version, builder.BuildOptions(precision=precision, profile=profile))
    words = [word.replace("{onnx}", graph).replace("{plan}", plan) for word in built.trtexec]
    return " ".join(["/usr/src/tensorrt/bin/trtexec", *words])
