"""Resolve the preprocessing of a run from recipe, checkpoint, graph and input size."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from edgeship.toolkit.core.errors import ModelError, RecipeError
from edgeship.toolkit.core.tensors import (
    InputType,
    Preprocess,
    PreprocessSource,
    Size,
    as_size,
    sides,
    size_text,
)
from edgeship.toolkit.graph.layout import InputForm

if TYPE_CHECKING:
    from edgeship.toolkit.graph.io import Classifier
    from edgeship.toolkit.graph.normalization import InputNormalization
    from edgeship.toolkit.pipeline.recipe import PreprocessOptions

EXAMPLES = {1: ("0.5", "0.25"), 3: ("0.485,0.456,0.406", "0.229,0.224,0.225")}  # channels -> mean, std
SMALL = 128  # networks with a smaller input are trained on whole images, without a crop margin


def input_size(graph: Classifier, asked: Size | None) -> Size | None:
    """Return the input size of a file, with dynamic sides from the option; None if both stay dynamic.

    Args:
        graph: The file.
        asked: `export.size` or `--size`; None: not set.

    Raises:
        RecipeError: The file has another fixed side.
    """
    requested = sides(asked) if asked else (None, None)
    own = (graph.height, graph.width)
    if any(a and b and a != b for a, b in zip(own, requested, strict=True)):
        takes = " x ".join("any" if side is None else str(side) for side in own)
        raise RecipeError(
            f"export.size = {size_text(asked or 0)}, but {graph.path.name} takes {takes} pixels",
            hint="remove export.size: the ONNX file has a fixed size",
        )
    height, width = (a or b for a, b in zip(own, requested, strict=True))
    if height is None and width is None:
        return None
    return as_size(height or width or 0, width or height or 0)


def resolve(
    options: PreprocessOptions,
    own: Preprocess | None,
    size: Size | None,
    normalization: InputNormalization | None = None,
) -> Preprocess:
    """Resolve the preprocessing of images.

    Default resize: the whole image to a small or a non-square input (the latter with another aspect ratio, as
    torchvision's Resize((H, W))); else with ImageNet's margin around the crop.

    Args:
        options: The recipe's preprocessing; overrides the rest, key by key.
        own: Preprocessing stored with the checkpoint, if any.
        size: Input size in pixels of recipe or graph; None: not set.
        normalization: Normalization inside the graph, whose input is then raw pixels.

    Raises:
        RecipeError: `size` contradicts the recipe's crop.
    """
    if options.crop and size and options.crop != size:
        raise RecipeError(
            f"load.preprocess.crop = {size_text(options.crop)} contradicts the input size of "
            f"{size_text(size)} pixels",
            hint="remove load.preprocess.crop or export.size; an ONNX file has a fixed size",
        )
    crop = options.crop or size or (own or Preprocess()).crop
    base = own or (normalization.raw if normalization else Preprocess())
    if own is None and (not isinstance(crop, int) or crop < SMALL):
        resize: Size | None = crop
    else:
        resize = _same_margin(base, crop)
    if options.resize is not None:
        resize = options.resize or None
    stated = {
        key: value for key in ("mean", "std", "interpolation") if (value := getattr(options, key)) is not None
    }
    return replace(base, crop=crop, resize=resize, **stated)


def _same_margin(base: Preprocess, crop: Size) -> Size | None:
    """Scale the resize of another crop to this crop."""
    resize = base.resize
    if resize is None or crop == base.crop:
        return resize
    (height, width), (base_height, base_width) = sides(crop), base.sides
    if isinstance(resize, int) and (isinstance(crop, int) or not isinstance(base.crop, int)):
        return round(resize * max(height / base_height, width / base_width))
    down, across = sides(resize)
    return round(down * height / base_height), round(across * width / base_width)


def notes(
    form: InputForm,
    normalization: InputNormalization | None,
    prepared: Preprocess,
    written: InputForm | None = None,
) -> list[str]:
    """Return notes on the input: another layout or type, normalization in the graph.

    Args:
        form: Input form of the file.
        normalization: Normalization inside the graph.
        prepared: Preprocessing of images.
        written: Input form of the written graph; None: unknown.
    """
    lines = []
    if form not in (InputForm(), written):
        change = f"it is read as {InputForm()}" if written is None else f"what is written takes {written}"
        lines.append(f"the file takes images as {form}; {change}")
    if normalization is None:
        return lines
    if normalization.nodes:
        mean, std = (", ".join(f"{x:.4g}" for x in each) for each in (normalization.mean, normalization.std))
        inside = f"normalization inside the graph (mean {mean}; std {std}, of pixels in 0..1)"
    else:
        inside = "the input is uint8"
    raw = normalization.raw
    if (prepared.mean, prepared.std) == (raw.mean, raw.std):
        lines.append(f"{inside}: images are raw pixels, 0..{normalization.scale}")
    elif normalization.nodes:
        lines.append(f"{inside}, and the mean and std that are stated normalize twice")
    return lines


def check_channels(prepared: Preprocess, channels: int, *, option: str = "--set load.preprocess.") -> None:
    """Check that preprocessing and network have the same channels.

    Args:
        prepared: Preprocessing of images.
        channels: Input channels of the network.
        option: Option prefix of mean and std, for the hint.

    Raises:
        ModelError: The network has neither 1 nor 3 input channels.
        RecipeError: mean or std has another number of values.
    """
    if channels not in EXAMPLES:
        raise ModelError(
            f"the network takes images of {channels} channels",
            hint="images are read as RGB (3 channels) or grey (1 channel)",
        )
    counts = (len(prepared.mean), len(prepared.std))
    if counts != (channels, channels):
        mean, std = EXAMPLES[channels]
        raise RecipeError(
            f"the network takes images of {channels} channel{'s' * (channels > 1)}, but the preprocessing "
            f"has {counts[0]} in its mean and {counts[1]} in its std",
            hint=f"state what it was trained with, e.g. {option}mean={mean} {option}std={std}",
        )


def source_of(
    options: PreprocessOptions,
    own: Preprocess | None,
    own_source: PreprocessSource | None = None,
    normalization: InputNormalization | None = None,
) -> PreprocessSource:
    """Return the origin of mean and standard deviation.

    Args:
        options: The recipe's preprocessing.
        own: Preprocessing stored with the checkpoint or graph, if any.
        own_source: Its stored origin, if any; "assumed" stays assumed.
        normalization: Normalization inside the graph.
    """
    if options.mean is not None and options.std is not None:
        return "stated"
    if own is not None and own_source != "assumed":
        return own_source if own_source in ("graph", "published") else "file"
    return "assumed" if normalization is None else "graph"


def check_known(
    input_type: InputType, source: PreprocessSource, *, option: str = "--set load.preprocess."
) -> None:
    """Check that the normalization inside engines with pixel input is known.

    Args:
        input_type: Input type of the engines.
        source: Origin of mean and standard deviation.
        option: Option prefix of mean and std, for the hint.

    Raises:
        ModelError: The input is pixels, and mean and standard deviation are assumed.
    """
    if input_type == "uint8" and source == "assumed":
        mean, std = EXAMPLES[3]
        raise ModelError(
            "an engine with uint8 input normalizes pixels itself, and mean and std of training are unknown",
            hint=f"state what it was trained with, e.g. {option}mean={mean} "
            f"{option}std={std}; or leave the input float32",
        )


def assumed_note(preprocess: Preprocess, option: str = "--set load.preprocess.") -> tuple[str, str]:
    """Return message and hint for an assumed preprocessing."""
    mean, std = (",".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    name = "ImageNet" if preprocess.mean == Preprocess().mean and preprocess.std == Preprocess().std else ""
    return (
        f"preprocessing assumed: {name or 'incomplete'} (mean {mean}, std {std}); neither the file nor the "
        "options state it",
        f"state what it was trained with: {option}mean={mean} {option}std={std}",
    )
