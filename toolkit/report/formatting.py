"""Figures as people read them: percent and units appear here, and only here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from edgeship.toolkit.core.results import LatencySummary, LayerAudit, Variant

NONE = "not measured"
UNKNOWN = "not known"
MINUS = "−"
DROP = (
    "A drop is FP32's top-1 minus this variant's in percentage points, paired image by image: positive is a "
    "loss. Its exact 95 % interval is Fay and Lumbard's (2021)."
)
GRAPH = "the file that ships; the device builds its engine of it, which is not of this size"

TARGETS = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}
FLOATS = {"f32": "float32", "bf16": "bfloat16"}
PREPROCESS_SOURCES = {
    "stated": "stated by the recipe",
    "file": "stored with the network",
    "graph": "inside the graph",
    "published": "of the published weights",
    "assumed": "assumed: nothing states it",
}
GATES = {
    "max_drop_pp": "Top-1 drop at most",
    "min_speedup": "Speed-up at least",
    "max_latency_ms": "Median latency at most",
}


def target(name: str) -> str:
    """A target, or one with the ending of a pruned graph, as its makers write it."""
    bare = name.removesuffix("-pruned")
    return TARGETS.get(bare, bare) + (", pruned" if bare != name else "")


def title(variant: Variant) -> str:
    """A variant in words: OpenVINO INT8, pruned."""
    pruned = ", pruned" if variant.pruned else ""
    return f"{target(variant.target)} {variant.precision.upper()}{pruned}"


def percent(fraction: float | None, digits: int = 2) -> str:
    """A fraction in percent."""
    return NONE if fraction is None else f"{100 * fraction:.{digits}f} %"


def signed(value: float, digits: int = 2) -> str:
    """A number with a real minus sign, and no minus zero."""
    text = f"{abs(value):.{digits}f}"
    return MINUS + text if value < 0 and float(text) else text


def points(value: float | None, interval: Sequence[float] | None = None) -> str:
    """Percentage points, with their 95 % interval where there is one."""
    if value is None:
        return NONE
    return f"{signed(value)} pp" + (f" {bracket(interval)}" if interval else "")


def bracket(interval: Sequence[float], digits: int = 2) -> str:
    """An interval: [low, high]."""
    return f"[{signed(interval[0], digits)}, {signed(interval[1], digits)}]"


def milliseconds(value: float | None) -> str:
    """A time in ms, three significant digits."""
    return NONE if value is None else f"{three(value)} ms"


def three(value: float) -> str:
    """Three significant digits without an exponent."""
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
    """An energy in mJ."""
    return NONE if value is None else f"{three(value)} mJ"


def times(ratio: float | None) -> str:
    """A ratio: 3.42×."""
    return NONE if ratio is None else f"{ratio:.2f}×"


def decibel(value: float | None, digits: int = 1) -> str:
    """A ratio of powers in dB."""
    return NONE if value is None else f"{signed(value, digits)} dB"


def probe(sensitivity: Mapping[str, Any]) -> str:
    """The images of a target's sensitivities, and the SQNR of the logits on them."""
    number = sensitivity.get("images")
    images_of = f"{'some' if number is None else whole(number)} calibration images"
    rows = [row for row in sensitivity.get("layers") or () if row.get("float_sqnr_db") is not None]
    if rows:
        images_of += f", on which the logits have {decibel(rows[0]['float_sqnr_db'] - rows[0]['drop_db'])}"
    return f"Measured on {images_of}; the SQNR of the logits under Accuracy is that of the evaluation images."


def size(count: int | None) -> str:
    """Bytes in decimal units."""
    return NONE if count is None else _scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)), "B")


def shipped(variant: Variant) -> str:
    """The size of what ships: an engine, or the graph that a device builds its own engine of."""
    return size(variant.size_bytes) + (" graph" if ships_graph(variant) else "")


def ships_graph(variant: Variant) -> bool:
    """Whether there is no engine of a variant here, but only the checked graph."""
    return variant.size_bytes is not None and not variant.runs_here


def count(number: float | None) -> str:
    """MACs and parameters: 1.81 G, 11.7 M."""
    return NONE if number is None else _scaled(number, (("G", 1e9), ("M", 1e6), ("k", 1e3)), "").rstrip()


def whole(number: float | None) -> str:
    """A whole number with thin spaces between thousands."""
    return NONE if number is None else f"{number:,.0f}".replace(",", "\u202f")


