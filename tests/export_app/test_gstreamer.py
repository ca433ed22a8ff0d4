"""The GStreamer program, run by Debian's Python: padded rows, files, errors of the pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit import export_app

PROGRAM = "edgeship.toolkit.export_app.programs.gstreamer_camera"
SYSTEM = Path("/usr/bin/python3")
PATH = os.pathsep.join(place for place in sys.path if place.endswith("site-packages"))


@pytest.fixture(scope="module")
def camera(published, tmp_path_factory):
    probe = "import gi, sys; gi.require_version('GstVideo', '1.0'); print(sys.version_info[:2])"
    done = subprocess.run([SYSTEM, "-c", probe], capture_output=True, text=True) if SYSTEM.exists() else None
    if done is None or done.returncode:
        pytest.skip("needs Debian's python3-gst-1.0 and gir1.2-gst-plugins-base-1.0")
    if done.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip(f"this is not the version of Debian's Python, {done.stdout.strip()}")
    out = tmp_path_factory.mktemp("gstreamer") / "app"
    export_app.write(published.folder, "gstreamer-python", out)

    def run(*arguments):
        return subprocess.run(
            [SYSTEM, "camera.py", *map(str, arguments)],
            cwd=out,
            env={**os.environ, "PYTHONPATH": PATH, "PYTHONIOENCODING": "utf-8"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def test_frames_of_odd_widths_have_the_classes_of_the_library(published, camera, tmp_path):
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (21, 19, 3), np.uint8) for _ in range(5)]
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    with Classifier(published.folder / "engines/openvino/openvino-int8") as classifier:
        expected = [result.top(2) for result in classifier(frames)]
    source = f"multifilesrc location={tmp_path}/%d.png caps=image/png,framerate=30/1 ! pngdec"
    done = camera("--source", source, "--top", 2)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line)["classes"] for line in done.stdout.splitlines()]
    assert [[row["index"] for row in each] for each in rows] == [[c.index for c in each] for each in expected]
    assert [row[0]["label"] for row in rows] == [each[0].label for each in expected]
    assert [row[0]["probability"] for row in rows] == [each[0].probability for each in expected]


def test_a_test_pattern_runs_and_errors_are_clear(camera, tmp_path):
    done = camera("--source", "videotestsrc num-buffers=3 ! video/x-raw,width=33,height=20")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3
    for source, message in (
        ("nosuchsource", "nosuchsource"),
        (f"filesrc location={tmp_path}/absent.png ! pngdec", "absent.png"),
        ("videotestsrc num-buffers=0", "without a frame"),
    ):
        done = camera("--source", source)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    done = camera("--source", "videotestsrc num-buffers=3", "--model", tmp_path)
    assert done.returncode == 1 and "no engine at" in done.stderr
