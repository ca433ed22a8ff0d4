"""Formatting of figures: the only place where percent and units are added."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from edgeship.toolkit.core.results import LatencySummary, LayerAudit, ReportedData, Variant
from edgeship.toolkit.runs.quantized import Sensitivity
from edgeship.toolkit.runs.variant_id import split_pruned

NONE = "not measured"
UNKNOWN = "not known"
MINUS = "−"
DROP = (
    "The drop is the top-1 accuracy of FP32 minus that of the variant, in percentage points, paired image by "
    "image; positive is a loss. Its 95 % interval is exact (Fay and Lumbard 2021)."
)
GRAPH = "the deployed ONNX file; the device builds an engine of another size from it"

TARGETS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}
FLOATS = {"f32": "float32", "bf16": "bfloat16"}
PREPROCESS_SOURCES = {
    "stated": "stated by the recipe",
    "file": "stored with the network",
    "graph": "inside the graph",
    "published": "from the published weights",
    "assumed": "assumed, not stated anywhere",
}
GATES = {
    "max_drop_pp": "Top-1 drop at most",
    "min_speedup": "Speed-up at least",
    "max_latency_ms": "Latency at most",
    "max_flips": "Flips at most",
}


def target(name: str) -> str:
    """Return the product name of a target, with ", pruned" for the suffix -pruned."""
    bare, pruned = split_pruned(name)
    return TARGETS.get(bare, bare) + ", pruned" * pruned


def title(variant: Variant) -> str:
    """Return the name of a variant for readers: OpenVINO INT8, pruned, guarded."""
    more = ", pruned" * variant.pruned + ", guarded" * (variant.guard is not None)
    return f"{variant.title or target(variant.target)} {variant.precision.upper()}{more}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """Format a fraction in percent."""
    return NONE if fraction is None else f"{100 * fraction:.{digits}f} %"


def signed(value: float, digits: int = 2) -> str:
    """Format a number with a typographic minus sign and no negative zero."""
    text = f"{abs(value):.{digits}f}"
    return MINUS + text if value < 0 and float(text) else text


def points(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Format percentage points, with the 95 % interval if there is one."""
    if value is None:
        return NONE
    return f"{signed(value)} pp" + (f" {bracket(interval)}" if interval else "")


def bracket(interval: Sequence[float], digits: int = 2) -> str:
    """Format an interval: [low, high]."""
    return f"[{signed(interval[0], digits)}, {signed(interval[1], digits)}]"


def milliseconds(value: float | None) -> str:
    """Format a time in ms with three significant digits."""
    return NONE if value is None else f"{three(value)} ms"


def three(value: float) -> str:
    """Format a number with three significant digits and no exponent."""
    size = abs(value)
    return (
        f"{value:.0f}"
        if size >= 100
        else f"{value:.1f}"
        if size >= 10
        else f"{value:.2f}"
        if size >= 1
        else f"{value:.3f}"
    )


def millijoule(value: float | None) -> str:
    """Format an energy in mJ."""
    return NONE if value is None else f"{three(value)} mJ"


def times(ratio: float | None) -> str:
    """Format a ratio: 3.42×."""
    return NONE if ratio is None else f"{ratio:.2f}×"


def decibel(value: float | None, digits: int = 1) -> str:
    """Format a power ratio in dB."""
    return NONE if value is None else f"{signed(value, digits)} dB"


def probe(sensitivity: Sensitivity) -> str:
    """Return a sentence on the images of a target's sensitivities and the SQNR of the logits on them."""
    number = sensitivity.images
    images_of = f"{'some' if number is None else whole(number)} calibration images"
    for row in sensitivity.layers[:1]:
        if row.float_sqnr_db is not None and row.drop_db is not None:
            images_of += f" (SQNR of the logits there: {decibel(row.float_sqnr_db - row.drop_db)})"
    return f"Measured on {images_of}. The SQNR in the section Accuracy is of the evaluation images."


def size(count: int | None) -> str:
    """Format bytes in decimal units."""
    return NONE if count is None else _scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def shipped(variant: Variant) -> str:
    """Format the size of the deployed file: an engine, or the graph that the device builds one from."""
    return size(variant.size_bytes) + (" graph" if ships_graph(variant) else "")


def ships_graph(variant: Variant) -> bool:
    """Return True if a variant has a checked graph, but no engine on this machine."""
    return variant.size_bytes is not None and not variant.runs_here


def count(number: float | None) -> str:
    """Format a number of MACs or parameters: 1.81 G, 11.7 M."""
    return NONE if number is None else _scaled(number, (("G", 1e9), ("M", 1e6), ("k", 1e3)), "").rstrip()


def whole(number: float | None) -> str:
    """Format an integer with thin spaces between thousands."""
    return NONE if number is None else f"{number:,.0f}".replace(",", "\u202f")


def calibration_images(data: ReportedData) -> str:
    """Format the number of calibration images, of which a converged pass ran only some."""
    run, selected = data.calibration_images, data.calibration_images_selected
    if run is None or selected is None or run == selected:
        return f"{whole(run)} images"
    return f"{whole(run)} of {whole(selected)} images"


