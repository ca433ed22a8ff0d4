"""From the tensors of a checkpoint to the network they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from edgeship.toolkit.core.errors import DataError, ModelError
from edgeship.toolkit.core.text import printable
from edgeship.toolkit.models.resnet import (
    Architecture,
    ResNet,
    Shortcut,
    Unit,
    Widths,
    architecture,
    names,
)

Tensors = dict[str, Tensor]
NESTS = ("state_dict", "model_state_dict", "model", "ema", "model_ema", "state_dict_ema", "net", "module")
IGNORED = ("total_ops", "total_params", "num_batches_tracked")  # left by profilers, or of no effect
LISTED = 6  # names shown of each kind in an error
_DEEPEST = 64  # dictionaries looked into for a state dict
_LONGEST = 100  # characters of a name in an error


def unnest(content: object, visited: set[int] | None = None) -> Tensors:
    """The state dict inside whatever a checkpoint holds; empty where there is none.

    Args:
        content: What the checkpoint holds.
        visited: Identities of what it is inside of; a checkpoint may hold itself.
    """
    visited = set() if visited is None else visited
    if not isinstance(content, Mapping) or id(content) in visited or len(visited) > _DEEPEST:
        return {}
    visited.add(id(content))
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if any(key.endswith("conv1.weight") for key in tensors):
        return tensors
    inner = (unnest(content[key], visited) for key in NESTS if key in content)
    return next((found for found in inner if found), tensors)


def canonical(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors under torchvision's names: prefixes stripped, `shortcut` and `linear` renamed."""
    stems = (key.removesuffix("conv1.weight") for key in tensors if key.endswith("conv1.weight"))
    prefix = min((p for p in stems if f"{p}layer1.0.conv1.weight" in tensors), key=len, default="")
    found = {
        key.removeprefix(prefix).replace(".shortcut.", ".downsample."): value
        for key, value in tensors.items()
        if not key.endswith(IGNORED)
    }
    matrices = [key.removesuffix(".weight") for key, value in found.items() if value.ndim == 2]
    if len(matrices) == 1:  # the classifier, whatever its name: linear, head.fc, classifier.1
        last = matrices[0]
        found = {re.sub(rf"^{re.escape(last)}\.(weight|bias)$", r"fc.\1", k): v for k, v in found.items()}
    return found


def recognize(tensors: Tensors, model: str, where: str) -> Architecture:
    """The network that canonical tensors belong to.

    Args:
        tensors: State dict under canonical names.
        model: auto, or the member of the family it must be.
        where: What the tensors were read from, for the error.

    Raises:
        DataError: They fit no member, or not the one that was asked for.
        RecipeError: No member is called `model`.
    """
    if model != "auto":
        wanted = architecture(model)
        found = _describe(tensors, plain=wanted.shortcut == "none")
        if found is None or found.name != model:
            if found is not None:  # a difference of classes or widths alone is none
                wanted = architecture(model, classes=found.classes, width=found.widths.stem)
            kind = f"a {found.name}" if found else "no ResNet"
            raise DataError(
                f"{where} is {kind}, not {model}: {_difference(tensors, wanted)}",
                hint=f"set load.model={found.name if found else 'auto'}, or give weights of {model}",
            )
    else:
        found = _describe(tensors, plain=False)
    if found is None or _differences(tensors, found) != ([], []):
        nearest = found or architecture(_nearest(tensors))
        raise DataError(
            f"{where} does not fit a ResNet of this family; against the nearest, {nearest.name}: "
            f"{_difference(tensors, nearest)}",
            hint=f"known: {', '.join(names()[:5])} ...; grouped, deep-stem and attention variants are not",
        )
    return found


