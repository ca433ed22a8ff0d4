"""Generate tables of models, operators, devices, TensorRT releases, quantization schemes and terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from docs.generators import ROOT, code, page, section, table
from edgeship import targets
from edgeship.quantization import placement, torch_ops
from edgeship.targets.tensorrt import jetson, versions
from edgeship.toolkit.core.int8_sums import EXACT_DOT_PRODUCTS
from edgeship.toolkit.core.quant import X86, Cpu, QuantScheme, QuantSpec
from edgeship.toolkit.models import resnet, weights
from edgeship.toolkit.models.recognize import NESTS


def pages() -> Iterator[tuple[str, str]]:
    """Yield the pages of models, operators, devices, targets and terms."""
    yield "reference/models.md", page("Supported models", *_models())
    yield "reference/operators.md", page("Supported operators", *_operators())
    yield "reference/devices.md", page("Devices, JetPack and TensorRT", *_devices())
    yield "reference/targets.md", page("Quantization schemes of the targets", *_schemes())
    terms = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Glossary\n")[2]
    yield "reference/glossary.md", page("Glossary", terms)


def _models() -> Iterator[str]:
    yield (
        "Two kinds of model are read: a checkpoint of a ResNet in torchvision's layout, whose architecture "
        "is recognized from the names and shapes of its tensors, and a float ONNX image classifier of any "
        "architecture. Pruning takes the first kind only."
    )
    rows = []
    for name in resnet.names():
        arch = resnet.architecture(name)
        published = [f"torchvision:{kind}" for model, kind in weights.PUBLISHED if model == name]
        blocks = " + ".join(str(len(stage)) for stage in arch.widths.inner)
        rows.append(
            (code(name), arch.unit, blocks, arch.stem, arch.shortcut, ", ".join(map(code, published)))
        )
    header = ("network", "block", "blocks of each stage", "stem", "shortcut", "published weights")
    yield table(header, rows)
    yield (
        "Other widths (pruned networks), dropped blocks, other numbers of classes and grey input are read "
        "too."
    )
    yield "## Checkpoint files"
    yield (
        f"Suffixes: {', '.join(map(code, weights.SUFFIXES))}. A state dict may be nested under "
        f"{', '.join(map(code, NESTS))}, and its names may have a common prefix such as `module.`. "
        "Pickled objects other than tensors are refused."
    )
    yield "## ONNX files"
    yield (
        "One image input, (N, C, H, W) or (N, H, W, C), grey or RGB, float32 or uint8 behind a Cast; one "
        "output of logits (N, classes), or several of which `load.output` names one. float16, bfloat16 and "
        "float64 are converted to float32; opsets 7 and newer are read. Not read: quantized graphs, control "
        "flow, several images as inputs, detectors and segmentation networks."
    )


def _operators() -> Iterator[str]:
    yield (
        "A graph may have any operator that ONNX Runtime runs: one that is not listed here stays in float. "
        "*INT8*: computed on integers where the target's scheme says so. *Fitted*: computed by the "
        "differentiable executor that GPTQ, logit-aware clipping and learned scales need; with an operator "
        "that is not fitted, `quantize.effort` is `fast`."
    )
    quantized = {
        **dict.fromkeys(placement.WEIGHTED, "weights and input"),
        **dict.fromkeys(placement.AVERAGE_OPS, "input and output"),
        **dict.fromkeys((*placement.LAYOUT_OPS, *placement.EXTREMUM_OPS, "MaxPool"), "passes integers"),
        "Add": "by the scheme of the target",
    }
    listed = sorted({*torch_ops.OPERATIONS, *quantized})
    rows = [
        (code(name), quantized.get(name, ""), "yes" if name in torch_ops.OPERATIONS else "")
        for name in listed
    ]
    yield table(("operator", "INT8", "fitted"), rows)


def _devices() -> Iterator[str]:
    yield (
        "A Jetson builds its own engine from the graph that edgeship ships. Rows without a device of ours "
        "behind them are facts from the sources named, not measurements. `edgeship device probe` reads what "
        "a device has."
    )
    yield "## JetPack, TensorRT and precision"
    rows = []
    for line in jetson.JETPACKS:
        rules = versions.rules(line.tensorrt)
        both = [jetson.module(name) for name in line.modules]
        int8 = ", ".join(item.name for item in both if item.int8) or "none"
        fp16 = ", ".join(item.name for item in both if not item.int8) or "-"
        releases = (
            line.releases[0] if len(line.releases) == 1 else f"{line.releases[0]} to {line.releases[-1]}"
        )
        dla = rules.dla if any(item.dla_cores for item in both) else "-"
        optional = " (installable)" if line.installable else ""
        rows.append(
            (releases, line.tensorrt + optional, line.cuda, line.python, int8, fp16, dla, line.evidence)
        )
    header = (
        "JetPack",
        "TensorRT",
        "CUDA",
        "Python",
        "INT8 on the GPU",
        "FP16 only",
        "INT8 on a DLA",
        "source",
    )
    yield table(header, rows)
    yield (
        "INT8 on a DLA: *implicit* takes scales from a calibration cache (`export-jetson --dla`), *explicit* "
        "takes Q/DQ, *none* means that this TensorRT has no DLA."
    )
    older = ", ".join(f"{name} (TensorRT {trt})" for name, trt in jetson.TOO_OLD.items())
    yield f"Too old, because they read no per-channel Q/DQ: JetPack {older}."
    yield "## Modules"
    rows = [
        (
            item.name,
            item.sm,
            "yes" if item.int8 else "no: use FP16",
            item.dla_cores,
            jetson.newest_jetpack(item),
        )
        for item in jetson.MODULES
    ]
    yield table(("module", "SM", "INT8 on the GPU", "#DLA cores", "newest JetPack"), rows)
    yield "## TensorRT releases"
    rows = [
        (
            rules.name,
            rules.max_opset,
            "yes" if rules.uint8_input else "no",
            "required" if rules.needs_zero_point else "optional",
            "FP32 or FP16" if rules.half_scales else "FP32",
            rules.strongly_typed,
            rules.dla,
        )
        for rules in versions.RELEASES
    ]
    header = (
        "from",
        "#newest opset",
        "uint8 input",
        "zero points",
        "scales",
        "strong typing",
        "INT8 on a DLA",
    )
    yield table(header, rows)
    yield "A version between two rows behaves like the one before it. Sources: " + "; ".join(
        versions.RELEASES[0].sources
    )
    yield "## Processors"
    yield (
        "x86-64 and arm64 processors run OpenVINO and ONNX Runtime graphs. INT8 sums are exact with "
        f"{', '.join(map(code, sorted(EXACT_DOT_PRODUCTS)))}. x86 processors without them add products in "
        "pairs that may overflow 16 bits; their graphs have reduced weight ranges exactly where they would "
        "([overflow](../methods/calibration.md#overflow))."
    )


def _schemes() -> Iterator[str]:
    yield (
        "One calibration gives one graph for each target. The graphs differ by these values only; the first "
        "table is for a processor with exact INT8 sums (VNNI)."
    )
    exact = _by_target(X86["exact"])
    yield _scheme_table(exact, [each.name for each in fields(QuantScheme)])
    yield "## x86 processors without VNNI"
    pairs = _by_target(X86["pairs"])
    differ = [
        each.name
        for each in fields(QuantScheme)
        if any(getattr(exact[name], each.name) != getattr(pairs[name], each.name) for name in exact)
    ]
    yield _scheme_table(pairs, differ)


def _by_target(cpu: Cpu) -> dict[str, QuantScheme]:
    return {name: targets.get(name).scheme(cpu) for name in targets.names()}


def _scheme_table(schemes: dict[str, QuantScheme], names: list[str]) -> str:
    texts = section(QuantScheme, "Attributes")
    rows = [
        (code(name), *(_value(getattr(scheme, name)) for scheme in schemes.values()), texts.get(name, ""))
        for name in names
    ]
    return table(("value", *schemes, "meaning"), rows)


def _value(value: object) -> str:
    if isinstance(value, QuantSpec):
        axis = "per tensor" if value.axis is None else f"per channel of axis {value.axis}"
        zero = "symmetric" if value.symmetric else "with a zero point"
        return f"{value.dtype}, {zero}, {axis}"
    return (
        {True: "yes", False: "no", None: "-"}.get(value, str(value)) if not isinstance(value, str) else value
    )
