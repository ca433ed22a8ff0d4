"""Serve a classifier over HTTP: KServe's protocol v2, hot reload, Prometheus metrics.

    python3 service.py [--model FOLDER] [--host 127.0.0.1] [--port 8000] [--threads N]

The model is a release (`/opt/edgeship/current`, which is followed), or a folder with engine and model.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(FOLDER, "runner", "edgeship_runner.pyz"))

import numpy as np
import prometheus_client as prometheus
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeship.targets.runner.classifier import Classifier
from edgeship.targets.runner.failures import Failure

VERSION = "1"
MOST_BYTES = 64 << 20  # of a request
MOST_IMAGES = 256  # of a request: small files become inputs of full size
MOST_REQUESTS = 16  # read and classified at a time; others wait unread
BODY_S = 30.0  # for the body of a request
BINARY_HEADER = "inference-header-content-length"  # of Triton's binary tensor extension: length of the JSON
UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
LOG = logging.getLogger("uvicorn.error")
OUTPUTS = {"index": "INT64", "label": "BYTES", "probabilities": "FP32", "logits": "FP32"}
INPUTS = {"pixels": ("UINT8", 4), "files": ("BYTES", 1)}  # name -> data type, number of sides


class BadRequestError(ValueError):
    """A request of another form than the protocol's or the model's."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter(
            "edgeship_requests", "Inference requests by status", ["status"], registry=self.registry
        )
        self.images = prometheus.Counter("edgeship_images", "Classified images", registry=self.registry)
        self.seconds = prometheus.Histogram(
            "edgeship_request_seconds",
            "Time of a request from its body to its answer",
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self.reload_failed = prometheus.Gauge(
            "edgeship_reload_failed", "1 if the newest engine could not be loaded", registry=self.registry
        )


class Service:
    """The routes of one model.

    Args:
        classifier: The loaded engine.
        name: Name of the model in addresses.
    """

    def __init__(self, classifier: Classifier, name: str) -> None:
        self.classifier, self.name, self.metrics = classifier, name, Metrics()
        self.slots = asyncio.Semaphore(MOST_REQUESTS)

    def app(self) -> Starlette:
        """Return the ASGI application."""
        model = "/v2/models/{name}"
        routes = [
            Route("/v2", self.server),
            Route("/v2/health/live", self.health),
            Route("/v2/health/ready", self.health),
            Route("/metrics", self.exposition),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route("/v2/repository/models/{name}/load", self.load, methods=["POST"]),
        ]
        for version in ("/versions/{version}", ""):
            routes += [
                Route(f"{model}{version}/infer", self.infer, methods=["POST"]),
                Route(f"{model}{version}/ready", self.ready),
                Route(f"{model}{version}", self.metadata),
            ]
        return Starlette(
            routes=routes,
            exception_handlers={
                404: _http_error,
                405: _http_error,
                BadRequestError: _bad_request,
                Failure: _failure,
            },
        )

    async def server(self, _: Request) -> Response:
        """Return the metadata of the server."""
        extensions = ["binary_tensor_data", "model_repository"]
        return JSONResponse({"name": "edgeship", "version": VERSION, "extensions": extensions})

    async def health(self, _: Request) -> Response:
        """Return that the server runs; the model is loaded before it."""
        return JSONResponse({"live": True, "ready": True})

    async def exposition(self, _: Request) -> Response:
        """Return the metrics in Prometheus' text form."""
        self.metrics.reload_failed.set(self.classifier.reload_error is not None)
        text = prometheus.generate_latest(self.metrics.registry)
        return Response(text, media_type=prometheus.CONTENT_TYPE_LATEST)

    async def index(self, _: Request) -> Response:
        """Return the list of models."""
        return JSONResponse([{"name": self.name, "version": VERSION, "state": "READY", "reason": ""}])

    async def load(self, request: Request) -> Response:
        """Load the engine anew if the release was switched."""
        self._check(request)
        await run_in_threadpool(self.classifier.reload)
        return JSONResponse({})

    async def ready(self, request: Request) -> Response:
        """Return that the model is loaded."""
        self._check(request)
        return JSONResponse({"name": self.name, "ready": True})

    async def metadata(self, request: Request) -> Response:
        """Return inputs and outputs of the model."""
        self._check(request)
        classes = len(await run_in_threadpool(lambda: self.classifier.labels)) or -1
        sides: dict[str, list[int]] = {"index": [-1], "label": [-1]}
        return JSONResponse(
            {
                "name": self.name,
                "versions": [VERSION],
                "platform": "edgeship",
                "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
                "outputs": [
                    {"name": name, "datatype": kind, "shape": sides.get(name, [-1, classes])}
                    for name, kind in OUTPUTS.items()
                ],
            }
        )

    async def infer(self, request: Request) -> Response:
        """Classify the images of a request."""
        async with self.slots:
            with self._measured():
                return await self._classified(request)

    async def _classified(self, request: Request) -> Response:
        self._check(request)
        try:
            body = await asyncio.wait_for(_body(request), BODY_S)
        except asyncio.TimeoutError as error:
            raise BadRequestError(f"no whole request after {BODY_S:.0f} s", 408) from error
        header, binary = _parts(body, request.headers.get(BINARY_HEADER))
        images = _images(header, binary)
        wanted = _outputs(header)
        results = await run_in_threadpool(self.classifier, images)
        self.metrics.images.inc(len(results))
        identity = header.get("id")
        return _answer(self.name, identity if isinstance(identity, str) else None, results, wanted)

    def _check(self, request: Request) -> None:
        """Raise if a request names another model or version."""
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name != self.name:
            raise BadRequestError(f"no model {name!r}, expected {self.name!r}", 404)
        if version != VERSION:
            raise BadRequestError(f"no version {version!r} of {name!r}, expected {VERSION!r}", 404)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        """Count a request by its status, and its time."""
        begin, status = time.perf_counter(), 200
        try:
            yield
        except BadRequestError as error:
            status = error.status
            raise
        except Failure as failure:
            status = _status(failure)
            raise
        except BaseException:
            status = 500
            raise
        finally:
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(time.perf_counter() - begin)


async def _body(request: Request) -> bytes:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BadRequestError("compressed requests are not read, send Content-Encoding: identity", 415)
    too_long = BadRequestError(f"the request is over {MOST_BYTES >> 20} MiB, send fewer images", 413)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise too_long
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MOST_BYTES:
            raise too_long
        parts.append(part)
    return b"".join(parts)


def _parts(body: bytes, length: str | None) -> tuple[dict[str, Any], bytes]:
    """Return the JSON part of a request and the bytes behind it."""
    digits = length is not None and length.isdecimal() and len(length) < 10
    end = len(body) if length is None else int(length) if digits else -1
    if not 0 <= end <= len(body):
        raise BadRequestError(f"{BINARY_HEADER} is {str(length)[:20]!r}, the request has {len(body)} bytes")
    try:
        header = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the request is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise BadRequestError("the request is no JSON object")
    return header, body[end:]


def _images(header: dict[str, Any], binary: bytes) -> list[Any]:
    """Return the images of a request: arrays (H, W, 3) or encoded files."""
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise BadRequestError(f"inputs: expected one of {', '.join(INPUTS)}")
    (tensor,) = inputs
    name, shape, kind = tensor.get("name"), tensor.get("shape"), tensor.get("datatype")
    if not isinstance(name, str) or name not in INPUTS:
        raise BadRequestError(f"no input {name!r}, expected {' or '.join(INPUTS)}")
    expected, sides = INPUTS[name]
    if kind != expected:
        raise BadRequestError(f"{name} has datatype {kind!r}, expected {expected}")
    if (
        not isinstance(shape, list)
        or len(shape) != sides
        or not all(type(side) is int and side > 0 for side in shape)
        or (name == "pixels" and shape[3] != 3)
    ):
        form = "[N, height, width, 3]" if name == "pixels" else "[N]"
        raise BadRequestError(f"{name} has shape {str(shape)[:80]}, expected {form}")
    if shape[0] > MOST_IMAGES:
        raise BadRequestError(f"{name} has {shape[0]} images, send at most {MOST_IMAGES} in a request", 413)
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        if binary:
            raise BadRequestError(f"{len(binary)} bytes behind the JSON, and {name} has no binary_data_size")
        return _from_json(name, shape, tensor.get("data"))
    if "data" in tensor or type(size) is not int or size != len(binary):
        raise BadRequestError(
            f"{name} has binary_data_size {size!r}, and the request {len(binary)} bytes of data"
        )
    if name == "files":
        return _strings(binary, shape[0])
    if size != _product(shape):
        raise BadRequestError(
            f"{name} of shape {shape} needs {_product(shape)} bytes, the request has {size}"
        )
    return list(np.frombuffer(binary, np.uint8).reshape(shape))


def _from_json(name: str, shape: list[int], data: Any) -> list[Any]:
    if name == "files":
        raise BadRequestError("files are sent as binary data: JSON holds no bytes")
    try:
        values = np.array(data)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadRequestError(f"{name}: data is no array of numbers") from error
    if values.dtype.kind not in "iu" or values.size != _product(shape):
        raise BadRequestError(
            f"{name}: data has {values.size} values of {values.dtype}, shape {shape} of UINT8"
        )
    if values.min() < 0 or values.max() > 255:
        raise BadRequestError(f"{name}: values {values.min()} to {values.max()}, expected 0 to 255")
    if values.ndim != 1 and list(values.shape) != shape:
        raise BadRequestError(f"{name}: data has shape {list(values.shape)}, expected {shape} or a flat list")
    return list(values.astype(np.uint8).reshape(shape))


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _strings(binary: bytes, count: int) -> list[bytes]:
    """Split BYTES data: each element has its length in front, 4 bytes, little endian."""
    parts, place = [], 0
    while place + 4 <= len(binary):
        (length,) = struct.unpack_from("<I", binary, place)
        parts.append(binary[place + 4 : place + 4 + length])
        place += 4 + length
    if len(parts) != count or place != len(binary):
        raise BadRequestError(
            f"files: the data has {len(parts)} elements in {len(binary)} bytes, expected {count}"
        )
    return parts


def _outputs(header: dict[str, Any]) -> dict[str, bool]:
    """Return name -> True for a binary one of the outputs that a request asks for."""
    parameters = header.get("parameters") or {}
    usual = isinstance(parameters, dict) and bool(parameters.get("binary_data_output", False))
    asked = header.get("outputs") or [{"name": name} for name in OUTPUTS]
    if not isinstance(asked, list):
        raise BadRequestError("outputs is no list")
    wanted = {}
    for each in asked:
        name = each.get("name") if isinstance(each, dict) else each
        if not isinstance(name, str) or name not in OUTPUTS:
            raise BadRequestError(f"no output {name!r}, expected {', '.join(OUTPUTS)}")
        own = (each.get("parameters") if isinstance(each, dict) else None) or {}
        if not isinstance(own, dict) or set(own) - {"binary_data"}:
            raise BadRequestError(f"output {name}: parameters {own!r}, expected binary_data alone")
        wanted[name] = bool(own.get("binary_data", usual))
    return wanted


def _answer(name: str, identity: str | None, results: list[Any], wanted: dict[str, bool]) -> Response:
    """Return the response of an inference: JSON, with the binary outputs behind it."""
    outputs, binary = [], []
    for output, as_bytes in wanted.items():
        if output == "label":
            values = [each.label for each in results]
            shape, data = (
                [len(results)],
                b"".join(struct.pack("<I", len(text)) + text for text in (each.encode() for each in values)),
            )
        else:
            array = np.stack([getattr(each, output) for each in results])
            array = array.astype("<i8" if output == "index" else "<f4")
            shape, data, values = list(array.shape), array.tobytes(), array.reshape(-1).tolist()
        record: dict[str, Any] = {"name": output, "datatype": OUTPUTS[output], "shape": shape}
        if as_bytes:
            record["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            record["data"] = values
        outputs.append(record)
    content = {"model_name": name, "model_version": VERSION, "outputs": outputs}
    header = json.dumps({**content, "id": identity} if identity is not None else content).encode()
    if not binary:
        return Response(header, media_type="application/json")
    headers = {BINARY_HEADER: str(len(header))}
    return Response(b"".join([header, *binary]), media_type="application/octet-stream", headers=headers)


def _bad_request(_: Request, error: BadRequestError) -> Response:
    return JSONResponse({"error": str(error)}, error.status)


def _failure(_: Request, failure: Failure) -> Response:
    return JSONResponse({"error": f"{failure} ({failure.cause})"}, _status(failure))


def _status(failure: Failure) -> int:
    """Return 400 for an image that cannot be used, 500 for a failure of the engine."""
    return 400 if failure.code.startswith("image-") else 500


def _http_error(request: Request, error: Any) -> Response:
    return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)


def model_name(folder: str) -> str:
    """Return the name of the model of a folder, as it stands in addresses."""
    try:
        with open(os.path.join(folder, "model.json"), encoding="utf-8") as stream:
            name = str(json.load(stream).get("name", ""))
    except (OSError, ValueError, AttributeError):
        name = ""
    return safe(name)


def safe(name: str) -> str:
    """Return a name that needs no escapes in addresses."""
    return UNSAFE.sub("_", name).strip("._-") or "model"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; exit with a clear message if the port is taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        sys.exit(
            f"error: cannot listen on port {port} of {host}: {reason}\nhint: choose another --port or --host"
        )


def main(arguments: list[str] | None = None) -> int:
    """Serve until a signal; return the exit code."""
    parser = argparse.ArgumentParser(description="Serve a classifier over HTTP (KServe v2).")
    parser.add_argument("--model", default=os.path.join(FOLDER, "model"), help="release or engine folder")
    parser.add_argument("--name", help="name of the model in addresses (default: that of model.json)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port (default: 8000; 0: a free one)")
    parser.add_argument("--threads", type=int, help="CPU threads of an inference (default: all)")
    chosen = parser.parse_args(arguments)
    listener = listen(chosen.host, chosen.port)
    try:
        classifier = Classifier(chosen.model, threads=chosen.threads)
    except Failure as failure:
        print(f"error: {failure} ({failure.cause})\nhint: {failure.cure}", file=sys.stderr)
        return 1
    with classifier:
        service = Service(classifier, safe(chosen.name) if chosen.name else model_name(chosen.model))
        server = uvicorn.Server(uvicorn.Config(service.app(), log_level="info", access_log=False))
        port = listener.getsockname()[1]
        LOG.info("model %s on http://%s:%d/v2/models/%s", chosen.model, chosen.host, port, service.name)
        server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
