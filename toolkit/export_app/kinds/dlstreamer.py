"""Pipeline of Intel DL Streamer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.export_app import Readme
from edgeship.toolkit.export_app.source import Source

TARGETS = ("openvino",)
SUMMARY = "pipeline and model-proc file of Intel DL Streamer"
SOURCE = "DL Streamer's developer guide, model_proc_file and model_info_xml"
PIPELINE = """\
#!/bin/sh
# Written by edgeship. Classify a video: ./pipeline.sh video.mp4 [CPU|GPU]; one JSON object for each frame.
cd "$(dirname "$0")" || exit 1
[ -f "${1:?usage: pipeline.sh VIDEO [DEVICE]}" ] || { echo "error: no file $1" >&2; exit 1; }
exec gst-launch-1.0 -q filesrc location="$1" ! decodebin ! videoconvert ! video/x-raw,format=BGRx ! \\
  gvaclassify model=model/model.xml model-proc=model_proc.json device="${2:-CPU}" \\
  inference-region=full-frame pre-process-backend=opencv ! \\
  gvametaconvert format=json ! gvametapublish method=file file-path=/dev/stdout ! fakesink sync=false
"""


def write(source: Source, folder: Path) -> Readme:
    """Write the IR, model_proc.json and the pipeline."""
    source.copy_engine(folder / "model")
    text = json.dumps(_model_proc(source), indent=1, ensure_ascii=False)
    write_text(folder / "model_proc.json", f"{text}\n")
    write_text(folder / "pipeline.sh", PIPELINE)
    (folder / "pipeline.sh").chmod(0o755)
    return Readme(
        start="./pipeline.sh video.mp4",
        text=(
            "OpenCV, which resizes in this pipeline, does not average over the pixels of a shrunk image as "
            "the calibration does: classes can differ from the report's. `edgeship prove` measures it; "
            f"frames that arrive in {source.how.crop[1]} x {source.how.crop[0]} are not resized.",
            "DL Streamer marks the model-proc file as legacy. It is written because the `model_info` of an "
            "IR has no crop for a resize of the shorter side.",
        ),
        checked=f"keys and values of model_proc.json by {SOURCE}. The pipeline: not run here.",
    )


def _model_proc(source: Source) -> dict[str, Any]:
    how = source.how
    steps: dict[str, Any] = {"resize": "aspect-ratio", "crop": "central"}
    if how.resize is None:
        steps["resize"] = "no"
    elif how.resize == how.crop:
        steps = {"resize": "no-aspect-ratio"}
    steps["color_space"] = "RGB" if len(how.mean) == 3 else "GRAYSCALE"
    if not source.takes_pixels:
        steps |= {"range": [0.0, 1.0], "mean": how.mean, "std": how.std}
    image = {"layer_name": source.input.name, "format": "image", "params": steps}
    image["precision"] = "U8" if source.takes_pixels else "FP32"
    method = "max" if source.has_probabilities() else "softmax"
    labels = {"attribute_name": "class", "converter": "label", "method": method, "labels": how.labels}
    return {"json_schema_version": "2.2.0", "input_preproc": [image], "output_postproc": [labels]}
