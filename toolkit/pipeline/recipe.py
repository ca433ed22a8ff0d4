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
from edgeship.toolkit.pipeline.options import (
    convert,
    current_name,
    merge,
    parse_override,
    read_toml,
    warn_renamed,
    with_current_names,
)

T = TypeVar("T")
RECIPES = Path(__file__).parent.parent / "recipes"


def option(default: T, explanation: str, **rules: Any) -> T:
    """A field with its default, a line of help and the rules its value obeys.

    Args:
        default: The value if a recipe says nothing.
        explanation: What it is, with its unit.
        **rules: `path`: names a file or folder that the result depends on (a text: only with this ending);
            `required`: may not stay empty; `above`, `least`, `most`: bounds, or what gives them; `known`:
            gives the names it may have; `derived`: filled from another section, so that a recipe does not
            set it; `not_in_key`: the result does not depend on it; `read`: reads the value, or raises
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
    """How a decoded image becomes the network's input; what is not given is the checkpoint's own."""

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
    """Where the network comes from."""

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
    images: int = option(1000, "How many of them.", least=2)
    seed: int = option(0, "Seed of their choice.", least=0)
    exclude: str = option("", "Same as evaluate.source.", path=True, derived=True)
    targets: tuple[str, ...] = option((), "Same as compile.targets.", derived=True)
    threads: int = option(1, "Same as bench.threads.", derived=True)


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """Training of the pruned network to follow the unpruned one; needs no labels."""

    epochs: int = option(0, "Passes over the images; 0 = none.", least=0)
    source: str = option("", "Images; default: select.source.", path=True)
    images: int | Literal["all"] = option("all", "How many of them, or all.", least=2)
    batch: int = option(32, "Images a step.", least=2)
    learning_rate: float = option(0.01, "Highest rate of the one-cycle schedule.", above=0.0)
    weight_decay: float = option(1e-4, "Decay of the weights.", least=0.0)
    flip: bool = option(True, "Mirror half of the images.")
    crop_px: int = option(4, "Random shift, in pixels.", least=0)
    feature_weight: float = option(1.0, "Weight of the stages' outputs beside the logits.", least=0.0)
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
    images: int = option(300, "How many calibration images.", least=1)
    seed: int = option(0, "Seed of the choice.", least=0)
    skip_unreadable: bool = option(
        False, "Leave unreadable images out and count them.", renamed_from="skip_bad"
    )
    exclude: str = option("", "Same as evaluate.source: its images never calibrate.", path=True, derived=True)


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The pass over the calibration images."""

    batch: int = option(8, "Images at once; more is faster and takes more memory.", least=1)
    source: str = option("", "Same as select.source.", path=True, derived=True)


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """From ranges to graphs with Q/DQ nodes."""

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
    sensitivity: bool = option(False, "Measure what each layer costs; seconds to minutes more.")
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
    """What is built."""

    targets: tuple[str, ...] = option(
        ("openvino", "onnxruntime", "tensorrt"), "Runtimes to build for.", known=_targets, required=True
    )
    input: InputType = option("float32", "Same as export.input.", derived=True)  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """The images accuracy is measured on."""

    source: str = option("", "Folder, archive, CSV or digits:test.", path=True, required=True)
    images: int | Literal["all"] = option("all", "How many, or all.", least=1)
    batch: int = option(32, "Images decoded and run at once.", least=1)
    skip_unreadable: bool = option(
        False, "Leave unreadable images out and count them.", renamed_from="skip_bad"
    )
    workers: int | None = option(
        None, "Batches at a time; default: one for each core, at most 8.", least=1, not_in_key=True
    )
    backend: Backend = option(  # noqa: RUF009
        "threading", "Where: threading, loky (processes), ray or dask (a cluster).", not_in_key=True
    )


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How latency is measured."""

    batch: int | None = option(None, "Images of one inference; default: the graph's, else 1.", least=1)
    threads: int = option(1, "CPU threads of one session; not more than cores.", least=1, most=_cores)
    duration_s: float = option(2.0, "Seconds of timed inferences for each variant.", above=0.0)
    runs: int | None = option(None, "Timed inferences of each variant, instead of a duration.", least=1)
    warmup_s: float = option(0.5, "Seconds of inferences before, for each variant.", least=0.0)
    throughput_s: float = option(
        1.0, "Seconds each for throughput, end to end and energy; 0 leaves them and memory out.", least=0.0
    )
    source: str = option("", "Same as select.source.", path=True, derived=True)


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """The limits a run must keep (exit code 3 if it misses one); None: no limit."""

    max_drop_pp: float | None = option(None, "Largest loss of top-1, in percentage points.")
    min_speedup: float | None = option(None, "Smallest speed-up over FP32 on the same target.", above=0.0)
    max_latency_ms: float | None = option(None, "Largest median latency, in milliseconds.", above=0.0)
    judge_by: Literal["interval", "point"] = option(
        "interval",
        "interval: FAIL only where the whole 95 % interval misses, else NEEDS MORE DATA; point: the figure.",
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run; a section is a stage."""

    name: str = option("", "What the recipe was read from.", derived=True)
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
        table = _with_paths_beside(path, read_toml(path))
        return replace(cls.build(table, overrides), name=path.stem if path.parent == RECIPES else str(path))

    @classmethod
    def build(cls, table: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
        """Make a recipe of a table of sections.

        Args:
            table: Section -> key -> value.
            overrides: As of `read`.

        Raises:
            RecipeError: A key or value cannot be used.
        """
        changed = with_current_names(table, cls)
        pairs = (
            overrides.items()
            if isinstance(overrides, Mapping)
            else [parse_override(t, cls) for t in overrides]
        )
        given: dict[str, str] = {}
        for name, value in pairs:
            current = current_name(name, cls)
            if name != current:
                warn_renamed(f"option {name}", current)
            if given.setdefault(current, name) != name:
                raise RecipeError(f"{given[current]} and {name} are both set", hint=f"set only {current}")
            merge(changed, current, value)
        return cast("Recipe", convert(with_current_names(changed, cls), cls, ""))

    def resolved(self) -> Recipe:
        """The recipe with everything filled in that follows from another section."""
        measured = self.prune.latency_ratio is not None  # else targets and threads do not matter to it
        judges: dict[str, Any] = {}  # images that only a limit needs
        if self.quantize.limited:
            judges = {
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
                **judges,
            ),
            compile=replace(self.compile, input=self.export.input),
            bench=replace(self.bench, source=self.select.source),
        )


