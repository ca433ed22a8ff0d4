"""The recipe: one section of options per stage, read from TOML and `section.key=value`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from edgeship.quantization.guard_options import GuardOptions
from edgeship.quantization.options import QuantizeOptions
from edgeship.toolkit.core.artifact import canonical_json
from edgeship.toolkit.core.errors import RecipeError, nearest
from edgeship.toolkit.core.options import declared, option, read_toml, with_overrides, with_values
from edgeship.toolkit.core.parallel import Backend
from edgeship.toolkit.core.paths import user_path
from edgeship.toolkit.core.results import Precision
from edgeship.toolkit.core.tensors import InputType, Interpolation, Size, read_size
from edgeship.toolkit.models.train_options import TrainOptions
from edgeship.toolkit.pipeline.fingerprints import existing, names_path
from edgeship.toolkit.prune.distill_options import DistillOptions
from edgeship.toolkit.prune.options import PruneOptions

RECIPES = Path(__file__).parent.parent / "recipes"


def _targets() -> tuple[str, ...]:
    from edgeship import targets

    return targets.names()


def _jetpack(value: Any) -> str:
    from edgeship.targets.tensorrt import jetson

    return jetson.release_name(_text(value))


def _module(value: Any) -> str:
    from edgeship.targets.tensorrt import jetson

    return jetson.module(_text(value)).name


def _tensorrt(value: Any) -> str:
    from edgeship.targets.tensorrt import versions

    versions.rules(_text(value))
    return str(value)


def _text(value: Any) -> str:
    """Return a text; a number such as 10.10 has lost a digit."""
    if not isinstance(value, str):
        raise ValueError(value)  # noqa: TRY004  (as `read` of `option`)
    return value


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
        most=16384,
        read=partial(read_size, exact=True),
    )
    crop: Size | None = option(  # noqa: RUF009
        None, "The centre crop, in pixels: N or HxW.", least=1, most=8192, read=read_size
    )
    mean: tuple[float, ...] | None = option(
        None, "Mean of each channel (RGB, pixels in 0..1).", least=-255.0, most=255.0
    )
    std: tuple[float, ...] | None = option(
        None, "Standard deviation of each channel.", least=1e-6, most=255.0
    )
    interpolation: Interpolation | None = option(None, "Resampling filter.")  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class TrainSection(TrainOptions):
    """Training of `load.weights = "train"` and of `edgeship train`."""

    source: str = option(
        "", "Labelled training images: folder, archive, CSV or digits:train.", path=True, flag="--data"
    )


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Source of the network."""

    model: str = option(
        "auto", "auto (from the tensors), resnet18, ..., or a file.onnx.", path=".onnx", metavar="NETWORK"
    )
    weights: str = option("", "A checkpoint file, torchvision:IMAGENET1K_V1, or train.", path=True)
    labels: str = option("", "File with the class name of each output, one a line.", path=True)
    output: str = option("", "Name of the logits, where a file.onnx has several outputs.")
    preprocess: PreprocessOptions = option(PreprocessOptions(), "Resize, crop, mean, std, ...")  # noqa: RUF009
    train: TrainSection = option(TrainSection(), "Options of training.")  # noqa: RUF009


@dataclass(frozen=True, slots=True)
class PruneSection(PruneOptions):
    """Structured pruning before quantization; one goal: a ratio, or max_expected_drop_pp."""

    source: str = option("", "Unlabelled images; default: the calibration source.", path=True)
    images: int = option(1000, "Number of images.", least=2)


