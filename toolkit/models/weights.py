"""Checkpoints in and out: every usual file form, never running code that lies in one."""

from __future__ import annotations

import json
import os
import pickle
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from toolkit.core.artifact import (
    canonical_json,
    plain,
    read_json,
    replacing,
    sha256_file,
    write_bytes,
    write_json,
)
from toolkit.core.errors import DataError, ModelError, RecipeError, nearest
from toolkit.core.tensors import Preprocess
from toolkit.models.recognize import Tensors, canonical, recognize, unnest
from toolkit.models.resnet import Architecture, ResNet, Widths

TENSORS, WIDTHS = "model.safetensors", "widths.json"
METADATA = "edgeship"  # key of the description inside a safetensors file
SUFFIXES = (".pth", ".pt", ".th", ".safetensors")
TORCHVISION = "https://download.pytorch.org/models/"
# (model, weights) -> file; the name holds the first 8 digits of its SHA-256
PUBLISHED = {
    ("resnet18", "IMAGENET1K_V1"): "resnet18-f37072fd.pth",
    ("resnet34", "IMAGENET1K_V1"): "resnet34-b627a593.pth",
    ("resnet50", "IMAGENET1K_V1"): "resnet50-0676ba61.pth",
    ("resnet50", "IMAGENET1K_V2"): "resnet50-11ad3fa6.pth",
    ("resnet101", "IMAGENET1K_V1"): "resnet101-63fe2227.pth",
    ("resnet101", "IMAGENET1K_V2"): "resnet101-cd907fc2.pth",
    ("resnet152", "IMAGENET1K_V1"): "resnet152-394f9c45.pth",
    ("resnet152", "IMAGENET1K_V2"): "resnet152-f82ba261.pth",
}
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights, in evaluation mode.

    Attributes:
        model: The network, float32.
        preprocess: How its images are prepared; None where the checkpoint does not say.
        sha256: Of the file the weights came from.
    """

    model: ResNet
    preprocess: Preprocess | None
    sha256: str


def load(source: Path, model: str = "auto") -> Loaded:
    """Read a checkpoint, or a folder written by `save`.

    Depth, unit, shortcut, stem, classes and widths are recognized from the tensors. Option A and plain
    nets have the same tensors: without a description inside the file, `auto` takes option A.

    Args:
        source: A .pth, .pt, .th or .safetensors file, or a folder.
        model: auto, or the member of the family it must be.

    Raises:
        DataError: The file cannot be read, holds code, NaN or infinite weights, or fits no member.
        RecipeError: No member is called `model`.
    """
    file = source / TENSORS if source.is_dir() else source
    if not file.is_file():
        raise DataError(f"no checkpoint at {file}", hint="give a file, or a folder that edgeship wrote")
    tensors, description = _read_safetensors(file) if _is_safetensors(file) else (_read_pickle(file), None)
    if source.is_dir():
        description = read_json(source / WIDTHS)
    state = {
        key: value.to(torch.float32) if value.is_floating_point() else value
        for key, value in canonical(tensors).items()
    }
    _check_finite(state, file)
    if description is not None:
        arch, preprocess = _described(description, file)
        if model not in ("auto", arch.name):
            raise DataError(f"{source} is a {arch.name}, not {model}", hint=f"set load.model={arch.name}")
    else:
        arch, preprocess = recognize(state, model, file.name), None
    with torch.device("meta"):
        net = ResNet(arch)
    for key, buffer in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(buffer, device="cpu"))
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise DataError(
            f"{file} does not fit its description: {error}", hint="the two files belong to different models"
        ) from error
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    return Loaded(net.eval(), preprocess, sha256_file(file))


def save(model: ResNet, folder: Path, preprocess: Preprocess | None = None) -> Path:
    """Write model.safetensors and widths.json, each complete or not at all.

    Args:
        model: The network; weights are stored as float32.
        folder: Where; made if absent.
        preprocess: How its images are prepared.

    Returns:
        The safetensors file; it holds the description too, so that it loads alone.
    """
    description = {"schema": 1, "architecture": plain(model.architecture), "preprocess": plain(preprocess)}
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_bytes(folder / TENSORS, serialize(state, metadata={METADATA: canonical_json(description)}))
    write_json(folder / WIDTHS, description)
    return folder / TENSORS


def download(spec: str, model: str) -> Path:
    """Fetch published weights into the user's cache, their hash checked; a second time is immediate.

    Args:
        spec: torchvision:IMAGENET1K_V1 or torchvision:IMAGENET1K_V2.
        model: Member of the family.

    Raises:
        RecipeError: No such weights are published.
        DataError: No connection, or the file does not have the published hash.
    """
    name = spec.removeprefix("torchvision:")
    file = PUBLISHED.get((model, name))
    if not spec.startswith("torchvision:") or file is None:
        known = [f"torchvision:{weights} for {net}" for net, weights in PUBLISHED]
        raise RecipeError(
            f"no published weights '{spec}' for {model}", hint=nearest(f"{spec} for {model}", known)
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeship" / "weights" / file
    digits = file.rsplit("-", 1)[1].removesuffix(".pth")
    if cache.is_file() and sha256_file(cache).startswith(digits):
        return cache
    url = TORCHVISION + file
    hint = f"fetch {url} on a connected machine and set load.weights to the file"
    try:
        with replacing(cache) as temporary:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, temporary.open("wb") as out:  # noqa: S310
                while block := reply.read(1 << 20):
                    out.write(block)
            if not sha256_file(temporary).startswith(digits):
                raise DataError(f"{url} does not have its published hash {digits}...", hint=hint)
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors, a garbled reply is not
        raise DataError(f"cannot download {url}: {error}", hint=hint) from error
    return cache


def _is_safetensors(file: Path) -> bool:
    if file.suffix not in SUFFIXES:
        raise DataError(f"{file} is no checkpoint we know", hint=f"known: {', '.join(SUFFIXES)}")
    return file.suffix == ".safetensors"


def _read_safetensors(file: Path) -> tuple[Tensors, Any]:
    try:
        with safe_open(str(file), "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            text = (stored.metadata() or {}).get(METADATA)
        return unnest(tensors), json.loads(text) if text else None
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"cannot read {file}: {error}", hint="the file is damaged or cut off; copy it again"
        ) from error


def _read_pickle(file: Path) -> Tensors:
    """Tensors of a torch file; `weights_only` refuses everything that is not data."""
    try:
        tensors = unnest(torch.load(file, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        if "global" not in str(error).lower():
            raise _damaged(file, error) from error
        raise DataError(
            f"{file} holds Python objects, which could run code: refused",
            hint="if you trust it, save its state dict alone: torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(file, error) from error
    if not tensors:
        raise DataError(f"{file} holds no tensors", hint="give a state dict, bare or under 'state_dict'")
    return tensors


def _damaged(file: Path, error: Exception) -> DataError:
    reason = str(error).strip().split("\n", 1)[0]
    return DataError(
        f"cannot read {file}: {reason}",
        hint="the file is damaged, cut off, or no state dict (TorchScript is not); copy or save it again",
    )


def _check_finite(state: Tensors, file: Path) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise DataError(
                f"{file}: {bad} of {value.numel()} values of {key} are NaN or infinite",
                hint="the training diverged, or float16 overflowed; take an earlier checkpoint",
            )
        if key.endswith("running_var") and bool((value < 0).any()):
            raise DataError(f"{file}: {key} is negative", hint="take an earlier checkpoint")


def _described(description: Any, file: Path) -> tuple[Architecture, Preprocess | None]:
    try:
        fields = dict(description["architecture"])
        widths = fields.pop("widths")
        inner = tuple(tuple(tuple(block) for block in stage) for stage in widths["inner"])
        arch = Architecture(**fields, widths=Widths(widths["stem"], tuple(widths["streams"]), inner))
        preprocess = _preprocess(description["preprocess"])
        with torch.device("meta"):
            ResNet(arch)
    except (KeyError, TypeError, ValueError, AttributeError, ModelError) as error:
        raise DataError(
            f"the description of {file} cannot be used: {error}",
            hint="it was edited, or is of another version",
        ) from error
    return arch, preprocess


def _preprocess(fields: Any) -> Preprocess | None:
    if fields is None:
        return None
    return Preprocess.from_json(fields)