def names() -> tuple[str, ...]:
    """The recipes that come with the toolkit."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def find(recipe: str | Path) -> Path:
    """The file of a recipe, given by path or by name.

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


def explained(options: Any = None, section: str = "") -> Iterator[tuple[str, str, str]]:
    """Every option a recipe may set: dotted name, default as TOML, and its line of help."""
    for each in fields(Recipe() if options is None else options):
        if each.metadata.get("derived"):
            continue
        if hasattr(each.default, "__dataclass_fields__"):
            yield from explained(each.default, f"{section}{each.name}.")
        else:
            default = "" if each.default is None else canonical_json(each.default)
            yield f"{section}{each.name}", default, str(each.metadata["help"])


def check_required(recipe: Recipe, stages: Iterable[str]) -> None:
    """Check that every option these stages cannot do without is set.

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


def _with_paths_beside(recipe: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Relative paths of a recipe file are relative to the file."""

    def visit(values: dict[str, Any], options: Any) -> dict[str, Any]:
        known = {each.name: each for each in fields(options)}
        result = dict(values)
        for key, value in values.items():
            each = known.get(key)
            if each is None:
                continue
            if names_path(each.metadata, value):
                beside = str(recipe.absolute().parent / value)
                result[key] = beside if existing(beside) else value
            elif isinstance(value, dict) and each.default is not MISSING:
                result[key] = visit(value, each.default)
        return result

    return visit(table, Recipe)
