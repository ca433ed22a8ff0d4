"""Recognition of the architecture from the tensor names and shapes of a checkpoint."""

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
IGNORED = ("total_ops", "total_params", "num_batches_tracked")  # from profilers, or without effect
MAX_LISTED = 6  # names of each kind listed in an error
_MAX_DEPTH = 64  # dictionaries searched for a state dict
_MAX_NAME = 100  # characters of a name in an error


def unnest(content: object, visited: set[int] | None = None) -> Tensors:
    """Return the state dict nested in a checkpoint; empty without one.

    Args:
        content: Content of the checkpoint.
        visited: Ids of the enclosing dictionaries; a checkpoint may contain itself.
    """
    visited = set() if visited is None else visited
    if not isinstance(content, Mapping) or id(content) in visited or len(visited) > _MAX_DEPTH:
        return {}
    visited.add(id(content))
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if any(key.endswith("conv1.weight") for key in tensors):
        return tensors
    candidates = (unnest(content[key], visited) for key in NESTS if key in content)
    return next((tensors_of for tensors_of in candidates if tensors_of), tensors)


def canonical(tensors: Mapping[str, Tensor]) -> Tensors:
    """Rename tensors as in torchvision: strip prefixes, rename `shortcut` and `linear`."""
    stems = (key.removesuffix("conv1.weight") for key in tensors if key.endswith("conv1.weight"))
    prefix = min((p for p in stems if f"{p}layer1.0.conv1.weight" in tensors), key=len, default="")
    renamed = {
        key.removeprefix(prefix).replace(".shortcut.", ".downsample."): value
        for key, value in tensors.items()
        if not key.endswith(IGNORED)
    }
    classifiers = [key.removesuffix(".weight") for key, value in renamed.items() if value.ndim == 2]
    if len(classifiers) == 1:  # the classifier, e.g. linear, head.fc, classifier.1
        classifier = classifiers[0]
        renamed = {
            re.sub(rf"^{re.escape(classifier)}\.(weight|bias)$", r"fc.\1", k): v for k, v in renamed.items()
        }
    return renamed


def recognize(tensors: Tensors, model: str, where: str) -> Architecture:
    """Infer the architecture of canonical tensors.

    Args:
        tensors: State dict with canonical names.
        model: auto, or the expected member of the family.
        where: File name for error messages.

    Raises:
        DataError: The tensors fit no member, or not the expected one.
        RecipeError: No member has the name `model`.
    """
    if model != "auto":
        expected = architecture(model)
        arch = _infer(tensors, plain=expected.shortcut == "none")
        if arch is None or arch.name != model:
            if arch is not None:  # other classes or widths are allowed
                expected = architecture(model, classes=arch.classes, width=arch.widths.stem)
            kind = f"a {arch.name}" if arch else "no ResNet"
            raise DataError(
                f"{where} is {kind}, not {model}: {_difference(tensors, expected)}",
                hint=f"set load.model={arch.name if arch else 'auto'}, or give weights of {model}",
            )
    else:
        arch = _infer(tensors, plain=False)
    if arch is None or _differences(tensors, arch) != ([], []):
        closest = arch or architecture(_nearest(tensors))
        raise DataError(
            f"{where} does not fit a ResNet of this family; against the nearest, {closest.name}: "
            f"{_difference(tensors, closest)}",
            hint=f"use one of {', '.join(names()[:5])} ...; give other variants as an ONNX file",
        )
    return arch


def _infer(tensors: Tensors, *, plain: bool) -> Architecture | None:
    """Infer the architecture from names and shapes; None if they are not of a ResNet."""
    try:
        inner = _inner_widths(tensors)
        stem, head = tensors["conv1.weight"], tensors["fc.weight"]
        unit: Unit = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
        last = 3 if unit == "bottleneck" else 2
        streams = tuple(len(tensors[f"layer{s + 1}.0.conv{last}.weight"]) for s in range(len(inner)))
        kernel = stem.shape[2]
        classes, channels = len(head), stem.shape[1]
    except (KeyError, IndexError, TypeError):  # a name or an axis is missing
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
    return replace(arch, name=_member_name(arch))


def _inner_widths(tensors: Tensors) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Return the inner widths of every block; () for a missing (dropped) block."""
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


def _member_name(arch: Architecture) -> str:
    """Return the name by depth: convolutions of the units, the first convolution and the last layer."""
    prefix = "plain_" if arch.shortcut == "none" else "preact_" if arch.preactivation else ""
    convs = 2 if arch.unit == "basic" else 3
    depth = 2 + convs * sum(len(stage) for stage in arch.widths.inner)
    return f"{prefix}resnet{depth}"


def _differences(tensors: Tensors, arch: Architecture) -> tuple[list[str], list[str]]:
    """Return missing and unexpected tensors; a tensor of another shape is in both."""
    try:
        expected = _shapes(arch)
    except ModelError as error:
        return [str(error)], []
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    missing = [f"{k} {s}" for k, s in expected.items() if shapes.get(k) != s]
    return missing, [f"{k} {s}" for k, s in shapes.items() if expected.get(k) != s]


def _difference(tensors: Tensors, arch: Architecture) -> str:
    missing, unexpected = _differences(tensors, arch)
    return f"missing {_listing(missing)}; unexpected {_listing(unexpected)}"


def _listing(items: list[str]) -> str:
    suffix = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return (", ".join(printable(item, _MAX_NAME) for item in items[:MAX_LISTED]) or "nothing") + suffix


def _nearest(tensors: Tensors) -> str:
    """Return the named member that shares most tensor names."""
    keys_found = set(tensors)

    def likeness(name: str) -> float:
        keys = set(_shapes(architecture(name)))
        return len(keys_found & keys) / len(keys_found | keys)

    prefix = "resnet" if "bn1.weight" in keys_found else "preact_"  # plain nets have the names of option A
    return max((name for name in names() if name.startswith(prefix)), key=likeness)


@cache
def _shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = ResNet(arch).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(IGNORED)}