@dataclass(frozen=True, slots=True)
class FinetuneSection(DistillOptions):
    """Distillation of the unpruned network into the pruned one; needs no labels."""

    source: str = option("", "Images; default: the calibration source.", path=True)
    images: int | Literal["all"] = option("all", "Number of images, or all.", least=2)


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The ONNX graph."""

    size: Size | None = option(  # noqa: RUF009
        None,
        "Input in pixels, N or HxW (height x width); default: that of the model.",
        least=1,
        most=8192,
        read=read_size,
        metavar="N|HxW",
    )
    batch: int | Literal["dynamic"] = option(1, "Images of one inference, or dynamic.", least=1, most=4096)
    input: InputType = option(  # noqa: RUF009
        "float32", "float32, or uint8: engines take decoded pixels and normalize them."
    )


@dataclass(frozen=True, slots=True)
class SelectOptions:
    """The calibration images."""

    source: str = option(
        "", "Images: folder, archive, CSV list or digits:train.", path=True, required=True, flag="--data"
    )
    images: int = option(
        300, "Number of calibration images.", least=1, flag="--calibration-images", former_flags=("--images",)
    )
    seed: int = option(0, "Seed of the selection.", least=0)
    skip_unreadable: bool = option(
        False, "Leave unreadable images out and count them.", renamed_from="skip_bad"
    )


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The pass over the calibration images."""

    batch: int = option(8, "Images at once; more is faster and takes more memory.", least=1)
    early_stop: bool = option(
        True,
        "End the pass when the statistics have converged; false: all images. Only with observer logits.",
    )


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Engines to build."""

    targets: tuple[str, ...] = option(
        ("openvino", "onnxruntime", "tensorrt"),
        "Runtimes to build for.",
        known=_targets,
        required=True,
        flag="--target",
        metavar="TARGET",
    )
    precisions: tuple[Precision, ...] = option(
        ("fp16", "int8"),
        "Precisions besides FP32, for the targets that have them: bf16, fp16, fp8 (Thor), int8.",
        flag="--precision",
    )
    module: str | None = option(
        None,
        "Jetson module, e.g. 'Orin Nano'; without INT8 arithmetic (Nano, TX2) it gets no INT8 variant.",
        read=_module,
        metavar="NAME",
    )
    jetpack: str | None = option(
        None,
        "JetPack or L4T version of the device; default: the newest of its module, if that is known.",
        read=_jetpack,
        metavar="VERSION",
    )
    tensorrt: str | None = option(
        None,
        "TensorRT version of the device, in quotes; default: that of the JetPack, else 8.5.",
        read=_tensorrt,
        flag="--trt",
        metavar="VERSION",
    )

    def __post_init__(self) -> None:
        """Refuse a TensorRT that the module or the JetPack does not have, and FP8 where either has none."""
        version = self.device_version()
        if "fp8" in self.precisions:
            from edgeship.targets.tensorrt import jetson

            jetson.require_fp8(self.module, version)

    def device_version(self, target: str = "tensorrt") -> str | None:
        """Return the version of a target's SDK on the device; None if no option states it.

        Raises:
            DeviceError: No JetPack has that TensorRT, or the module has no such JetPack.
        """
        if target != "tensorrt" or not (self.module or self.jetpack or self.tensorrt):
            return None
        from edgeship.targets.tensorrt import jetson

        module = jetson.module(self.module) if self.module else None
        return jetson.choose(module, jetpack=self.jetpack, tensorrt=self.tensorrt)


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """Evaluation images."""

    source: str = option(
        "",
        "Evaluation images: folder, archive, CSV list or digits:test.",
        path=True,
        required=True,
        flag="--eval-data",
        former_flags=("--evaluation", "--test"),
    )
    images: int | Literal["all"] = option(
        "all", "Number of evaluation images, or all.", least=1, flag="--eval-images"
    )
    batch: int = option(32, "Images decoded and run at once.", least=1)
    skip_unreadable: bool = option(
        False, "Leave unreadable images out and count them.", renamed_from="skip_bad"
    )
    workers: int | None = option(
        None, "Batches in parallel; default: one per core, at most 8.", least=1, most=256, not_in_key=True
    )
    backend: Backend = option(  # noqa: RUF009
        "threading", "Executor: threading, loky (processes), ray or dask (a cluster).", not_in_key=True
    )


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Latency measurement."""

    batch: int | None = option(
        None, "Images of one inference; default: the graph's, else 1.", least=1, most=4096
    )
    threads: int = option(1, "CPU threads of one session; not more than cores.", least=1, most=_cores)
    duration_s: float = option(
        2.0,
        "Seconds of timed inferences for each variant.",
        above=0.0,
        most=86400.0,
        flag="--duration",
        former_flags=("--seconds",),
    )
    runs: int | None = option(
        None, "Timed inferences of each variant, instead of a duration.", least=1, most=10**7
    )
    warmup_s: float = option(0.5, "Seconds of warm-up inferences for each variant.", least=0.0, most=86400.0)
    throughput_s: float = option(
        1.0,
        "Seconds each for throughput, end to end and energy; 0 skips them and memory.",
        least=0.0,
        most=86400.0,
    )


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """Limits of a run (exit code 3 if one is missed); None: no limit."""

    max_drop_pp: float | None = option(
        None, "Largest drop of top-1, in percentage points.", least=0.0, most=100.0, flag="--max-drop"
    )
    min_speedup: float | None = option(None, "Smallest speed-up over FP32 on the same target.", above=0.0)
    max_latency_ms: float | None = option(
        None, "Largest latency (see latency_by), in milliseconds.", above=0.0
    )
    latency_by: Literal["p50", "mean", "p99"] = option(
        "p50", "Figure of max_latency_ms: p50 (median), mean, or p99; a guard costs in the last two."
    )
    judge_by: Literal["interval", "point"] = option(
        "interval",
        "interval: FAIL only where the whole 95 % interval misses, else NEEDS MORE DATA; point: the figure.",
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """All options of a run, one section per stage."""

    name: str = ""  # or path, of the recipe file
    load: LoadOptions = LoadOptions()
    prune: PruneSection = PruneSection(method="none")
    finetune: FinetuneSection = FinetuneSection(epochs=0)
    export: ExportOptions = ExportOptions()
    select: SelectOptions = SelectOptions()
    calibrate: CalibrateOptions = CalibrateOptions()
    quantize: QuantizeOptions = QuantizeOptions()  # noqa: RUF009
    compile: CompileOptions = CompileOptions()
    guard: GuardOptions = GuardOptions()  # noqa: RUF009
    evaluate: EvaluateOptions = EvaluateOptions()
    bench: BenchOptions = BenchOptions()
    report: ReportOptions = ReportOptions()

    @property
    def calibration_stops_early(self) -> bool:
        """Return True if the pass may end before the last image: other observers than logits use maxima."""
        return self.calibrate.early_stop and self.quantize.observer == "logits"

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
        return with_values(cls(), with_overrides(table, overrides, cls))

    @property
    def prune_source(self) -> str:
        """Return the images for pruning."""
        return self.prune.source or self.select.source

    @property
    def finetune_source(self) -> str:
        """Return the images for fine-tuning."""
        return self.finetune.source or self.select.source


def named(recipe: Recipe, name: str) -> Recipe:
    """Return a recipe with the name of the model that it is of."""
    return replace(recipe, name=name)


def as_toml(recipe: Recipe, *, commented: bool = False) -> str:
    """Return the text of a recipe file: the options that differ from the defaults.

    Paths are absolute, so that the file may be moved.

    Args:
        recipe: The recipe.
        commented: Include every option, with its help, as a comment where it has the default.
    """
    lines: list[str] = []

    def section(title: str, options: Any, usual: Any) -> None:
        own, inner = [], []
        for name, each in declared(options).items():
            value, default = getattr(options, name), getattr(usual, name)
            if is_dataclass(value):
                inner.append((f"{title}.{name}" if title else name, value, default))
            elif value != default:
                own += [f"# {each.metadata['help']}"] * commented
                own.append(f"{name} = {_toml(_absolute(each.metadata, value))}")
            elif commented:
                example = "" if value is None else f" {_toml(value)}"
                own += [f"# {each.metadata['help']}", f"# {name} ={example}"]
        if own and title:
            lines.extend(["", f"[{title}]", *own])
        for part in inner:
            section(*part)

    section("", recipe, Recipe())
    return "\n".join(lines[1:]) + "\n"


def _absolute(rules: Mapping[str, Any], value: Any) -> Any:
    named_file = names_path(rules, value) and existing(value)
    return str(user_path(value).absolute()) if named_file else value


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # of these types JSON is TOML


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
    options = options or Recipe()
    for name, each in declared(options).items():
        value = getattr(options, name)
        if is_dataclass(value):
            yield from option_help(value, f"{section}{name}.")
        else:
            yield f"{section}{name}", "" if value is None else canonical_json(value), each.metadata["help"]


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
                    hint=f"set it: --set {stage}.{each.name}=... ({each.metadata['help'].rstrip('.')})",
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
            elif isinstance(value, dict) and is_dataclass(each.default):
                result[key] = visit(value, each.default)
        return result

    return visit(table, Recipe)
