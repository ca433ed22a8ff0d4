"""Program that classifies the frames of a GStreamer pipeline."""

from __future__ import annotations

from pathlib import Path

from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.export_app import Readme, program
from edgeship.toolkit.export_app.source import Source

TARGETS = ("openvino", "onnxruntime", "tensorrt")
SUMMARY = "Python program that classifies the frames of any GStreamer pipeline: cameras, files, RTSP"
PACKAGES = (
    "python3-gst-1.0 python3-venv gir1.2-gst-plugins-base-1.0 "
    "gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
)


def write(source: Source, folder: Path) -> Readme:
    """Write the program, its library and the engine."""
    source.copy_engine(folder / "model")
    source.copy_library(folder)
    write_text(folder / "camera.py", program("gstreamer_camera.py"))
    runtime = source.variant.target
    pip = "" if runtime == "tensorrt" else f" {runtime}"
    return Readme(
        start=f"sudo apt-get install {PACKAGES}\n"
        f"python3 -m venv --system-site-packages venv && venv/bin/pip install numpy pillow{pip}\n"
        "venv/bin/python camera.py --source 'videotestsrc num-buffers=10'",
        text=(
            "`--source` is the front of a pipeline, as for `gst-launch-1.0`:",
            "```sh\nvenv/bin/python camera.py --live --source 'v4l2src device=/dev/video0'\n"
            "venv/bin/python camera.py --live --source 'rtspsrc location=rtsp://camera/stream ! decodebin'\n"
            "venv/bin/python camera.py --source 'multifilesrc location=frame%05d.png caps=image/png,"
            "framerate=30/1 ! pngdec'\n```",
            "One JSON object for each frame is printed. `--live` drops frames that arrive while one is "
            "classified. `--model /opt/edgeship/current` follows a release. The program asks GStreamer for "
            "RGB frames of the source's own size; resize, crop and normalization are the library's. Frames "
            "of a YUV source are converted by `videoconvert` with the matrix and range in the stream's caps.",
        ),
        checked="the program runs in edgeship's tests with Debian's GStreamer: PNG files of odd widths give "
        "the library's classes.",
    )
