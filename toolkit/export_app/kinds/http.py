"""HTTP service in the KServe v2 form."""

from __future__ import annotations

from pathlib import Path

from edgeship.toolkit.core.artifact import write_text
from edgeship.toolkit.export_app import Readme, program
from edgeship.toolkit.export_app.source import Source

TARGETS = ("openvino", "onnxruntime", "tensorrt")
SUMMARY = "HTTP service in the KServe v2 form, with hot reload and Prometheus metrics"
REQUIREMENTS = ("numpy", "starlette>=0.40", "uvicorn>=0.30", "prometheus-client>=0.20", "pillow>=10.3")


def write(source: Source, folder: Path) -> Readme:
    """Write the service, its library, the engine and the requirements."""
    source.copy_engine(folder / "model")
    source.copy_library(folder)
    write_text(folder / "service.py", program("http_service.py"))
    runtime = source.variant.target
    packages = [*REQUIREMENTS, *([] if runtime == "tensorrt" else [runtime])]
    write_text(folder / "requirements.txt", "".join(f"{each}\n" for each in packages))
    return Readme(
        start="python3 -m pip install -r requirements.txt\npython3 service.py --port 8000",
        text=(
            "`service.py --model /opt/edgeship/current` serves a release and follows it: after a switch the "
            "new engine is loaded in the background and used from the next request on. "
            f"`POST v2/repository/models/{source.name}/load` does that at once. `GET /metrics` is for "
            "Prometheus. Without `--host` only this machine can connect.",
            "A request has one input: `pixels`, UINT8 (N, H, W, 3) of decoded RGB of any size, or `files`, "
            "BYTES (N) of encoded images. Outputs: `index` INT64 (N), `label` BYTES (N), `probabilities` and "
            "`logits` FP32 (N, classes). A request of another form gets "
            "status 400, one of over 256 images 413.",
            "```python\nimport numpy as np\nimport tritonclient.http as http\n\n"
            'client = http.InferenceServerClient("127.0.0.1:8000")\n'
            'pixels = http.InferInput("pixels", [1, 480, 640, 3], "UINT8")\n'
            "pixels.set_data_from_numpy(np.zeros((1, 480, 640, 3), np.uint8))\n"
            f'print(client.infer("{source.name}", [pixels]).as_numpy("label"))\n```',
        ),
        checked="the service runs in edgeship's tests with tritonclient; form: KServe's Open Inference "
        "Protocol v2 (REST) and Triton's binary tensor and model repository extensions.",
    )
