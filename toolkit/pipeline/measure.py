"""Measure latency, throughput, memory, energy and end-to-end time from decoded images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.toolkit.core.errors import TargetError
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.pipeline import variants

if TYPE_CHECKING:
    from PIL import Image

    from edgeship.toolkit.pipeline.recipe import BenchOptions

BATCHES = (1, 2, 4, 8, 16)  # of a graph with a dynamic batch
PICTURES = 8  # decoded images that end-to-end runs cycle through
HOW_END_TO_END = (
    "resize, crop and normalization of decoded images on one core, one after the other (normalization only "
    "where the engine does not do it), then the inference"
)


def measure(
    options: BenchOptions,
    files: Mapping[str, tuple[str, Path]],
    images: FloatArray,
    *,
    ready: Mapping[str, tuple[str, Path]] = MappingProxyType({}),
    dynamic: bool = False,
    pictures: Sequence[Image.Image] = (),
    preprocess: Preprocess | None = None,
) -> dict[str, Any]:
    """Measure every engine, interleaved; quantities that cannot be measured here are listed with the reason.

    Args:
        options: The bench section.
        files: Name -> target and engine file.
        images: One batch (N, C, H, W) of noise.
        ready: Name -> target and file of the same engine with float input, for comparison.
        dynamic: True if the engines have a dynamic batch.
        pictures: Decoded images for end-to-end runs; without, they are left out.
        preprocess: Preprocessing of an image, with `pictures`.

    Returns:
        The content of latency.json.
    """
    with ExitStack() as stack:
        sessions = variants.loaded(options, files, stack)
        measured = {**variants.latencies(options, sessions, images), "how": {}, "not_measured": {}}
        if options.throughput_s:
            floats = variants.loaded(options, ready, stack)
            if preprocess is not None:
                _end_to_end(
                    measured, sessions, floats, len(images), pictures, preprocess, options.throughput_s
                )
            _energy(measured, options, sessions, images)
        shaped = {name: variants.session_input(session, images) for name, session in sessions.items()}
    if options.throughput_s:
        _memory(measured, options, files, shaped)
        _throughput(measured, options, files, shaped, dynamic=dynamic)
    return measured


def end_to_end(
    session: targets.Session, batch: int, pictures: Sequence[Image.Image], preprocess: Preprocess
) -> Callable[[], FloatArray]:
    """Return a function that runs the next `batch` of decoded images to logits."""
    from edgeship.calibration.preprocess import normalize, pixels

    endless = itertools.cycle(pictures)

    def run() -> FloatArray:
        cropped = np.stack([pixels(next(endless), preprocess) for _ in range(batch)])
        return session.infer(cropped if session.takes_pixels else normalize(cropped, preprocess))

    return run


def _end_to_end(
    measured: dict[str, Any],
    sessions: Mapping[str, targets.Session],
    floats: Mapping[str, targets.Session],
    batch: int,
    pictures: Sequence[Image.Image],
    preprocess: Preprocess,
    duration_s: float,
) -> None:
    from edgeship.targets._timing import interleave

    runs = {
        f"{key} {name}": end_to_end(session, batch, pictures, preprocess)
        for key, loaded in (("end_to_end_ms", sessions), ("float_end_to_end_ms", floats))
        for name, session in loaded.items()
    }
    for run, samples in interleave(runs, warmup_s=0.1, duration_s=duration_s).items():
        key, name = run.split(" ", 1)
        measured["variants"][name][key] = samples
    sizes = sorted(f"{width} x {height}" for width, height in {picture.size for picture in pictures})
    shown = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    measured["how"]["end_to_end_ms"] = f"{HOW_END_TO_END}; {len(pictures)} images of {shown} pixels"


def _energy(
    measured: dict[str, Any],
    options: BenchOptions,
    sessions: Mapping[str, targets.Session],
    images: FloatArray,
) -> None:
    from edgeship.targets._energy import how, per_call_mj

    for name, session in sessions.items():
        try:
            call_mj = per_call_mj(variants.inference(session, images), options.throughput_s)
        except TargetError as error:
            measured["not_measured"]["energy_mj"] = str(error)
            return
        measured["variants"][name]["energy_mj"] = call_mj / len(images)
    measured["how"]["energy_mj"] = how()


def _memory(
    measured: dict[str, Any],
    options: BenchOptions,
    files: Mapping[str, tuple[str, Path]],
    shaped: Mapping[str, Any],
) -> None:
    from edgeship.targets._memory import HOW, measure

    for name in track(list(files), "measuring memory"):
        target, engine = files[name]
        try:
            memory = measure(target, engine, shaped[name], options.threads)
        except TargetError as error:
            measured["not_measured"]["memory_bytes"] = str(error)
            return
        measured["variants"][name]["memory_bytes"] = memory["peak_bytes"]
        measured["variants"][name]["resident_bytes"] = memory["resident_bytes"]
    measured["how"]["memory_bytes"] = HOW


def _throughput(
    measured: dict[str, Any],
    options: BenchOptions,
    files: Mapping[str, tuple[str, Path]],
    shaped: Mapping[str, Any],
    *,
    dynamic: bool,
) -> None:
    """Measure images per second at each batch, engines interleaved against drift of the clock."""
    own = measured["batch"]
    batches = sorted({*BATCHES, own}) if dynamic else [own]
    rows = measured["variants"]
    for batch in track(batches, "measuring throughput"):
        for name, (target, engine) in files.items():
            images = np.resize(shaped[name], (batch, *shaped[name].shape[1:]))
            ips = targets.get(target).throughput_ips(
                engine, images, threads=options.threads, duration_s=options.throughput_s
            )
            rows[name].setdefault("throughput", {})[str(batch)] = ips
            if batch == own:
                rows[name]["throughput_ips"] = ips
