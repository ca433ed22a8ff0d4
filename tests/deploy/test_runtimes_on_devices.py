"""The real runner over a real sshd: real OpenVINO, and a fake TensorRT that marks every record as fake."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import qdq_graphs
from loopback import QUICK, live, quiet

from edgeship.calibration.datasets import open_dataset
from edgeship.calibration.evalset_format import pack
from edgeship.targets._device import this_cpu
from edgeship.targets.runner.classifier import Classifier
from edgeship.toolkit.core.artifact import plain
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import release
from edgeship.toolkit.deploy.agent_client import RefusedError
from edgeship.toolkit.deploy.bundle import Contents, Graph
from edgeship.toolkit.deploy.bundle_from_run import choose_golden
from edgeship.toolkit.deploy.checks import latency
from edgeship.toolkit.runs.description import description
from edgeship.toolkit.runs.network import ModelInfo

FAKES = Path(__file__).parents[1] / "runner" / "fakes"
IMAGES = 64


def evaluation(path: Path, size: int) -> Path:
    preprocess = Preprocess(resize=size, crop=size, mean=(0.5,) * 3, std=(0.25,) * 3)
    pack(open_dataset("digits:test"), range(IMAGES), preprocess, path)
    return path


def contents(tmp_path: Path, seed: int = 0, **placement: object) -> Contents:
    """Return a small residual network with Q/DQ for OpenVINO, and its ONNX Runtime logits."""
    import onnxruntime

    from edgeship.calibration.evalset_format import read

    graph = qdq_graphs.save(
        qdq_graphs.residual_net(dataclasses.replace(qdq_graphs.OPENVINO, **placement)),
        tmp_path / f"{seed}.onnx",
    )
    packed = read(evaluation(tmp_path / "images.set", 32))
    images = ((packed.images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits = np.concatenate(
        [session.run(None, {"images": image[None]})[0] for image in images.astype(np.float32)]
    )
    simulated = {
        "top1": float((logits.argmax(1) == packed.labels).mean()),
        "images": IMAGES,
        "measured_on": "simulation",
    }
    clear = choose_golden([logits], 8)
    shipped = Graph(
        "openvino-int8", "openvino", "int8", graph, logits[clear], logits, simulated, int8_sums="exact"
    )
    return Contents(
        "residual",
        [shipped],
        images[clear].astype(np.float32),
        tmp_path / "images.set",
        provenance={"seed": seed},
    )


@pytest.fixture
def intel(park):
    """A device with this Python and its OpenVINO."""
    server = park.server("intel")
    return server, park.entry(server, "intel", python=sys.executable)


def test_openvino_is_deployed_measured_upgraded_and_rolled_back(intel, tmp_path):
    server, entry = intel
    first = bundles.make(contents(tmp_path), tmp_path / "first.tar")
    outcome = release.deploy(entry, first, QUICK, quiet)
    record = outcome.record
    assert outcome.state == "live" and live(server) == outcome.release
    assert (
        record["fake"] is False and record["build"]["backend"] == "openvino" and not record["build"]["reused"]
    )
    assert record["selftest"]["cosine_min"] > 0.999 and record["selftest"]["images"] == 8
    assert record["accuracy"]["images"] == IMAGES and record["accuracy"]["agreement"] >= 0.95
    assert abs(record["accuracy"]["gap_pp"]) <= 100 / IMAGES + 1e-9 and record["accuracy"]["sqnr_db"] > 25
    assert (
        0 < record["latency_ms"]["p50"] <= record["latency_ms"]["p99"] and record["latency_ms"]["runs"] >= 10
    )
    assert record["facts"]["cpu"]["name"]
    doubts = [problem["code"] for problem in record["problems"] if problem["code"] == "pair-sums"]
    assert doubts == ["pair-sums"] * (this_cpu().int8_sums == "pairs")
    assert record["latency_ms"]["threads"] == 1 and "1 thread)" in latency(record)

    second = bundles.make(
        dataclasses.replace(contents(tmp_path), provenance={"seed": 1}), tmp_path / "second.tar"
    )
    upgraded = release.deploy(entry, second, QUICK, quiet)
    assert upgraded.before == outcome.release and upgraded.record["build"]["reused"]  # the same graph
    assert upgraded.uploaded_bytes < 10_000  # the manifest
    assert release.rollback(entry, None, QUICK, quiet).release == live(server) == outcome.release
    assert (
        len({p.stat().st_ino for p in server.root.rglob("*") if p.name == "model"}) == 1
    )  # one engine, linked

    freed = release.prune(entry, 1, QUICK)
    assert freed["removed"] == [] and release.deploy(entry, second, QUICK, quiet).state == "live"


def test_an_engine_that_computes_something_else_does_not_go_live(intel, tmp_path):
    server, entry = intel
    good = contents(tmp_path)
    release.deploy(entry, bundles.make(good, tmp_path / "good.tar"), QUICK, quiet)
    before = live(server)
    wrong = dataclasses.replace(good.graphs[0], golden=-good.graphs[0].golden)
    with pytest.raises(RefusedError, match="selftest failed: lowest cosine"):
        release.deploy(
            entry,
            bundles.make(dataclasses.replace(good, graphs=[wrong]), tmp_path / "wrong.tar"),
            QUICK,
            quiet,
        )
    promised = dataclasses.replace(
        good.graphs[0], simulated={"top1": 0.99, "images": IMAGES, "measured_on": "a lie"}
    )
    with pytest.raises(RefusedError, match="pp below the simulation"):
        release.deploy(
            entry,
            bundles.make(dataclasses.replace(good, graphs=[promised]), tmp_path / "lie.tar"),
            QUICK,
            quiet,
        )
    assert live(server) == before


def jetson(park, name: str, version: str = "10.3", sm: str = "8.7"):
    """A device with a fake TensorRT, on a Python with nothing installed."""
    server = park.server(name)
    wrapper = server.folder / "python"
    wrapper.write_text(
        f"#!/bin/sh\nPYTHONPATH={FAKES} EDGESHIP_FAKE_TENSORRT={version} EDGESHIP_FAKE_SM={sm} "
        f'exec {sys.executable} -S "$@"\n'
    )
    wrapper.chmod(0o755)
    return server, park.entry(server, name, target="tensorrt", python=str(wrapper))


def tensorrt_contents(tmp_path: Path, classes: int = 10, size: int = 8) -> Contents:
    """A graph as the fake reads it: logit k is the sum of every `classes`-th pixel from k."""
    from edgeship.calibration.evalset_format import read

    graph = tmp_path / "fake.onnx"
    graph.write_text(json.dumps({"shape": [1, 3, size, size], "classes": classes, "quantized": True}))
    packed = read(evaluation(tmp_path / "images.set", size))
    images = ((packed.images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(0, 3, 1, 2)
    flat = images.reshape(IMAGES, -1)
    logits = np.stack([flat[:, k::classes].sum(1) for k in range(classes)], 1).astype(np.float32)
    simulated = {
        "top1": float((logits.argmax(1) == packed.labels).mean()),
        "images": IMAGES,
        "measured_on": "simulation",
    }
    shipped = Graph("tensorrt-int8", "tensorrt", "int8", graph, logits[:4], logits, simulated)
    return Contents("residual", [shipped], images[:4].astype(np.float32), tmp_path / "images.set")


def test_the_tensorrt_path_by_a_fake_that_says_so(park, tmp_path):
    server, entry = jetson(park, "orin")
    shipped = bundles.make(tensorrt_contents(tmp_path), tmp_path / "b.tar")
    outcome = release.deploy(entry, shipped, QUICK, quiet)
    assert outcome.record["fake"] is True and outcome.record["build"]["version"] == "10.3.0.30"
    assert outcome.record["latency_ms"]["threads"] is None and "thread" not in latency(outcome.record)
    assert outcome.record["accuracy"]["agreement"] == 1.0 and outcome.record["accuracy"]["gap_pp"] == 0
    assert [each["fake"] for each in release.records(release.status(entry))] == [True]
    # JetPack is upgraded below it: the engine no longer fits, so the same bundle is a new release.
    wrapper = Path(entry.python)
    wrapper.write_text(wrapper.read_text().replace("=10.3 ", "=10.13 "))
    upgraded = release.deploy(entry, shipped, QUICK, quiet)
    assert upgraded.state == "live" and upgraded.before == outcome.release != upgraded.release == live(server)
    assert upgraded.record["build"]["version"] == "10.13.3.9" and not upgraded.record["build"]["reused"]
    assert release.deploy(entry, shipped, QUICK, quiet).state == "unchanged"


def test_a_tensorrt_that_goes_by_types_alone_gets_the_typed_graph_and_others_the_portable_one(park, tmp_path):
    shipped = tensorrt_contents(tmp_path)
    typed = tmp_path / "typed.onnx"
    typed.write_text(shipped.graphs[0].file.read_text() + "\n")  # for the fake the same, but another file
    both = bundles.make(
        dataclasses.replace(shipped, graphs=[dataclasses.replace(shipped.graphs[0], typed=typed)]),
        tmp_path / "b.tar",
    )
    for version, graph in (("10.3", "tensorrt.onnx"), ("11", "tensorrt-typed.onnx")):
        server, entry = jetson(park, f"orin{version}", version)
        outcome = release.deploy(entry, both, QUICK, quiet)
        assert outcome.record["fake"] is True and outcome.record["accuracy"]["agreement"] == 1.0
        assert [path.name for path in (server.root / "current/graphs").iterdir()] == [graph]
        assert release.deploy(entry, both, QUICK, quiet).state == "unchanged"
        warned = "only if the graph itself is FP16" in " ".join(outcome.record["build"]["warnings"])
        assert warned == (version == "11")


def test_int8_is_refused_where_the_gpu_has_none(park, tmp_path):
    server, entry = jetson(park, "nano", version="8.2", sm="5.3")
    shipped = bundles.make(tensorrt_contents(tmp_path), tmp_path / "b.tar")
    with pytest.raises(release.DeviceError, match=r"nano cannot run (int8 on )?tensorrt") as caught:
        release.deploy(entry, shipped, QUICK, quiet)
    assert caught.value.hint and not server.root.exists()


PREPROCESS = Preprocess(32, 32, (0.5,) * 3, (0.25,) * 3)

FOLLOW = """
import json, sys
sys.path.insert(0, sys.argv[1])
from classify import Classifier
classifier = Classifier(sys.argv[1])
for line in sys.stdin:
    result = classifier(line.strip())
    print(json.dumps([result.label, [float(x) for x in result.logits]]), flush=True)
    classifier.reload()
