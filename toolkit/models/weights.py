"""Loading and saving of checkpoints in the usual file formats, without execution of pickled code."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from edgeship.toolkit.core.artifact import (
    canonical_json,
    plain,
    read_json,
    replacing,
    sha256_file,
    write_bytes,
    write_json,
)
from edgeship.toolkit.core.errors import DataError, ModelError, RecipeError, missing, nearest
from edgeship.toolkit.core.tensors import Interpolation, Preprocess, PreprocessSource, sides
from edgeship.toolkit.core.text import printable
from edgeship.toolkit.core.typed_json import from_json
from edgeship.toolkit.models.recognize import Tensors, canonical, recognize, unnest
from edgeship.toolkit.models.resnet import Architecture, ResNet

TENSORS, WIDTHS = "model.safetensors", "widths.json"
METADATA = "edgeship"  # key of the description inside a safetensors file
SUFFIXES = (".pth", ".pt", ".th", ".pth.tar", ".bin", ".ckpt", ".safetensors")
TORCHVISION = "https://download.pytorch.org/models/"
# (model, weights) -> file; its name has the first 8 digits of its SHA-256
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
_MOST_WIDTH = 1 << 20  # channels or classes in a description
_MOST_BLOCKS = 1000
_MOST_SIDE = 1 << 16  # pixels
_UNSAFE_ADVICE = re.compile(r"weights.only|torch\.load|safe_globals|\btrust|use case", re.IGNORECASE)
_OBJECTS = re.compile(r"global|instantiate|reduce|build|class", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights, in evaluation mode.

    Attributes:
        model: The network, float32.
        preprocess: Image preprocessing; None if the checkpoint has none.
        sha256: Digest of the weights file.
        preprocess_source: Origin of `preprocess`, if stored.
    """

    model: ResNet
    preprocess: Preprocess | None
    sha256: str
    preprocess_source: PreprocessSource | None = None


@dataclass(frozen=True, slots=True)
class _Description:
    """Content of widths.json, and of the metadata of a safetensors file."""

    architecture: Architecture
    preprocess: Preprocess | None = None
    preprocess_source: PreprocessSource | None = None
    schema: Literal[1, 2] = 1  # 2: with stem strides, which earlier versions do not know


def load(source: Path, model: str = "auto") -> Loaded:
    """Read a checkpoint, or a folder written by `save`.

    Depth, unit, shortcut, stem, classes and widths are inferred from the tensors. Option A and plain
    nets have the same tensors: without a description in the file, `auto` selects option A.

    Args:
        source: A .pth (.pt, .th, .pth.tar, .bin, .ckpt) or .safetensors file, or a folder.
        model: auto, or the expected member of the family.

    Raises:
        DataError: The file cannot be read, contains code, NaN or infinite weights, or fits no member.
        RecipeError: No member has the name `model`.
    """
    try:
        file = source / TENSORS if source.is_dir() else source
        exists = file.is_file()
    except OSError as error:
        raise DataError(f"cannot open {source}: {error.strerror}", hint="check the path") from error
    if not exists:
        raise missing(
            DataError(f"no checkpoint at {file}", hint="give a file, or a folder written by edgeship")
        )
    tensors, description = _read_safetensors(file) if _is_safetensors(file) else (_read_pickle(file), None)
    if source.is_dir():
        description = read_json(source / WIDTHS)
    renamed = canonical(tensors)
    _check_dense_floats(renamed, file)
    state = {
        key: value.to(torch.float32) if value.is_floating_point() else value for key, value in renamed.items()
    }
    _check_finite(state, file)
    described = None if description is None else _from_description(description, file)
    if described is not None:
        arch = described.architecture
        if model not in ("auto", arch.name):
            raise DataError(f"{source} is a {arch.name}, not {model}", hint=f"set load.model={arch.name}")
    else:
        arch = recognize(state, model, file.name)
    with torch.device("meta"):
        net = ResNet(arch)
    for key, buffer in net.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state.setdefault(key, torch.zeros_like(buffer, device="cpu"))
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise DataError(
            f"{file} does not fit its description: {printable(' '.join(str(error).split()), 500)}",
            hint="give both files of one model",
        ) from error
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    if described is None:
        return Loaded(net.eval(), None, sha256_file(file))
    return Loaded(net.eval(), described.preprocess, sha256_file(file), described.preprocess_source)


