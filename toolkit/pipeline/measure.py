"""Measure latency, throughput, memory, energy and end-to-end time of engines."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeship import targets
from edgeship.targets.runner.guard import Guarded
from edgeship.toolkit.core.errors import RecipeError, TargetError
from edgeship.toolkit.core.progress import track
from edgeship.toolkit.core.quant import FloatArray, PixelArray
from edgeship.toolkit.core.results import Environment
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.runs.guarded import GuardedEngine
from edgeship.toolkit.runs.measured import Latencies, LatencyRecord

if TYPE_CHECKING:
    from PIL import Image

    from edgeship.targets._cpu_load import Activity
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
    guarded: Mapping[str, GuardedEngine] = MappingProxyType({}),
    traffic: FloatArray | PixelArray | None = None,
) -> Latencies:
    """Measure every engine, interleaved; quantities that cannot be measured here are listed with the reason.

    Args:
        options: The bench section.
        files: Name -> target and engine file.
        images: One batch (N, C, H, W) of noise.
        ready: Name -> target and file of the same engine with float input, for comparison.
        dynamic: True if the engines have a dynamic batch.
        pictures: Decoded images for end-to-end runs; without, they are left out.
        preprocess: Preprocessing of an image, with `pictures`.
        guarded: Name -> guarded variant of two of the engines; throughput and time end to end are left out.
        traffic: Images as inputs that the latency is measured on, in turn, where an engine takes this form;
            needed for guarded variants. None: `images`.
    """
    with ExitStack() as stack:
        sessions = loaded(options, files, stack)
        guards = {
            name: Guarded(sessions[each.fast].infer, sessions[each.reference].infer, each.threshold)
            for name, each in guarded.items()
        }
        measured = latencies(options, sessions, images, guards, traffic)
        if not options.throughput_s:
            return measured
        floats = loaded(options, ready, stack)
        if preprocess is not None:
            _end_to_end(measured, sessions, floats, pictures, preprocess, options.throughput_s)
        _energy(measured, options, sessions, images)
        shaped = {name: session_input(session, images) for name, session in sessions.items()}
    _memory(measured, options, files, shaped)
    _guarded_memory(measured, guarded)
    _throughput(measured, options, files, shaped, dynamic=dynamic)
    return measured


def _add(measured: Latencies, name: str, **figures: Any) -> None:
    """Add figures to the record of a variant; Any: the type of each field."""
    measured.variants[name] = replace(measured.variants[name], **figures)


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
    measured: Latencies,
    sessions: Mapping[str, targets.Session],
    floats: Mapping[str, targets.Session],
    pictures: Sequence[Image.Image],
    preprocess: Preprocess,
    duration_s: float,
) -> None:
    from edgeship.targets._timing import interleave

    runs = {
        f"{key} {name}": end_to_end(session, measured.batch, pictures, preprocess)
        for key, loaded in (("end_to_end_ms", sessions), ("float_end_to_end_ms", floats))
        for name, session in loaded.items()
    }
    for run, samples in interleave(runs, warmup_s=0.1, duration_s=duration_s).items():
        key, name = run.split(" ", 1)
        _add(measured, name, **{key: samples})
    sizes = sorted(f"{width} x {height}" for width, height in {picture.size for picture in pictures})
    shown = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    measured.how["end_to_end_ms"] = f"{HOW_END_TO_END}; {len(pictures)} images of {shown} pixels"


def _energy(
    measured: Latencies,
    options: BenchOptions,
    sessions: Mapping[str, targets.Session],
    images: FloatArray,
) -> None:
    from edgeship.targets._energy import how, per_call_mj

    for name, session in sessions.items():
        try:
            call_mj = per_call_mj(inference(session, images), options.throughput_s)
        except TargetError as error:
            measured.not_measured["energy_mj"] = str(error)
            return
        _add(measured, name, energy_mj=call_mj / len(images))
    measured.how["energy_mj"] = how()


def _memory(
    measured: Latencies,
    options: BenchOptions,
    files: Mapping[str, tuple[str, Path]],
    shaped: Mapping[str, FloatArray | PixelArray],
) -> None:
    from edgeship.targets._memory import HOW, measure

    for name in track(list(files), "measuring memory"):
        target, engine = files[name]
        try:
            memory = measure(target, engine, shaped[name], options.threads)
        except TargetError as error:
            measured.not_measured["memory_bytes"] = str(error)
            return
        _add(measured, name, memory_bytes=memory["peak_bytes"], resident_bytes=memory["resident_bytes"])
    measured.how["memory_bytes"] = HOW


def _guarded_memory(measured: Latencies, guarded: Mapping[str, GuardedEngine]) -> None:
    """Add the memory of guarded variants: the sum of both engines."""
    for name, each in guarded.items():
        pair = [measured.variants[part] for part in (each.fast, each.reference)]
        for field in ("memory_bytes", "resident_bytes"):
            sizes = [size for part in pair if (size := getattr(part, field)) is not None]
            if len(sizes) == len(pair):
                _add(measured, name, **{field: sum(sizes)})
    if guarded and "memory_bytes" in measured.how:
        measured.how["memory_bytes"] += "; of a guarded variant the sum of both engines"


def _throughput(
    measured: Latencies,
    options: BenchOptions,
    files: Mapping[str, tuple[str, Path]],
    shaped: Mapping[str, FloatArray | PixelArray],
    *,
    dynamic: bool,
) -> None:
    """Measure images per second at each batch, engines interleaved against drift of the clock."""
    own = measured.batch
    batches = sorted({*BATCHES, own}) if dynamic else [own]
    for batch in track(batches, "measuring throughput"):
        for name, (target, engine) in files.items():
            images = np.resize(shaped[name], (batch, *shaped[name].shape[1:]))
            ips = targets.get(target).throughput_ips(
                engine, images, threads=options.threads, duration_s=options.throughput_s
            )
            _add(measured, name, throughput={**measured.variants[name].throughput, str(batch): ips})
            if batch == own:
                _add(measured, name, throughput_ips=ips)


def bench_batch(options: BenchOptions, fixed: int | None) -> int:
    """Return the batch size of one timed inference.

    Args:
        options: The bench section.
        fixed: Batch of the graph; None: dynamic.

    Raises:
        RecipeError: The graph has a fixed batch of another size.
    """
    if options.batch and fixed and options.batch != fixed:
        raise RecipeError(
            f"bench.batch = {options.batch}, but the graph takes {fixed}",
            hint=f"set export.batch={options.batch}, or export.batch=dynamic",
        )
    return options.batch or fixed or 1


def loaded(
    options: BenchOptions, files: Mapping[str, tuple[str, Path]], stack: ExitStack
) -> dict[str, targets.Session]:
    """Open a session per engine; the stack closes them."""
    return {
        name: stack.enter_context(targets.get(target).open(engine, threads=options.threads))
        for name, (target, engine) in files.items()
    }


def latencies(
    options: BenchOptions,
    sessions: Mapping[str, targets.Session],
    images: FloatArray,
    guards: Mapping[str, Guarded] = MappingProxyType({}),
    traffic: FloatArray | PixelArray | None = None,
) -> Latencies:
    """Time sessions, interleaved, on one batch (N, C, H, W); with guards all on batches of the traffic."""
    from edgeship.targets._timing import interleave, noise_warning

    runs = {name: inference(session, images) for name, session in sessions.items()}
    if traffic is not None:
        pixels = traffic.dtype == np.uint8
        infers: dict[str, Callable[[Any], Any]] = {
            name: each.infer for name, each in sessions.items() if each.takes_pixels == pixels
        }
        infers |= guards
        runs |= {name: _in_turn(infer, traffic, len(images)) for name, infer in infers.items()}
    samples = interleave(
        runs,
        warmup_s=options.warmup_s,
        duration_s=None if options.runs else options.duration_s,
        count=options.runs,
    )
    return Latencies(
        included="one call: input copied in, inference, output copied out; interrupted ones repeated"
        + ("; evaluation images in turn" if traffic is not None else ""),
        threads=options.threads,
        batch=len(images),
        variants={
            name: LatencyRecord(
                taken,
                noise_warning(taken),
                rerun_share=guards[name].rerun / guards[name].images if name in guards else None,
            )
            for name, taken in samples.items()
        },
    )


def _in_turn(
    infer: Callable[[Any], Any], traffic: FloatArray | PixelArray, batch: int
) -> Callable[[], FloatArray]:
    """Return a function that runs the next batch of the traffic, over and over."""
    places = itertools.cycle(range(0, max(len(traffic) - batch, 0) + 1, batch))

    def run() -> FloatArray:
        start = next(places)
        logits: FloatArray = infer(traffic[start : start + batch])
        return logits

    return run


def inference(session: targets.Session, images: FloatArray) -> Callable[[], FloatArray]:
    """Return a function that runs one batch (N, C, H, W), in the input type of the session."""
    batch = session_input(session, images)
    return lambda: session.infer(batch)


def session_input(session: targets.Session, images: FloatArray) -> FloatArray | PixelArray:
    """Return the images (N, C, H, W), or random pixels (N, H, W, C) for a session with pixel input."""
    if not session.takes_pixels:
        return images
    count, channels, height, width = images.shape
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def environment(activity: Activity) -> Environment:
    """Describe this machine and its load during a measurement."""
    from edgeship.targets._device import this_cpu, this_device

    here = this_device()
    return Environment(
        cpu=here.name,
        instruction_sets=here.instruction_sets,
        cores=here.cores,
        versions=here.versions,
        arch=here.arch,
        memory_bytes=here.memory_bytes,
        power_mode=here.power_mode,
        clocks_mhz=here.clocks_mhz,
        load_average=os.getloadavg(),
        throttled=activity.throttled,
        other_share=activity.other_share,
        stolen_share=activity.stolen_share,
        int8_sums=this_cpu().int8_sums,
        timed=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