"""


def described(tmp_path, prefix, preprocess=PREPROCESS):
    labels = tuple((f"{prefix}{index}",) for index in range(10))
    info = ModelInfo("residual", "", 1, 10, preprocess, "stated", labels)
    made, dataset = contents(tmp_path), open_dataset("digits:test")
    rows = enumerate(choose_golden([made.graphs[0].reference], 8))
    files = {row: dataset.read(index) for row, index in rows}
    return dataclasses.replace(made, golden_files=files, description=description(info))


@pytest.mark.parametrize(
    "preprocess",
    [
        dataclasses.replace(PREPROCESS, std=(0.1,) * 3),
        dataclasses.replace(PREPROCESS, resize=48, interpolation="nearest"),
    ],
)
def test_a_release_that_prepares_images_in_another_way_is_refused(intel, tmp_path, preprocess):
    server, entry = intel
    shipped = bundles.make(described(tmp_path, "first ", preprocess), tmp_path / "1.tar")
    with pytest.raises(release.DeviceError, match="decoding or preprocessing differs"):
        release.deploy(entry, shipped, QUICK, quiet)
    assert not (server.root / "current").exists()


def test_a_release_classifies_and_an_application_follows_the_next_one(intel, tmp_path):
    server, entry = intel
    first = bundles.make(described(tmp_path, "first "), tmp_path / "1.tar")
    application = release.deploy(entry, first, QUICK, quiet).record["selftest"]["application"]
    assert application["images"] == 8 and application["top1_agreement"] == 1.0
    assert application["largest_difference"] < 1e-4
    current = next(server.root.rglob("current"))
    picture = tmp_path / "a b.png"
    open_dataset("digits:test").image(7).save(picture)
    command = [sys.executable, "-I", str(current / "classify.py"), str(picture), "--json", "--top", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    classes = json.loads(done.stdout)["classes"]
    with Classifier(current) as classifier:  # the engine that the device built, read by the same library here
        expected = classifier(picture)
    assert [each["index"] for each in classes] == np.argsort(-expected.logits)[:3].tolist()
    assert classes[0]["label"] == expected.label == f"first {expected.index}"
    assert classes[0]["probability"] == pytest.approx(expected.probability)
    assert json.loads((current / "model.json").read_text())["preprocess"] == plain(PREPROCESS)
    assert (current / "labels.txt").read_text().splitlines()[:2] == ["first 0", "first 1"]

    with subprocess.Popen(
        [sys.executable, "-I", "-c", FOLLOW, str(current)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as application:

        def ask():
            application.stdin.write(f"{picture}\n")
            application.stdin.flush()
            return json.loads(application.stdout.readline())

        label, logits = ask()
        assert label == expected.label and np.allclose(logits, expected.logits)
        release.deploy(entry, bundles.make(described(tmp_path, "second "), tmp_path / "2.tar"), QUICK, quiet)
        labels = [ask()[0] for _ in range(3)]
        assert labels[-1] == f"second {expected.index}" and {*labels} <= {expected.label, labels[-1]}
        application.stdin.close()
        assert application.wait(30) == 0