def save(
    model: ResNet,
    folder: Path,
    preprocess: Preprocess | None = None,
    *,
    source: PreprocessSource | None = None,
) -> Path:
    """Write model.safetensors and widths.json, each atomically.

    Args:
        model: The network; weights are stored as float32.
        folder: Output folder; created if absent.
        preprocess: Image preprocessing.
        source: Origin of mean and std (stated or assumed).

    Returns:
        The safetensors file; it includes the description, so that it can be loaded alone.
    """
    schema: Literal[1, 2] = 1 if model.architecture.stem_strides is None else 2
    description = plain(_Description(model.architecture, preprocess, source, schema))
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_bytes(folder / TENSORS, serialize(state, metadata={METADATA: canonical_json(description)}))
    write_json(folder / WIDTHS, description)
    return folder / TENSORS


def download(spec: str, model: str) -> Path:
    """Download published weights into the user's cache and check their hash; reuse a cached file.

    Args:
        spec: torchvision:IMAGENET1K_V1 or torchvision:IMAGENET1K_V2.
        model: Member of the family.

    Raises:
        RecipeError: No such weights are published.
        DataError: The download failed, or the file does not have the published hash.
    """
    name = spec.removeprefix("torchvision:")
    file = PUBLISHED.get((model, name))
    if not spec.startswith("torchvision:") or file is None:
        published = [f"torchvision:{weights} for {net}" for net, weights in PUBLISHED]
        raise RecipeError(
            f"no published weights '{spec}' for {model}", hint=nearest(f"{spec} for {model}", published)
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
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors, an invalid reply is not
        raise DataError(f"cannot download {url}: {error}", hint=hint) from error
    return cache


def _is_safetensors(file: Path) -> bool:
    if not file.name.lower().endswith(SUFFIXES):
        raise DataError(
            f"{file} is no checkpoint: its suffix is none of {', '.join(SUFFIXES)}", hint="rename the file"
        )

    return file.suffix.lower() == ".safetensors"


def _read_safetensors(file: Path) -> tuple[Tensors, Any]:
    try:
        with safe_open(str(file), "pt") as stored:
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
            text = (stored.metadata() or {}).get(METADATA)
        return unnest(tensors), json.loads(text) if text else None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"cannot read {file}: {printable(str(error), 200)}",
            hint="the file is damaged or cut off; copy it again",
        ) from error