def images(number: int) -> str:
    """So many images."""
    return f"{whole(number)} image{'s' * (number != 1)}"


def coverage(variant: Variant) -> str:
    """Return the weighted layers in INT8 of all weighted layers, and those of unknown precision."""
    if variant.int8_layers is None or variant.weighted_layers is None:
        return UNKNOWN
    unknown = sum(layer.weighted and layer.precision == "unknown" for layer in variant.audit)
    gap = f", {unknown} {UNKNOWN}" if unknown else ""
    return f"{variant.int8_layers} of {variant.weighted_layers}{gap}"


def layer_time(layer: LayerAudit, variant: Variant) -> str:
    """Time of a layer: fused where the runtime says so, not known where the profile lacks its name."""
    if layer.time_ms is None and any(other.time_ms is not None for other in variant.audit):
        return "fused" if layer.fused else UNKNOWN
    return milliseconds(layer.time_ms)


def layer_total(variant: Variant) -> str:
    """Sum of the layer times of a variant, and what the sum leaves out; empty where no layer was timed."""
    times_ms = [layer.time_ms for layer in variant.audit if layer.time_ms is not None]
    if not times_ms:
        return ""
    unknown = sum(layer.time_ms is None and not layer.fused for layer in variant.audit)
    whole_ms = variant.latency_ms.p50 if variant.latency_ms else None
    against = (
        ""
        if whole_ms is None
        else f" Timed without the profiler, an inference takes {milliseconds(whole_ms)}."
    )
    left_out = [
        *([f"{unknown} listed layer{'s' * (unknown != 1)} whose time is not known"] if unknown else []),
        "layers that are not listed (reorders, Q and DQ, activations)",
        "the call itself",
    ]
    return (
        f"{milliseconds(sum(times_ms))} in {len(times_ms)} timed layer{'s' * (len(times_ms) != 1)}, by the "
        f"runtime's profile, which slows each of them.{against} Left out: {', '.join(left_out)}."
    )


def odd(layer: LayerAudit, variant: Variant) -> bool:
    """Whether a layer is one to look at: warned of, or with weights and not in the variant's precision."""
    return bool(layer.warning) or (layer.weighted and layer.precision != variant.precision)


def p_value(p: float | None) -> str:
    """A p-value, never shown as zero."""
    if p is None:
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def conditions(latency: LatencySummary | None) -> str:
    """What a latency was measured under."""
    if latency is None:
        return ""
    threads = "" if latency.threads is None else f", {latency.threads} thread{'s' * (latency.threads != 1)}"
    batch = "unknown" if latency.batch is None else latency.batch
    return f"batch {batch}{threads}, {latency.runs} run{'s' * (latency.runs != 1)}" + (
        f", {latency.included}" if latency.included else ""
    )


def sources(variants: Iterable[Variant]) -> list[tuple[str, str]]:
    """Every place an accuracy came from: kind, and where."""
    return list(dict.fromkeys((accuracy(v), v.measured_on) for v in variants if v.measured_on and v.images))


def accuracy(variant: Variant) -> str:
    """The kind of a variant's accuracy; one that was only timed has none."""
    return NONE if variant.kind == "measured" and not variant.images else variant.kind


def latency_sources(variants: Iterable[Variant]) -> list[str]:
    """Every place and way a latency was measured."""
    return list(
        dict.fromkeys(
            f"{v.latency_ms.measured_on or 'unknown device'}, {conditions(v.latency_ms)}"
            for v in variants
            if v.latency_ms
        )
    )


def label(classes: Sequence[str], index: int | None) -> str:
    """The name of a class, or its number."""
    if index is None:
        return "unknown"
    return str(classes[index]) if index < len(classes) else f"class {index}"


def recipe_name(recipe: Any) -> str:
    """The name of a recipe, which is its text or its `name`."""
    return recipe if isinstance(recipe, str) else str(recipe.get("name") or "recipe")


def flat(recipe: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every option of a recipe as `section.key`, and its value as text."""
    if not isinstance(recipe, Mapping):
        return
    for key, value in recipe.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _scaled(number: float, units: Sequence[tuple[str, float]], smallest: str) -> str:
    for unit, factor in units:
        if number >= factor:
            return f"{three(number / factor)} {unit}"
    return f"{number:.0f} {smallest}"
