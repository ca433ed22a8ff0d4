"""Classify the frames of a GStreamer pipeline; print one JSON object for each.

python3 camera.py --source 'v4l2src device=/dev/video0' [--live] [--model FOLDER] [--top 1]
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(FOLDER, "runner", "edgeship_runner.pyz"))

# GStreamer loads libunwind, whose _Unwind_Resume would end the program at a C++ exception of OpenVINO.
# That of libgcc_s has to be in the global scope before it.
with contextlib.suppress(OSError):
    ctypes.CDLL("libgcc_s.so.1", mode=ctypes.RTLD_GLOBAL)

import gi
import numpy as np

gi.require_version("Gst", "1.0")
gi.require_version("GstVideo", "1.0")
from gi.repository import GLib, Gst, GstVideo

from edgeship.targets.runner.classifier import Classifier
from edgeship.targets.runner.failures import Failure

WAIT_NS = 200_000_000  # between two looks at the errors of the pipeline
ROW_ALIGNMENT = 4  # bytes, of RGB without a GstVideoMeta: GStreamer's default strides


class PipelineError(Exception):
    """A pipeline that cannot be built or stopped with an error."""


def frames(source: str, live: bool) -> Iterator[Any]:
    """Yield every frame of a source as uint8 (H, W, 3) RGB.

    Raises:
        PipelineError: An element is missing or fails, or there is no frame.
    """
    sink = f"appsink name=frames sync=false max-buffers=2 drop={'true' if live else 'false'}"
    try:
        pipeline = Gst.parse_launch(f"{source} ! videoconvert ! video/x-raw,format=RGB ! {sink}")
    except GLib.Error as error:
        raise PipelineError(f"{source}: {error.message}") from error
    appsink, bus, count = pipeline.get_by_name("frames"), pipeline.get_bus(), 0
    pipeline.set_state(Gst.State.PLAYING)
    try:
        while True:
            sample = appsink.emit("try-pull-sample", WAIT_NS)
            if sample is not None:
                count += 1
                yield array(sample)
                continue
            message = bus.pop_filtered(Gst.MessageType.ERROR)
            if message is not None:
                raise PipelineError(f"{source}: {message.parse_error()[0].message}")
            if appsink.get_property("eos"):
                break
    finally:
        pipeline.set_state(Gst.State.NULL)
    if not count:
        raise PipelineError(f"{source}: ended without a frame")


def array(sample: Any) -> Any:
    """Return the frame of a sample (H, W, 3); rows may be padded."""
    form = sample.get_caps().get_structure(0)
    width, height = form.get_value("width"), form.get_value("height")
    buffer = sample.get_buffer()
    meta = GstVideo.buffer_get_video_meta(buffer)
    stride = meta.stride[0] if meta else -(-width * 3 // ROW_ALIGNMENT) * ROW_ALIGNMENT
    data = np.frombuffer(buffer.extract_dup(0, buffer.get_size()), np.uint8)[meta.offset[0] if meta else 0 :]
    rows = np.lib.stride_tricks.as_strided(data, (height, width * 3), (stride, 1))
    return np.ascontiguousarray(rows).reshape(height, width, 3)


def main() -> int:
    """Classify until the source ends; return the exit code."""
    parser = argparse.ArgumentParser(description="Classify the frames of a GStreamer pipeline.")
    parser.add_argument("--source", required=True, help="front of a pipeline, as for gst-launch-1.0")
    parser.add_argument("--live", action="store_true", help="drop frames that arrive while one is classified")
    parser.add_argument("--model", default=os.path.join(FOLDER, "model"), help="release or engine folder")
    parser.add_argument("--top", type=int, default=1, help="number of classes for each frame (default: 1)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    chosen = parser.parse_args()
    Gst.init(None)
    try:
        with Classifier(chosen.model, threads=chosen.threads) as classifier:
            for number, frame in enumerate(frames(chosen.source, chosen.live)):
                best = classifier(frame, color="rgb").top(chosen.top)
                classes = [{"index": c.index, "label": c.label, "probability": c.probability} for c in best]
                print(json.dumps({"frame": number, "classes": classes}, ensure_ascii=False), flush=True)
    except Failure as failure:
        print(f"error: {failure} ({failure.cause})\nhint: {failure.cure}", file=sys.stderr)
        return 1
    except PipelineError as error:
        print(f"error: {error}\nhint: try it with gst-launch-1.0 and `! fakesink`", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