def _read_pickle(file: Path) -> Tensors:
    """Read the tensors of a torch file; `weights_only` rejects code."""
    try:
        _check_archive(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecated storage types
            tensors = unnest(torch.load(file, map_location="cpu", weights_only=True))
    except DataError:
        raise
    except pickle.UnpicklingError as error:
        reason = _short_reason(error)
        if not _OBJECTS.search(reason):
            raise _damaged_file(file, reason) from error
        name = re.search(r"GLOBAL (\S+)", reason)
        raise DataError(
            f"{file} contains Python objects{f' ({name[1]})' if name else ''}, which could run code; "
            "tensors are expected",
            hint="if you trust it, save its state dict alone: torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    except Exception as error:  # the unpickler raises any type for damaged files
        raise _damaged_file(file, _short_reason(error)) from error
    if not tensors:
        raise DataError(
            f"{file} has no tensors; a state dict is expected", hint="save model.state_dict() with torch.save"
        )
    return tensors


def _check_archive(file: Path) -> None:
    """Raise for a zip file that PyTorch did not write, before it is unpacked into memory."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise DataError(
            f"{file} is a TorchScript program, not a state dict",
            hint="save the weights alone: torch.save(model.state_dict(), 'weights.pth')",
        )
    total, size = sum(member.file_size for member in members), file.stat().st_size
    if total > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError(f"its {size:,} bytes unpack to {total:,}; PyTorch stores tensors unpacked")


def _short_reason(error: Exception) -> str:
    """Return the first line of PyTorch's error, without its advice to disable the safe mode."""
    lines = str(error).replace("WeightsUnpickler error:", "\n").replace(". Please use", "\n").splitlines()
    reasons = [line.strip() for line in lines if line.strip() and not _UNSAFE_ADVICE.search(line)]
    return (
        printable(re.split(r"\. | was not an allowed", reasons[0])[0], 200)
        if reasons
        else type(error).__name__
    )


def _damaged_file(file: Path, reason: str) -> DataError:
    with file.open("rb") as stream:
        head = stream.read(2)
    if head[:1] == b"\x08" and head[1:] <= b"\x20":  # field 1 of an ONNX ModelProto, the IR version
        return DataError(f"{file} is an ONNX file, not a checkpoint", hint="rename it to end in .onnx")
    if head[:1] != b"\x80" and head != b"PK":
        reason = "it is neither a zip file nor a pickle, as PyTorch writes them"
    return DataError(
        f"cannot read {file}: {reason}",
        hint="the file is damaged, cut off, or no state dict; copy or save it again",
    )


def _check_dense_floats(tensors: Tensors, file: Path) -> None:
    """Raise for tensors that are not dense floating-point CPU tensors, or have too small a storage."""
    for key, value in tensors.items():
        is_dense = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        problem = ""
        if not is_dense or not value.is_floating_point():
            kind = value.dtype if is_dense else f"{value.dtype}, {value.layout}, {value.device.type}"
            problem = f"is {kind}; expected plain floating-point values"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            problem = (
                f"has shape {tuple(value.shape)}, but {value.untyped_storage().nbytes()} bytes are stored"
            )
        if problem:
            raise DataError(
                f"{file}: {printable(key, 100)} {problem}",
                hint="give the float checkpoint, saved by torch.save(model.state_dict(), 'weights.pth')",
            )


def _check_finite(state: Tensors, file: Path) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise DataError(
                f"{file}: {bad} of {value.numel()} values of {key} are NaN or infinite",
                hint="give an earlier checkpoint: the training diverged, or float16 overflowed",
            )
        if key.endswith("running_var") and bool((value < 0).any()):
            raise DataError(
                f"{file}: {key} is negative ({value.min():g}); variances >= 0 are expected",
                hint="give an earlier checkpoint",
            )


def _from_description(content: Any, file: Path) -> _Description:
    """Read and validate the description of a checkpoint; sizes are bounded before a network is built."""
    description = from_json(content, _Description, str(file))
    arch, preprocess = description.architecture, description.preprocess
    blocks = [block for stage in arch.widths.inner for block in stage]
    numbers = [arch.classes, arch.channels, arch.widths.stem, *arch.widths.streams]
    numbers += [width for block in blocks for width in block]
    problem = ""
    if len(blocks) > _MOST_BLOCKS or len(arch.widths.inner) != len(arch.widths.streams):
        problem = f"{len(blocks)} blocks in {len(arch.widths.streams)} stages"
    elif any(len(block) > 2 for block in blocks) or not 1 <= min(numbers) <= max(numbers) <= _MOST_WIDTH:
        problem = f"{numbers} channels and classes"
    elif preprocess is not None and not _is_sensible(preprocess):
        problem = f"preprocessing {preprocess}"
    if not problem:
        try:
            with torch.device("meta"):
                ResNet(arch)
        except (ModelError, RuntimeError, AttributeError, IndexError) as error:
            problem = printable(str(error), 200)
    if problem:
        raise DataError(
            f"the description of {file} cannot be used: {problem[:300]}",
            hint="save the checkpoint again with this version",
        )
    return description


def _is_sensible(preprocess: Preprocess) -> bool:
    lengths = [*sides(preprocess.crop), *(() if preprocess.resize is None else sides(preprocess.resize))]
    return (
        1 <= min(lengths) <= max(lengths) <= _MOST_SIDE
        and len(preprocess.mean) == len(preprocess.std) in (1, 3)
        and all(isinstance(n, (int, float)) and math.isfinite(n) for n in (*preprocess.mean, *preprocess.std))
        and min(preprocess.std) > 0
        and preprocess.interpolation in get_args(Interpolation)
    )
