"""The recipe: one frozen options class per stage, read from TOML and `section.key=value`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from edgeship.toolkit.core import plugins
from edgeship.toolkit.core.artifact import canonical_json
from edgeship.toolkit.core.errors import RecipeError, nearest
from edgeship.toolkit.core.parallel import Backend
from edgeship.toolkit.core.tensors import InputType, Interpolation, Size, read_size
from edgeship.toolkit.pipeline.fingerprints import existing, names_path
from edgeship.toolkit.pipeline.options import convert, read_toml, with_overrides

T = TypeVar("T")
RECIPES = Path(__file__).parent.parent / "recipes"


def option(default: T, explanation: str, **rules: Any) -> T:
    """Declare an option: default, one line of help, and rules for its value.

    Args:
        default: The value where a recipe does not set it.
        explanation: Meaning, with the unit.
        **rules: `path`: a file or folder that the result depends on (a text: only with this suffix);
            `required`: must not be empty; `above`, `least`, `most`: bounds, or functions that return them;
            `known`: function that returns the allowed names; `derived`: filled from another section, not set
            by a recipe; `not_in_key`: not part of the cache key; `read`: parses the value, or raises
            ValueError; `renamed_from`: former name of the key, accepted with a warning; `renamed_values`:
            former value -> current value.
    """
    return field(default=default, metadata={"help": explanation, **rules})


def _observers() -> tuple[str, ...]:
    return ("logits", *plugins.names("edgeship.quantization.observers"))


def _methods() -> tuple[str, ...]:
    return ("none", *plugins.names("edgeship.toolkit.prune.importances"))


def _targets() -> tuple[str, ...]:
    from edgeship import targets

    return targets.names()


def _cores() -> int:
    from edgeship.toolkit.core.threads import granted_cores

    return granted_cores()


@dataclass(frozen=True, slots=True)
class PreprocessOptions:
    """Preprocessing of a decoded image; options that are not set come from the checkpoint."""

    resize: Size | None = option(  # noqa: RUF009
        None,
        "Shorter side after resizing, in pixels, or both as HxW; 0 keeps the size.",
        least=0,
        read=partial(read_size, exact=True),
    )
    crop: Size | None = option(  # noqa: RUF009
        None, "The centre crop, in pixels: N or HxW.", least=1, read=read_size
    )
    mean: tuple[float, ...] | None = option(None, "Mean of each channel (RGB, pixels in 0..1).")
    std: tuple[float, ...] | None = option(None, "Standard deviation of each channel.")
    interpolation: Interpolation | None = option(None, "Resampling filter.")  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Training of `load.weights = "train"` and of `edgeship train`."""

    source: str = option("", "Labelled training images: folder, archive, CSV or digits:train.", path=True)
    epochs: int = option(12, "Passes over the images.", least=1)
    batch: int = option(64, "Images a step.", least=2)
    learning_rate: float = option(0.05, "Highest rate of the one-cycle schedule.", above=0.0)
    weight_decay: float = option(5e-4, "Decay of the weights.", least=0.0)
    flip: bool = option(True, "Mirror half of the images.")
    crop_px: int = option(4, "Random shift, in pixels.", least=0)
    seed: int = option(0, "Seed of weights, order and augmentation.", least=0)


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Source of the network."""

    model: str = option("auto", "auto (from the tensors), resnet18, ..., or a file.onnx.", path=".onnx")
    weights: str = option("", "A checkpoint file, torchvision:IMAGENET1K_V1, or train.", path=True)
    labels: str = option("", "File with the class name of each output, one a line.", path=True)
    output: str = option("", "Name of the logits, where a file.onnx has several outputs.")
    preprocess: PreprocessOptions = option(PreprocessOptions(), "Resize, crop, mean, std, ...")  # noqa: RUF009
    train: TrainingOptions = option(TrainingOptions(), "Options of training.")  # noqa: RUF009
    size: Size | None = option(None, "Same as export.size.", derived=True)  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class PruneOptions:
    """Structured pruning before quantization; one goal: a ratio, or max_expected_drop_pp."""

    method: str = option("none", "none, or how channels are chosen: obs, magnitude, ...", known=_methods)
    keep_ratio: float | None = option(
        None, "Ratio of the channels inside blocks to keep.", above=0.0, most=1.0, renamed_from="keep"
    )
    macs_ratio: float | None = option(
        None, "Ratio of the multiply-accumulates to keep.", above=0.0, most=1.0, renamed_from="macs"
    )
    latency_ratio: float | None = option(
        None,
        "Latency to reach, as a ratio to the unpruned INT8 model's.",
        above=0.0,
        most=1.0,
        renamed_from="target_latency",
    )
    max_expected_drop_pp: float | None = option(
        None, "Largest expected drop of top-1, in percentage points.", least=0.0, renamed_from="max_drop_pp"
    )
    channel_multiple: int = option(
        16, "Channel counts are multiples of this number.", least=1, renamed_from="step"
    )
    scope: Literal["block", "residual", "both"] = option(
        "block",
        "Channels to prune: block (inside blocks), residual (residual stream), or both.",
        renamed_values={"inner": "block", "stream": "residual"},
    )
    drop_blocks: bool = option(False, "Also remove whole blocks.")
    flip_augment: bool = option(True, "Also use the mirrored images.", renamed_from="mirror")
    source: str = option("", "Unlabelled images; default: select.source.", path=True)
    images: int = option(1000, "Number of images.", least=2)
    seed: int = option(0, "Seed of the selection.", least=0)
    exclude: str = option("", "Same as evaluate.source.", path=True, derived=True)
    targets: tuple[str, ...] = option((), "Same as compile.targets.", derived=True)
    threads: int = option(1, "Same as bench.threads.", derived=True)


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Distillation of the unpruned network into the pruned one; needs no labels."""

    epochs: int = option(0, "Passes over the images; 0 = none.", least=0)
    source: str = option("", "Images; default: select.source.", path=True)
    images: int | Literal["all"] = option("all", "Number of images, or all.", least=2)
    batch: int = option(32, "Images a step.", least=2)
    learning_rate: float = option(0.01, "Highest rate of the one-cycle schedule.", above=0.0)
    weight_decay: float = option(1e-4, "Decay of the weights.", least=0.0)
    flip: bool = option(True, "Mirror half of the images.")
    crop_px: int = option(4, "Random shift, in pixels.", least=0)
    feature_weight: float = option(
        1.0, "Weight of the loss on stage outputs, relative to that on logits.", least=0.0
    )
    label_weight: float = option(0.0, "Weight of the labels; 0 needs none.", least=0.0)
    qat_fraction: float = option(
        0.25,
        "Fraction of the epochs, at the end, with fake INT8 quantization.",
        least=0.0,
        most=1.0,
        renamed_from="int8_part",
    )
    seed: int = option(0, "Seed of the order.", least=0)
    exclude: str = option("", "Same as evaluate.source.", path=True, derived=True)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The ONNX graph."""

    size: Size | None = option(  # noqa: RUF009
        None, "Input in pixels, N or HxW (height x width); default: the crop.", least=1, read=read_size
    )
    batch: int | Literal["dynamic"] = option(1, "Images of one inference, or dynamic.", least=1)
    input: InputType = option(  # noqa: RUF009
        "float32", "float32, or uint8: engines take decoded pixels and normalize them."
    )


@dataclass(frozen=True, slots=True)
class SelectOptions:
    """The calibration images."""

    source: str = option("", "Folder, archive, CSV or digits:train.", path=True, required=True)
    images: int = option(300, "Number of calibration images.", least=1)
    seed: int = option(0, "Seed of the selection.", least=0)
    skip_unreadable: bool = option(
        False, "Leave unreadable images out and count them.", renamed_from="skip_bad"
    )
    exclude: str = option(
        "", "Same as evaluate.source: its images are never calibration images.", path=True, derived=True
    )


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The pass over the calibration images."""

    batch: int = option(8, "Images at once; more is faster and takes more memory.", least=1)
    source: str = option("", "Same as select.source.", path=True, derived=True)


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """Post-training quantization: from activation statistics to Q/DQ graphs."""

    observer: str = option(
        "logits",
        "Activation ranges: logits (least error of the logits; effort fast: mse), mse, minmax, percentile or "
        "entropy.",
        known=_observers,
    )
    effort: Literal["fast", "balanced", "max"] = option(
        "balanced", "fast (seconds), balanced, or max (minutes: scales learned, residual Adds in float)."
    )
    weight_rounding: Literal["gptq", "nearest"] = option(
        "gptq", "gptq (second moments of the inputs; nearest with effort fast) or nearest."
    )
    bias_correction: bool = option(
        True, "Correct biases by the mean error of their layer; without, GPTQ weights include it."
    )
    sensitivity: bool = option(
        False, "Measure the quantization error of each layer; seconds to minutes more."
    )
    overflow_fix: Literal["auto", "exact", "pairs"] = option(
        "auto",
        "INT8 accumulation of the target CPU: exact (VNNI), pairs (int16, may overflow), auto "
        "(this machine).",
        renamed_from="int8_sums",
    )
    float_layers: tuple[str, ...] = option((), "Layers that stay in float, by the graph's node names.")
    max_validation_drop_pp: float | None = option(
        None,
        "Largest top-1 drop of INT8 on the validation images, in percentage points; met by layers in float.",
        least=0.0,
        renamed_from="max_drop_pp",
    )
    min_agreement: float | None = option(
        None, "Minimum top-1 agreement with FP32 (no labels needed).", least=0.0, most=1.0
    )
    validation_images: int = option(
        1000,
        "Images of select.source, none of them for calibration, that check this limit.",
        least=1,
        renamed_from="judge_images",
    )
    targets: tuple[str, ...] = option((), "Same as compile.targets.", derived=True)
    source: str = option("", "Same as select.source.", path=True, derived=True)
    exclude: str = option("", "Same as evaluate.source.", path=True, derived=True)
    skip_unreadable: bool = option(False, "Same as select.skip_unreadable.", derived=True)
    batch: int = option(8, "Same as evaluate.batch.", derived=True)
    workers: int | None = option(None, "Same as evaluate.workers.", derived=True, not_in_key=True)
    backend: Backend = option(  # noqa: RUF009
        "threading", "Same as evaluate.backend.", derived=True, not_in_key=True
    )

    @property
    def limited(self) -> bool:
        """Return True if INT8 has an accuracy limit."""
        return self.max_validation_drop_pp is not None or self.min_agreement is not None


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Engines to build."""

    targets: tuple[str, ...] = option(
        ("openvino", "onnxruntime", "tensorrt"), "Runtimes to build for.", known=_targets, required=True
    )
    input: InputType = option("float32", "Same as export.input.", derived=True)  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Evaluation images."""

    source: str = option("", "Folder, archive, CSV or digits:test.", path=True, required=True)
    images: int | Literal["all"] = option("all", "Number of images, or all.", least=1)
    batch: int = option(32, "Images decoded and run at once.", least=1)
    skip_unreadable: bool = option(
        False, "Leave unreadable images out and count them.", renamed_from="skip_bad"
    )
    workers: int | None = option(
        None, "Batches in parallel; default: one per core, at most 8.", least=1, not_in_key=True
    )
    backend: Backend = option(  # noqa: RUF009
        "threading", "Executor: threading, loky (processes), ray or dask (a cluster).", not_in_key=True
    )


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Latency measurement."""

    batch: int | None = option(None, "Images of one inference; default: the graph's, else 1.", least=1)
    threads: int = option(1, "CPU threads of one session; not more than cores.", least=1, most=_cores)
    duration_s: float = option(2.0, "Seconds of timed inferences for each variant.", above=0.0)
    runs: int | None = option(None, "Timed inferences of each variant, instead of a duration.", least=1)
    warmup_s: float = option(0.5, "Seconds of warm-up inferences for each variant.", least=0.0)
    throughput_s: float = option(
        1.0, "Seconds each for throughput, end to end and energy; 0 skips them and memory.", least=0.0
    )
    source: str = option("", "Same as select.source.", path=True, derived=True)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Limits of a run (exit code 3 if one is missed); None: no limit."""

    max_drop_pp: float | None = option(None, "Largest drop of top-1, in percentage points.")
    min_speedup: float | None = option(None, "Smallest speed-up over FP32 on the same target.", above=0.0)
    max_latency_ms: float | None = option(None, "Largest median latency, in milliseconds.", above=0.0)
    judge_by: Literal["interval", "point"] = option(
        "interval",
        "interval: FAIL only where the whole 95 % interval misses, else NEEDS MORE DATA; point: the figure.",
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """All options of a run, one section per stage."""

    name: str = option("", "Name or path of the recipe file.", derived=True)
    load: LoadOptions = LoadOptions()
    prune: PruneOptions = PruneOptions()
    finetune: FinetuneOptions = FinetuneOptions()
    export: ExportOptions = ExportOptions()
    select: SelectOptions = SelectOptions()
    calibrate: CalibrateOptions = CalibrateOptions()
    quantize: QuantizeOptions = QuantizeOptions()
    compile: CompileOptions = CompileOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    bench: BenchOptions = BenchOptions()
    report: ReportOptions = ReportOptions()

    @classmethod
    def read(cls, recipe: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
        """Read a recipe.

        Args:
            recipe: A TOML file, or the name of one that comes with the toolkit ("quickstart").
            overrides: `section.key=value` texts, or a mapping from `section.key` to a value.

        Raises:
            RecipeError: The file, a key or a value cannot be used; the hint gives the nearest name.
        """
        path = find(recipe)
        table = _with_absolute_paths(path, read_toml(path))
        return replace(cls.build(table, overrides), name=path.stem if path.parent == RECIPES else str(path))

    @classmethod
    def build(cls, table: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
        """Build a recipe from a table of sections.

        Args:
            table: Section -> key -> value.
            overrides: As of `read`.

        Raises:
            RecipeError: A key or value cannot be used.
        """
        return cast("Recipe", convert(with_overrides(table, overrides, cls), cls, ""))

    def resolved(self) -> Recipe:
        """Return the recipe with all options filled in that follow from another section."""
        measured = (
            self.prune.latency_ratio is not None
        )  # else the result does not depend on targets and threads
        validation: dict[str, Any] = {}  # options that only a limit needs
        if self.quantize.limited:
            validation = {
                "source": self.select.source,
                "exclude": self.evaluate.source,
                "skip_unreadable": self.select.skip_unreadable,
                "batch": self.evaluate.batch,
            }
        return replace(
            self,
            load=replace(self.load, size=self.export.size),
            prune=replace(
                self.prune,
                source=self.prune.source or self.select.source,
                exclude=self.evaluate.source,
                targets=self.compile.targets if measured else (),
                threads=self.bench.threads if measured else 1,
            ),
            finetune=replace(
                self.finetune,
                source=self.finetune.source or self.select.source,
                exclude=self.evaluate.source,
            ),
            select=replace(self.select, exclude=self.evaluate.source),
            calibrate=replace(self.calibrate, source=self.select.source),
            quantize=replace(
                self.quantize,
                targets=self.compile.targets,
                workers=self.evaluate.workers,
                backend=self.evaluate.backend,
                **validation,
            ),
            compile=replace(self.compile, input=self.export.input),
            bench=replace(self.bench, source=self.select.source),
        )


def names() -> tuple[str, ...]:
    """Return the names of the bundled recipes."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def find(recipe: str | Path) -> Path:
    """Return the file of a recipe given by path or by name.

    Raises:
        RecipeError: There is none; the hint gives the nearest name.
    """
    path = Path(recipe)
    if path.is_file():
        return path
    if path.suffix or len(path.parts) != 1:
        raise RecipeError(
            f"no recipe file {path}", hint=f"check the path, or name one of {', '.join(names())}"
        )
    if path.name not in names():
        raise RecipeError(f"no recipe named '{path}'", hint=nearest(path.name, names()))
    return RECIPES / f"{path.name}.toml"


def option_help(options: Any = None, section: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield every option that a recipe may set: dotted name, default as TOML, and line of help."""
    for each in fields(Recipe() if options is None else options):
        if each.metadata.get("derived"):
            continue
        if hasattr(each.default, "__dataclass_fields__"):
            yield from option_help(each.default, f"{section}{each.name}.")
        else:
            default = "" if each.default is None else canonical_json(each.default)
            yield f"{section}{each.name}", default, str(each.metadata["help"])


def check_required(recipe: Recipe, stages: Iterable[str]) -> None:
    """Check that the required options of these stages are set.

    Raises:
        RecipeError: One is not; the hint shows how to set it.
    """
    for stage in stages:
        options = getattr(recipe, stage, None)
        for each in fields(options) if options is not None else ():
            if each.metadata.get("required") and not getattr(options, each.name):
                raise RecipeError(
                    f"{stage}.{each.name} is not set",
                    hint=f"--set {stage}.{each.name}=... : {each.metadata['help']}",
                )


def _with_absolute_paths(recipe: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Resolve the relative paths of a recipe file against its folder."""

    def visit(values: dict[str, Any], options: Any) -> dict[str, Any]:
        options_by_key = {each.name: each for each in fields(options)}
        result = dict(values)
        for key, value in values.items():
            each = options_by_key.get(key)
            if each is None:
                continue
            if names_path(each.metadata, value):
                absolute = str(recipe.absolute().parent / value)
                result[key] = absolute if existing(absolute) else value
            elif isinstance(value, dict) and each.default is not MISSING:
                result[key] = visit(value, each.default)
        return result

    return visit(table, Recipe)