def images(number: int) -> str:
    """Format a number of images."""
    return f"{whole(number)} image{'s' * (number != 1)}"


def coverage(variant: Variant) -> str:
    """Return the weighted layers in the variant's precision of all, and those of unknown precision."""
    if variant.int8_layers is None or variant.weighted_layers is None:
        return UNKNOWN
    unknown = sum(layer.weighted and layer.precision == "unknown" for layer in variant.audit)
    gap = f", {unknown} {UNKNOWN}" if unknown else ""
    if variant.precision in ("fp32", "int8"):
        return f"{variant.int8_layers} of {variant.weighted_layers}{gap}"
    own = sum(layer.weighted and layer.precision == variant.precision for layer in variant.audit)
    return f"{own} of {variant.weighted_layers} {variant.precision.upper()}{gap}"


def layer_time(layer: LayerAudit, variant: Variant) -> str:
    """Format the time of a layer: "fused" if reported so, "not known" if absent from the profile."""
    if layer.time_ms is None and any(other.time_ms is not None for other in variant.audit):
        return "fused" if layer.fused else UNKNOWN
    return milliseconds(layer.time_ms)


def layer_total(variant: Variant) -> str:
    """Return a sentence on the sum of a variant's layer times; empty if no layer was timed."""
    times_ms = [layer.time_ms for layer in variant.audit if layer.time_ms is not None]
    if not times_ms:
        return ""
    unknown = sum(layer.time_ms is None and not layer.fused for layer in variant.audit)
    whole_ms = variant.latency_ms.p50 if variant.latency_ms else None
    against = (
        "" if whole_ms is None else f" An inference without the profiler takes {milliseconds(whole_ms)}."
    )
    left_out = [
        *([f"{unknown} listed layer{'s' * (unknown != 1)} whose time is not known"] if unknown else []),
        "layers that are not listed (reorders, Q and DQ, activations)",
        "the overhead of the call",
    ]
    return (
        f"{milliseconds(sum(times_ms))} in {len(times_ms)} timed layer{'s' * (len(times_ms) != 1)}, from the "
        f"runtime's profiler, which slows every layer down.{against} Not included: {', '.join(left_out)}."
    )


def needs_attention(layer: LayerAudit, variant: Variant) -> bool:
    """Return True for a layer with a warning, or with weights and another precision than the variant."""
    return bool(layer.warning) or (layer.weighted and layer.precision != variant.precision)


def p_value(p: float | None) -> str:
    """Format a p-value, never as zero."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def conditions(latency: LatencySummary | None) -> str:
    """Format the conditions of a latency measurement."""
    if latency is None:
        return ""
    threads = "" if latency.threads is None else f", {latency.threads} thread{'s' * (latency.threads != 1)}"
    batch = "unknown" if latency.batch is None else latency.batch
    return f"batch {batch}{threads}, {latency.runs} run{'s' * (latency.runs != 1)}" + (
        f", {latency.included}" if latency.included else ""
    )


def sources(variants: Iterable[Variant]) -> list[tuple[str, str]]:
    """Return (kind, origin) of every origin of an accuracy."""
    return list(dict.fromkeys((accuracy(v), v.measured_on) for v in variants if v.measured_on and v.images))


def accuracy(variant: Variant) -> str:
    """Return the kind of a variant's accuracy, or "not measured" if it was only timed."""
    return NONE if variant.kind == "measured" and not variant.images else variant.kind


def latency_sources(variants: Iterable[Variant]) -> list[str]:
    """Return device and conditions of every latency measurement."""
    return list(
        dict.fromkeys(
            f"{v.latency_ms.measured_on or 'unknown device'}, {conditions(v.latency_ms)}"
            for v in variants
            if v.latency_ms
        )
    )


def speedup_baselines(variants: Iterable[Variant]) -> str:
    """Return the FP32 baseline of each speed-up as text; empty if there is no speed-up."""
    others: dict[str, list[str]] = {}
    for v in variants:
        if v.speedup_over and v.speedup_over != f"{v.target}-fp32":
            others.setdefault(v.speedup_over, []).append(v.name)
    if not any(v.speedup_over for v in variants):
        return ""
    exceptions = (f"{', '.join(names)} over {base}" for base, names in others.items())
    return "; ".join(["over FP32 of the same target", *exceptions])


def label(classes: Sequence[str], index: int | None) -> str:
    """Return the name of a class, or its index."""
    if index is None:
        return "unknown"
    return str(classes[index]) if index < len(classes) else f"class {index}"


def recipe_name(recipe: object) -> str:
    """Return the name of a recipe: the text itself, or its `name`."""
    return (
        recipe
        if isinstance(recipe, str)
        else str((isinstance(recipe, Mapping) and recipe.get("name")) or "recipe")
    )


def flat_options(recipe: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (`section.key`, value as text) of every recipe option."""
    if not isinstance(recipe, Mapping):
        return
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flat_options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _scaled(number: float, units: Sequence[tuple[str, float]], smallest: str) -> str:
    for unit, factor in units:
        if number >= factor:
            return f"{three(number / factor)} {unit}"
    return f"{number:.0f} {smallest}"
