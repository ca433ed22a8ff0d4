"""A guarded variant on a device: both engines are built, tested and timed; without its reference it fails."""

import json
import shutil
import sys
import tarfile

import numpy as np
import pytest
from guarded_runs import table
from loopback import QUICK, live, quiet

from edgeship.calibration.datasets import open_dataset
from edgeship.targets.runner.classifier import Classifier
from edgeship.targets.runner.failures import Failure
from edgeship.toolkit.api.classifier import Classifier as HostClassifier
from edgeship.toolkit.core.errors import DataError, DeviceError
from edgeship.toolkit.deploy import bundle as bundles
from edgeship.toolkit.deploy import bundle_from_run, layout, release
from edgeship.toolkit.pipeline import Recipe, Store, run

NAME = "openvino-int8-guarded"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    options = table(folder)
    options["compile"]["targets"] = ["openvino"]
    result = run(Recipe.build(options), store=Store(folder / "store"), out=folder / "out")
    return result, folder / "out", bundle_from_run.make(folder / "out", folder / "bundle.tar", images=100)


@pytest.fixture
def device(park):
    server = park.server("intel")
    return server, park.entry(server, "intel", python=sys.executable)


def test_a_bundle_of_a_run_with_a_guard_has_both_graphs(finished):
    result, _, bundle = finished
    about = bundle.manifest["targets"]["openvino"]
    guard = json.loads((result.folder("guard") / "guards.json").read_text())["variants"][NAME]
    assert about["variant"] == NAME and about["guard"]["threshold"] == guard["threshold"]
    assert json.loads(bundle.read(layout.guard_path("openvino"))) == about["guard"]
    stored = bundle.read(layout.second_path("openvino"))
    assert stored == (result.folder("export") / "float.onnx").read_bytes()
    assert layout.second_path("openvino") in {file.path for file in bundle.files_for("openvino")}
    assert b"graph:openvino-fp32" in bundle.read("bom.cdx.json")


def test_it_is_deployed_and_its_application_runs_both(finished, device):
    result, _, bundle = finished
    server, entry = device
    outcome = release.deploy(entry, bundle, QUICK, quiet)
    assert outcome.state == "live" and live(server) == outcome.release
    guard, timed = outcome.record["guard"], outcome.record["latency_ms"]
    assert 0 < guard["rerun_share"] < 1 and 0 < guard["promised_rerun_share"] < 1
    assert guard["mean_ms"] == pytest.approx(
        timed["mean"] + guard["rerun_share"] * guard["reference_mean_ms"]
    )
    assert outcome.record["accuracy"]["agreement"] == 1.0  # of the guarded logits of the run
    dataset = open_dataset("digits:test")
    pictures = [dataset.image(index) for index in range(60)]
    with Classifier(server.root / "current", monitor="") as application:
        found = np.stack([each.logits for each in application(pictures)])
        assert application.guard["images"] == 60 and application.guard["rerun"] > 0
    expected = np.load(result.folder("evaluate") / "logits" / f"{NAME}.npy")[:60]
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())

    reference = server.root / "current/engine/reference"
    shutil.move(reference, server.root / "lost")
    with pytest.raises(Failure) as raised:
        Classifier(server.root / "current", monitor="")
    assert raised.value.code == "reference-missing"


def test_a_release_that_lost_its_reference_fails_its_health_check(finished, device, tmp_path):
    _, out, bundle = finished
    server, entry = device
    first = release.deploy(entry, bundle, QUICK, quiet).release
    plain = bundle_from_run.make(out, tmp_path / "plain.tar", variants=("openvino-int8",), images=0)
    second = release.deploy(entry, plain, QUICK, quiet).release
    shutil.rmtree(server.root / "releases" / first / "engine/reference")
    with pytest.raises(DeviceError, match="reference"):
        release.rollback(entry, first, QUICK, quiet)
    assert live(server) == second


def test_a_reference_of_another_network_does_not_go_live(finished, device, tmp_path):
    """The self-test compares it with its own golden logits."""
    _, out, _ = finished
    server, entry = device
    source = bundle_from_run._Run(out)
    positions = bundle_from_run.choose_golden([source.logits(NAME)], 8)
    graph = source.graph(NAME, positions, None)
    wrong = bundles.make(
        bundles.Contents(
            "wrong",
            [
                bundles.Graph(
                    NAME,
                    "openvino",
                    "int8",
                    graph.file,
                    graph.golden,
                    guard=graph.guard,
                    second=graph.second,
                    second_golden=-graph.second_golden,
                )
            ],
            source.inputs(positions),
        ),
        tmp_path / "wrong.tar",
    )
    with pytest.raises(DeviceError, match="reference of the guard"):
        release.deploy(entry, wrong, QUICK, quiet)
    assert not (server.root / "current").exists()


def test_predict_takes_the_bundle(finished):
    result, _, bundle = finished
    picture = open_dataset("digits:test").image(3)
    with HostClassifier(bundle.path) as classifier:
        found = classifier(picture)
        assert classifier.guard["images"] == 1
    expected = np.load(result.folder("evaluate") / "logits" / f"{NAME}.npy")[3]
    np.testing.assert_allclose(found.logits, expected, atol=1e-3 * np.abs(expected).max())


def test_a_bundle_without_the_graph_of_the_reference_is_refused(finished, tmp_path):
    _, _, bundle = finished
    lacking = tmp_path / "lacking.tar"
    with tarfile.open(bundle.path) as before, tarfile.open(lacking, "w") as after:
        for member in before.getmembers():
            if member.name != layout.second_path("openvino"):
                regular = before.extractfile(member) if member.isreg() else None
                after.addfile(member, regular)
    with pytest.raises(DataError):
        bundles.load(lacking)


def test_another_guard_is_another_bundle(finished):
    result, _, bundle = finished
    digests = {stage.name: stage.digest for stage in result.stages}
    assert bundle.manifest["provenance"]["stages"]["guard"] == digests["guard"]
