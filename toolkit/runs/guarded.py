"""Define what the guard stage leaves: guarded variants, each of two engines and a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.guard_results import Threshold
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.typed_json import JsonFile
from edgeship.toolkit.runs.compiled import CompiledVariant, CompiledVariants
from edgeship.toolkit.runs.variant_id import VariantId

SCHEMA = 1  # of guard.json


@dataclass(frozen=True, slots=True)
class Guard(Threshold):
    """Guard of an INT8 variant: its threshold, and what that was set with.

    Attributes:
        max_flips: Limit of the recipe.
        reference: Precision of the second run.
        source: Name of the images.
        own_images: True if they were named (`guard.source`), False if they are from the calibration source.
        simulated: True if an engine of the variant was simulated.
    """

    max_flips: float
    reference: Literal["fp32", "fp16", "bf16"]
    source: str
    own_images: bool
    simulated: bool

    def for_device(self) -> dict[str, Any]:
        """Return the content of guard.json, which `targets.runner.guard` reads."""
        return {"schema": SCHEMA, **plain(self)}


@dataclass(frozen=True, slots=True)
class Guards(JsonFile):
    """Guard of every guarded variant by name."""

    FILE: ClassVar[str] = "guards.json"
    variants: dict[str, Guard]

    def by_id(self) -> dict[VariantId, Guard]:
        """Return the guards by identity."""
        return {VariantId.parse(name): guard for name, guard in self.variants.items()}


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """A guarded variant on evaluation images.

    Attributes:
        images: Evaluated images.
        rerun: Those that ran again.
        flips: Those whose class is not that of FP32 on the same target.
        int8_flips: The same of INT8 alone.
    """

    images: int
    rerun: int
    flips: int
    int8_flips: int


@dataclass(frozen=True, slots=True)
class GuardedRuns(JsonFile):
    """Evaluation of every guarded variant by name."""

    FILE: ClassVar[str] = "guarded.json"
    variants: dict[str, GuardedRun]


def fast(variant: VariantId) -> VariantId:
    """Return the INT8 variant of a guarded one."""
    return replace(variant, guarded=False)


def reference(variant: VariantId, precision: Precision) -> VariantId:
    """Return the variant of the second run."""
    return VariantId(variant.target, precision, variant.pruned)


def exact(variant: VariantId) -> VariantId:
    """Return the FP32 variant that flips are counted against."""
    return reference(variant, "fp32")


def guarded_record(
    variant: VariantId, guard: Guard, built: Mapping[VariantId, CompiledVariant]
) -> CompiledVariant:
    """Return the record of a guarded variant: that of INT8, with the files of both engines."""
    int8, second = built[fast(variant)], built[reference(variant, guard.reference)]
    sizes = (int8.size_bytes, second.size_bytes)
    return replace(
        int8,
        runs_here=int8.runs_here and second.runs_here,
        note=f"{int8.note}; runs again in {guard.reference.upper()} up to a margin of {guard.threshold:.4g}",
        size_bytes=None if None in sizes else sum(size for size in sizes if size is not None),
    )


@dataclass(frozen=True, slots=True)
class GuardedEngine:
    """Guarded variant that runs here.

    Attributes:
        fast: Name of the INT8 variant; `reference`: that of the second run.
        threshold: Largest margin of an image that runs again.
    """

    fast: str
    reference: str
    threshold: float


def guarded_engines(folders: Mapping[str, Path]) -> dict[str, GuardedEngine]:
    """Return the guarded variants that run here, by name; empty for a run without the guard stage."""
    if "guard" not in folders:
        return {}
    built = CompiledVariants.read(folders["compile"]).built()
    result = {}
    for variant, guard in Guards.read(folders["guard"]).by_id().items():
        int8, second = fast(variant), reference(variant, guard.reference)
        if built[int8].runs_here and built[second].runs_here:
            result[variant.name] = GuardedEngine(int8.name, second.name, guard.threshold)
    return result
