"""The HTTP service: classes of the report through tritonclient, refusals, a live switch, a taken port."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from edgeship.toolkit import export_app

for needed in ("starlette", "uvicorn", "prometheus_client", "tritonclient"):
    pytest.importorskip(needed, reason=f"needs {needed} (pip install 'edgeship[dev]')")


@pytest.fixture(scope="module")
def exported(published, tmp_path_factory):
    out = tmp_path_factory.mktemp("http") / "app"
    export_app.write(published.folder, "http", out)
    (out / "b").mkdir()
    shutil.copytree(out / "model", out / "b", dirs_exist_ok=True)
    record = json.loads((out / "b" / "model.json").read_text())
    (out / "b" / "model.json").write_text(json.dumps({**record, "labels": [f"b{i}" for i in range(10)]}))
    (out / "current").symlink_to("model")
    return out


@contextlib.contextmanager
def serving(folder, *arguments):
    command = [sys.executable, "service.py", "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as service:
        found = None
        for line in service.stderr:
            found = found or re.search(r"http://127.0.0.1:(\d+)/v2/models/my_net_1", line)
            if "startup complete" in line:
                break
        yield int(found[1])
        service.terminate()


@pytest.fixture(scope="module")
def port(exported):
    with serving(exported, "--model", "current", "--threads", "1") as number:
        yield number


def ask(port, path, data=None, headers=()):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_tritonclient_gets_the_classes_of_the_report(published, port):
    from tritonclient import http

    names = json.loads((published.folder / "engines/model.json").read_text())["labels"]
    expected = published.logits["openvino-int8"]
    stack = np.stack(published.images)
    with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("my_net_1")
        (described,) = client.get_model_metadata("my_net_1")["inputs"]
        assert described == {"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}
        for binary in (True, False):
            pixels = http.InferInput("pixels", list(stack.shape), "UINT8")
            pixels.set_data_from_numpy(stack, binary_data=binary)
            outputs = [http.InferRequestedOutput(each, binary) for each in ("index", "label", "logits")]
            answer = client.infer("my_net_1", [pixels], outputs=outputs, request_id="7")
            np.testing.assert_array_equal(answer.as_numpy("logits"), expected)
            assert answer.as_numpy("index").tolist() == expected.argmax(1).tolist()
            labels = [each.decode() if binary else each for each in answer.as_numpy("label")]
            assert labels == [names[index] for index in expected.argmax(1)]
            assert answer.get_response()["id"] == "7"
        assert client.infer("my_net_1", [pixels]).as_numpy("probabilities").sum(1) == pytest.approx(
            1, abs=1e-5
        )


def test_encoded_files_are_decoded_by_the_library(published, port, tmp_path):
    from PIL import Image
    from tritonclient import http

    Image.fromarray(published.images[3]).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    files = http.InferInput("files", [2], "BYTES")
    files.set_data_from_numpy(np.array([data, data], np.object_))
    with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = client.infer("my_net_1", [files]).as_numpy("logits")
    np.testing.assert_array_equal(answer, published.logits["openvino-int8"][[3, 3]])


CLASSES = {"name": "label", "parameters": {"classification": 3}}
GOOD = {"name": "pixels", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": [0] * 12}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datatype": "FP32", "data": [0.5] * 12}, "FP32"),
        ({"shape": [1, 3, 2, 2]}, "[1, 3, 2, 2]"),
        ({"shape": [2, 2, 3]}, "[2, 2, 3]"),
        ({"shape": [1, 2, -2, 3]}, "-2"),
        ({"shape": [1, 2, True, 3]}, "True"),
        ({"data": [0] * 11}, "11 values"),
        ({"data": [0.5] * 12}, "float64"),
        ({"data": [256] * 12}, "256"),
        ({"data": [-1] * 12}, "-1"),
        ({"data": [[0, 1], [2]]}, "no array"),
        ({"data": None}, "object"),
        ({"name": "image"}, "'image'"),
        ({"name": ["pixels"]}, "no input"),
        ({"parameters": {"binary_data_size": 12}}, "binary_data_size"),
        ({"name": "files", "datatype": "BYTES", "shape": [1]}, "binary"),
    ],
)
def test_another_form_gets_status_400_and_no_class(port, change, message):
    status, text = ask(
        port, "/v2/models/my_net_1/infer", json.dumps({"inputs": [{**GOOD, **change}]}).encode()
    )
    assert status == 400 and message in json.loads(text)["error"]


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v2/models/my_net_1/infer", b"{", {}, 400),
        ("/v2/models/my_net_1/infer", b"[1]", {}, 400),
        ("/v2/models/my_net_1/infer", b"{}", {"Inference-Header-Content-Length": "99"}, 400),
        ("/v2/models/my_net_1/infer", b"{}x", {"Inference-Header-Content-Length": "-2"}, 400),
        ("/v2/models/my_net_1/infer", b"{}", {"Inference-Header-Content-Length": "9" * 5000}, 400),
        (
            "/v2/models/my_net_1/infer",
            json.dumps({"inputs": [{**GOOD, "shape": [257, 1, 1, 3]}]}).encode(),
            {},
            413,
        ),
        ("/v2/models/my_net_1/infer", b"{}", {"Content-Encoding": "gzip"}, 415),
        ("/v2/models/other/infer", json.dumps({"inputs": [GOOD]}).encode(), {}, 404),
        ("/v2/models/my_net_1/versions/2/infer", json.dumps({"inputs": [GOOD]}).encode(), {}, 404),
        ("/v2/models/my_net_1/infer", None, {}, 405),
        ("/v3", None, {}, 404),
        ("/v2/models/my_net_1/infer", json.dumps({"inputs": [GOOD], "outputs": [CLASSES]}).encode(), {}, 400),
    ],
)
def test_other_requests_are_refused_with_their_status(port, path, body, headers, status):
    code, text = ask(port, path, body, headers.items())
    assert code == status and json.loads(text)["error"]


def test_a_request_that_is_too_long_is_refused_unread(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.putrequest("POST", "/v2/models/my_net_1/infer")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 413 and b"64 MiB" in answer.read()
    connection.close()


def test_a_damaged_file_and_a_small_image_are_the_request_s_fault(port):
    body = b"\x03\0\0\0abc"
    tensor = {
        "name": "files",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(body)},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    length = {"Inference-Header-Content-Length": str(len(header))}
    status, text = ask(port, "/v2/models/my_net_1/infer", header + body, length.items())
    assert status == 400 and "not an image" in text
    assert ask(port, "/v2/models/my_net_1/infer", json.dumps({"inputs": [GOOD]}).encode())[0] == 200


def test_a_switch_is_followed_and_counted(exported, port):
    body = json.dumps({"inputs": [GOOD], "outputs": [{"name": "label"}]}).encode()
    (exported / ".next").symlink_to("b")
    (exported / ".next").replace(exported / "current")
    assert ask(port, "/v2/repository/models/my_net_1/load", b"")[0] == 200
    status, text = ask(port, "/v2/models/my_net_1/versions/1/infer", body)
    assert status == 200 and json.loads(text)["outputs"][0]["data"][0].startswith("b")
    (exported / "b" / "model.xml").unlink()
    (exported / ".next").symlink_to("absent")
    (exported / ".next").replace(exported / "current")
    assert ask(port, "/v2/models/my_net_1/infer", body)[0] == 200  # the engine in memory serves on
    status, text = ask(port, "/metrics")
    assert status == 200
    assert re.search(r'edgeship_requests_total\{status="200"\} [1-9]', text)
    assert re.search(r'edgeship_requests_total\{status="400"\} [1-9]', text)
    assert re.search(r"edgeship_images_total [1-9]", text) and "edgeship_reload_failed 0.0" in text


def test_a_taken_port_and_a_missing_model_are_clear_errors(exported):
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        command = [sys.executable, "service.py", "--port"]
        done = subprocess.run(
            [*command, str(number)], cwd=exported, capture_output=True, text=True, timeout=300
        )
    assert done.returncode == 1 and f"port {number}" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run(
        [*command, "0", "--model", "none"], cwd=exported, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and "no engine at none" in done.stderr


@pytest.mark.slow
def test_fifty_switches_under_requests_lose_none(published, tmp_path):
    """Every request is answered with the right class of one release, and both releases answer."""
    out = tmp_path / "app"
    export_app.write(published.folder, "http", out)
    record = json.loads((out / "model" / "model.json").read_text())
    for name in "ab":
        shutil.copytree(out / "model", out / name)
        labels = [f"{name}{index}" for index in range(10)]
        (out / name / "model.json").write_text(json.dumps({**record, "labels": labels}))
    (out / "current").symlink_to("a")
    expected = published.logits["openvino-int8"].argmax(1)
    answers, failed, stop = [], [], threading.Event()

    def requests(port, start):
        number = start
        while not stop.is_set():
            index = number % len(published.images)
            image = published.images[index]
            tensor = {"name": "pixels", "shape": [1, *image.shape], "datatype": "UINT8"}
            body = {
                "inputs": [{**tensor, "data": image.reshape(-1).tolist()}],
                "outputs": [{"name": "label"}],
            }
            status, text = ask(port, "/v2/models/my_net_1/infer", json.dumps(body).encode())
            label = json.loads(text)["outputs"][0]["data"][0] if status == 200 else text
            answers.append(label[0])
            if label[1:] != str(expected[index]):
                failed.append((status, label, index))
            number += 1

    with serving(out, "--model", "current", "--threads", "1") as port:
        threads = [threading.Thread(target=requests, args=(port, start)) for start in (0, 7)]
        for thread in threads:
            thread.start()
        for number in range(50):
            (out / ".next").symlink_to("ba"[number % 2])
            (out / ".next").replace(out / "current")
            assert ask(port, "/v2/repository/models/my_net_1/load", b"")[0] == 200
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed and set(answers) == {"a", "b"} and len(answers) > 50
