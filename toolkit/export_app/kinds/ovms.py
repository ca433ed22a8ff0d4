"""Model folder and configuration of OpenVINO Model Server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.export_app import Readme, program
from edgeship.toolkit.export_app.source import Source

TARGETS = ("openvino",)
SUMMARY = "configuration and model folder of OpenVINO Model Server; a client"
SOURCE = "src/schema.cpp and docs/parameters.md of openvinotoolkit/model_server"


def write(source: Source, folder: Path) -> Readme:
    """Write config.json, the model folder and the client."""
    version = folder / "models" / source.name / "1"
    version.mkdir(parents=True)
    for file in source.engine_files():
        shutil.copyfile(file, version / file.name)
    write_text(version.parent / "labels.txt", source.labels_text())
    config = {
        "name": source.name,
        "base_path": f"/models/{source.name}",
        "target_device": "CPU",
        # else CPUs with bf16 or f16 arithmetic run the float layers in it, unlike those of the report
        "plugin_config": {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
    }
    text = json.dumps({"model_config_list": [{"config": config}]}, indent=1)
    write_text(folder / "models" / "config.json", f"{text}\n")
    source.copy_client(folder)
    write_text(folder / "client.py", program("kserve_client.py"))
    return Readme(
        start="docker run --rm -v $PWD/models:/models:ro -p 8000:8000 openvino/model_server "
        "--config_path /models/config.json --rest_port 8000\n"
        "python3 -m pip install 'tritonclient[http]' numpy pillow\n"
        f"python3 client.py --url 127.0.0.1:8000 --model {source.name} photo.jpg",
        text=(
            "The server runs the network alone, in the KServe v2 form. `client.py` resizes, crops and "
            "normalizes with edgeship's library, so that the pixels are the run's; its `prepare` is for your "
            "own client.",
        ),
        checked=f"the keys of config.json follow {SOURCE}, and the client's inputs are the library's, in "
        "edgeship's tests. The server: not run here.",
    )
