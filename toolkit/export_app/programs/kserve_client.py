"""Classify images with a KServe v2 server (Triton, OpenVINO Model Server), prepared by edgeship's library.

python3 client.py [--url 127.0.0.1:8000] --model NAME IMAGE...
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(FOLDER, "runner", "edgeship_runner.pyz"))

import numpy as np

from edgeship.targets.runner import imaging
from edgeship.targets.runner.description import Description

with open(os.path.join(FOLDER, "model.json"), encoding="utf-8") as stream:
    HOW = Description(json.load(stream), "model.json")


def prepare(image: Any, datatype: str, shape: list[int]) -> Any:
    """Return the network input (1, ...) of an RGB image: Pillow's, or uint8 (H, W, 3).

    Args:
        image: The decoded image.
        datatype: Of the model's input: UINT8 (pixels, normalized in the network) or FP32.
        shape: Of the model's input, batch first.

    Raises:
        ValueError: The model takes another form, or the image is too small.
    """
    channels = len(HOW.mean)
    pixels = imaging.pixels(image, HOW.resize, HOW.crop, HOW.interpolation, channels)[None]
    ready = pixels if datatype == "UINT8" else imaging.normalize(pixels, HOW.mean, HOW.std)
    if datatype != "UINT8" and list(shape[1:]) == [*HOW.crop, channels]:
        ready = np.ascontiguousarray(ready.transpose(0, 2, 3, 1))
    if datatype not in ("UINT8", "FP32") or list(ready.shape[1:]) != list(shape[1:]):
        raise ValueError(f"the model takes {datatype} {shape}, model.json describes {list(ready.shape)}")
    return ready


def classify(client: Any, model: str, image: Any) -> int:
    """Return the index of an image's class."""
    from tritonclient import http

    (tensor,) = client.get_model_metadata(model)["inputs"]
    ready = prepare(image, tensor["datatype"], tensor["shape"])
    value = http.InferInput(tensor["name"], list(ready.shape), tensor["datatype"])
    value.set_data_from_numpy(ready)
    answer = client.infer(model, [value])
    (output,) = answer.get_response()["outputs"]
    return int(answer.as_numpy(output["name"]).reshape(-1).argmax())


def main() -> int:
    """Print the class of each image."""
    from tritonclient import http
    from tritonclient.utils import InferenceServerException

    parser = argparse.ArgumentParser(description="Classify images with a KServe v2 server.")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--url", default="127.0.0.1:8000", help="HOST:PORT (default: 127.0.0.1:8000)")
    parser.add_argument("--model", required=True, help="name of the model on the server")
    chosen = parser.parse_args()
    client = http.InferenceServerClient(chosen.url)
    for name in chosen.images:
        try:
            with open(name, "rb") as file:
                image = imaging.decode(file.read())
            print(f"{name}: {HOW.labels[classify(client, chosen.model, image)]}")
        except (OSError, ValueError, InferenceServerException) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
