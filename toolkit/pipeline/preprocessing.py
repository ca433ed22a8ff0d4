"""Which preprocessing a run uses: the recipe's, the checkpoint's own, or what its input size suggests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from toolkit.core.errors import ModelError, RecipeError
from toolkit.core.tensors import InputType, Preprocess, PreprocessSource

if TYPE_CHECKING:
    from toolkit.pipeline.recipe import PreprocessOptions

EXAMPLES = {1: ("0.5", "0.25"), 3: ("0.485,0.456,0.406", "0.229,0.224,0.225")}  # channels -> mean, std
SMALL = 128  # networks with a smaller input are trained on whole pictures, without a margin to crop


def resolve(options: PreprocessOptions, own: Preprocess | None, size: int | None) -> Preprocess:
    """Settle how images are prepared.

    Args:
        options: What the recipe says; it wins, key by key.
        own: What is stored with the checkpoint, if anything.
        size: Input side in pixels that the recipe or the graph asks for; None: what the rest gives.

    Raises:
        RecipeError: `size` contradicts the recipe's own crop.
    """
    if options.crop and size and options.crop != size:
        raise RecipeError(
            f"load.preprocess.crop = {options.crop} contradicts the input size of {size} pixels",
            hint="leave one of load.preprocess.crop and export.size out; an ONNX file has its own size",
        )
    crop = options.crop or size or (own or Preprocess()).crop
    base = own or Preprocess()
    if own is None and crop < SMALL:
        resize: int | None = crop
    elif base.resize is None:
        resize = None
    else:
        resize = round(base.resize * crop / base.crop)  # the same margin at another size
    if options.resize is not None:
        resize = options.resize or None
    given = {
        key: value for key in ("mean", "std", "interpolation") if (value := getattr(options, key)) is not None
    }
    return replace(base, crop=crop, resize=resize, **given)


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
    options: PreprocessOptions, own: Preprocess | None, own_source: PreprocessSource | None = None
) -> PreprocessSource:
    """Return the origin of mean and standard deviation.

    Args:
        options: What the recipe says.
        own: What is stored with the checkpoint or graph, if anything.
        own_source: Its origin, where that is stored too: what was assumed once stays assumed.
    """
    if options.mean is not None and options.std is not None:
        return "stated"
    if own is None:
        return "assumed"
    return "assumed" if own_source == "assumed" else "file"


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
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
    return Preprocess(**values)


def assumed_note(preprocess: Preprocess, option: str = "--set load.preprocess.") -> tuple[str, str]:
    """Return the message and the hint for a preprocessing that nothing states."""
    mean, std = (",".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    name = "ImageNet" if preprocess.mean == Preprocess().mean and preprocess.std == Preprocess().std else ""
    return (
        f"preprocessing assumed: {name or 'incomplete'} (mean {mean}, std {std}); neither the file nor the "
        "options state it",
        f"state what it was trained with: {option}mean={mean} {option}std={std}",
    )