def _describe(tensors: Tensors, *, plain: bool) -> Architecture | None:
    """What the names and shapes say; None where they are not of a ResNet."""
    try:
        inner = _inner(tensors)
        stem, head = tensors["conv1.weight"], tensors["fc.weight"]
        unit: Unit = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
        last = 3 if unit == "bottleneck" else 2
        streams = tuple(len(tensors[f"layer{s + 1}.0.conv{last}.weight"]) for s in range(len(inner)))
        kernel = stem.shape[2]
        classes, channels = len(head), stem.shape[1]
    except (KeyError, IndexError, TypeError):  # a name or an axis is missing, or all axes
        return None
    if kernel not in (3, 7) or not inner:
        return None
    arch = Architecture(
        name="",
        unit=unit,
        shortcut="none" if plain else _shortcut(tensors, inner),
        preactivation="bn1.weight" not in tensors,
        stem="imagenet" if kernel == 7 else "cifar",
        classes=classes,
        channels=channels,
        widths=Widths(len(stem), streams, inner),
    )
    return replace(arch, name=_name(arch))


def _inner(tensors: Tensors) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Inner widths of every block; () where a number is missing, because the block was dropped."""
    blocks: dict[int, dict[int, tuple[int, ...]]] = {}
    for key in tensors:
        if match := re.fullmatch(r"layer(\d{1,2})\.(\d{1,3})\.conv1\.weight", key):
            stage, block = int(match[1]) - 1, int(match[2])
            convs = (f"layer{stage + 1}.{block}.conv{i}.weight" for i in (1, 2, 3))
            widths = [len(tensors[conv]) for conv in convs if conv in tensors]
            blocks.setdefault(stage, {})[block] = tuple(widths[:-1])
    return tuple(
        tuple(blocks[stage].get(b, ()) for b in range(max(blocks[stage]) + 1)) for stage in range(len(blocks))
    )


def _shortcut(tensors: Tensors, inner: tuple[tuple[tuple[int, ...], ...], ...]) -> Shortcut:
    projected = {key.split(".downsample")[0] for key in tensors if ".downsample." in key}
    everywhere = {f"layer{s + 1}.{b}" for s, stage in enumerate(inner) for b, w in enumerate(stage) if w}
    if not projected:
        return "A"
    first = {f"layer{s + 1}.0" for s in range(len(inner))}
    return "C" if projected == everywhere and not everywhere <= first else "B"


def _name(arch: Architecture) -> str:
    """The name by depth: the convolutions of the units, the first convolution and the last layer."""
    prefix = "plain_" if arch.shortcut == "none" else "preact_" if arch.preactivation else ""
    convs = 2 if arch.unit == "basic" else 3
    depth = 2 + convs * sum(len(stage) for stage in arch.widths.inner)
    return f"{prefix}resnet{depth}"


def _differences(tensors: Tensors, arch: Architecture) -> tuple[list[str], list[str]]:
    """What is missing and what is unexpected; a tensor of another shape is both."""
    try:
        needed = _shapes(arch)
    except ModelError as error:
        return [str(error)], []
    have = {key: tuple(value.shape) for key, value in tensors.items()}
    missing = [f"{k} {s}" for k, s in needed.items() if have.get(k) != s]
    return missing, [f"{k} {s}" for k, s in have.items() if needed.get(k) != s]


def _difference(tensors: Tensors, arch: Architecture) -> str:
    missing, unexpected = _differences(tensors, arch)
    return f"missing {_some(missing)}; unexpected {_some(unexpected)}"


def _some(items: list[str]) -> str:
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return (", ".join(printable(item, _LONGEST) for item in items[:LISTED]) or "nothing") + more


def _nearest(tensors: Tensors) -> str:
    """The known member that shares most tensor names."""
    have = set(tensors)

    def likeness(name: str) -> float:
        keys = set(_shapes(architecture(name)))
        return len(have & keys) / len(have | keys)

    prefix = "resnet" if "bn1.weight" in have else "preact_"  # plain nets have the names of option A
    return max((name for name in names() if name.startswith(prefix)), key=likeness)


@cache
def _shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = ResNet(arch).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(IGNORED)}
