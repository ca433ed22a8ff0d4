"""Which preprocessing a run uses: the recipe's, the checkpoint's own, or what its input size suggests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
SMALL = 128  # networks with a smaller input are trained on whole pictures, without a margin to crop


def input_size(graph: Classifier, asked: Size | None) -> Size | None:
    """Return the input size of a file, its dynamic sides filled in as asked; None if all is open.

    Args:
        graph: The file.
        asked: `export.size` or `--size`; None leaves it open.

    Raises:
        RecipeError: The file has another fixed side.
    """
    wanted = sides(asked) if asked else (None, None)
    own = (graph.height, graph.width)
    if any(a and b and a != b for a, b in zip(own, wanted, strict=True)):
        takes = " x ".join("any" if side is None else str(side) for side in own)
        raise RecipeError(
            f"export.size = {size_text(asked or 0)}, but {graph.path.name} takes {takes} pixels",
            hint="leave export.size (--size) out: an ONNX file has its own size",
        )
    height, width = (a or b for a, b in zip(own, wanted, strict=True))
    if height is None and width is None:
        return None
    return as_size(height or width or 0, width or height or 0)


def resolve(
    options: PreprocessOptions,
    own: Preprocess | None,
    size: Size | None,
    normalization: InputNormalization | None = None,
) -> Preprocess:
    """Settle how images are prepared.

    Where nothing says how images are resized: a small or a non-square input takes the whole image, resized
    to the input (a non-square one changes the aspect ratio, as torchvision's Resize((H, W)) does); any
    other input keeps ImageNet's margin around the crop.

    Args:
        options: What the recipe says; it wins, key by key.
        own: What is stored with the checkpoint, if anything.
        size: Input in pixels that the recipe or the graph asks for; None: what the rest gives.
        normalization: What the graph does to raw pixels itself; it is then given raw pixels.

    Raises:
        RecipeError: `size` contradicts the recipe's own crop.
    """
    if options.crop and size and options.crop != size:
        raise RecipeError(
            f"load.preprocess.crop = {size_text(options.crop)} contradicts the input size of "
            f"{size_text(size)} pixels",
            hint="leave one of load.preprocess.crop and export.size out; an ONNX file has its own size",
        )
    crop = options.crop or size or (own or Preprocess()).crop
    base = own or (normalization.raw if normalization else Preprocess())
    if own is None and (not isinstance(crop, int) or crop < SMALL):
        resize: Size | None = crop
    else:
        resize = _same_margin(base, crop)
    if options.resize is not None:
        resize = options.resize or None
    given = {
        key: value for key in ("mean", "std", "interpolation") if (value := getattr(options, key)) is not None
    }
    return replace(base, crop=crop, resize=resize, **given)


def _same_margin(base: Preprocess, crop: Size) -> Size | None:
    """Resize with the margin around the crop that another crop has."""
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
    """Return what the user has to know of the input: another layout or type, normalization in the graph.

    Args:
        form: How the file takes images.
        normalization: What it does to raw pixels itself.
        prepared: How images are prepared.
        written: How the graph takes them that is written; None leaves that open.
    """
    found = []
    if form not in (InputForm(), written):
        what = f"it is read as {InputForm()}" if written is None else f"what is written takes {written}"
        found.append(f"the file takes images as {form}; {what}")
    if normalization is None:
        return found
    if normalization.nodes:
        mean, std = (", ".join(f"{x:.4g}" for x in each) for each in (normalization.mean, normalization.std))
        inside = f"normalization inside the graph (mean {mean}; std {std}, of pixels in 0..1)"
    else:
        inside = "the input is uint8"
    raw = normalization.raw
    if (prepared.mean, prepared.std) == (raw.mean, raw.std):
        found.append(f"{inside}: images are raw pixels, 0..{normalization.scale}")
    elif normalization.nodes:
        found.append(f"{inside}, and the mean and std that are stated normalize twice")
    return found


def check_channels(prepared: Preprocess, channels: int, *, option: str = "--set load.preprocess.") -> None:
    """See that images get the channels the network takes.

    Args:
        prepared: How they are prepared.
        channels: What the network takes.
        option: How mean and std are set, for the hint.

    Raises:
        ModelError: Neither grey nor colour images are taken.
        RecipeError: mean or std has another number of values.
    """
    if channels not in EXAMPLES:
        raise ModelError(
            f"the network takes images of {channels} channels",
            hint="images are read as RGB (3 channels) or grey (1 channel)",
        )
    given = (len(prepared.mean), len(prepared.std))
    if given != (channels, channels):
        mean, std = EXAMPLES[channels]
        raise RecipeError(
            f"the network takes images of {channels} channel{'s' * (channels > 1)}, but the preprocessing "
            f"has {given[0]} in its mean and {given[1]} in its std",
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
        options: What the recipe says.
        own: What is stored with the checkpoint or graph, if anything.
        own_source: Its origin, where that is stored too: what was assumed once stays assumed.
        normalization: What the graph does to raw pixels itself.
    """
    if options.mean is not None and options.std is not None:
        return "stated"
    if own is not None and own_source != "assumed":
        return own_source if own_source in ("graph", "published") else "file"
    return "assumed" if normalization is None else "graph"


def check_known(
    input_type: InputType, source: PreprocessSource, *, option: str = "--set load.preprocess."
) -> None:
    """See that engines which normalize pixels themselves do it as in training.

    Args:
        input_type: What the engines take.
        source: Origin of mean and standard deviation.
        option: How mean and std are set, for the hint.

    Raises:
        ModelError: Pixels, and the mean and standard deviation would be assumed.
    """
    if input_type == "uint8" and source == "assumed":
        mean, std = EXAMPLES[3]
        raise ModelError(
            "an engine with uint8 input normalizes pixels itself, and nothing says how this network wants it",
            hint=f"state what it was trained with, e.g. {option}mean={mean} "
            f"{option}std={std}; or leave the input float32",
        )


def from_json(stored: dict[str, Any]) -> Preprocess:
    """A preprocessing that was written as JSON."""
    return Preprocess.from_json(stored)


def assumed_note(preprocess: Preprocess, option: str = "--set load.preprocess.") -> tuple[str, str]:
    """Return the message and the hint for a preprocessing that nothing states."""
    mean, std = (",".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    name = "ImageNet" if preprocess.mean == Preprocess().mean and preprocess.std == Preprocess().std else ""
    return (
        f"preprocessing assumed: {name or 'incomplete'} (mean {mean}, std {std}); neither the file nor the "
        "options state it",
        f"state what it was trained with: {option}mean={mean} {option}std={std}",
    )
