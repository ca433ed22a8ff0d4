"""Bill of materials, model card and provenance of a bundle, checked by the field's libraries."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.deploy import evidence
from edgeship.toolkit.deploy.bundle import openssf_signer, sign_openssf
from edgeship.toolkit.runs.index import StageResult
from edgeship.toolkit.runs.measured import AccuracyRow, EvaluatedImages
from edgeship.toolkit.runs.network import ModelInfo

DIGEST = "ab" * 32
PREPROCESS = Preprocess(32, 32, (0.5,) * 3, (0.25,) * 3)


@pytest.fixture
def origin(tmp_path):
    graph = tmp_path / "openvino.onnx"
    graph.write_bytes(b"graph")
    row = AccuracyRow(400, "measured", "this machine", 0.9, 0.99, 0.25, (-0.5, 1.0), 0.985, 23.4)
    shipped = evidence.ShippedGraph("openvino-int8", "openvino", "int8", graph, ("quantize",), row)
    stages = [
        StageResult("load", Path("/x"), DIGEST, 1.0, False),
        StageResult("quantize", Path("/y"), "cd" * 32, 2.0, True, ("load", "absent")),
    ]
    return evidence.Origin(
        "0.1.0",
        ModelInfo('res"net\n18', "ef" * 32, 10, 10, PREPROCESS, "stated"),
        {"load": {"weights": "a.pth"}, "quantize": {"effort": "fast"}, "select": {"images": 300}},
        stages,
        EvaluatedImages("photos:test", "12" * 32, ("a", "b")),
        ("photos:test", "photos:train"),
        {"onnxruntime": "1.24.0", "torch": "2.13.0+cpu"},
        [shipped],
    )


def test_the_bill_of_materials_is_cyclonedx_1_7_with_the_figures_and_their_intervals(origin):
    text = evidence.bill_of_materials(origin)
    assert JsonStrictValidator(SchemaVersion.V1_7).validate_str(text) is None
    record = json.loads(text)
    assert record["specVersion"] == "1.7" and "timestamp" not in record["metadata"]
    components = {each["bom-ref"]: each for each in record["components"]}
    graph = components["graph:openvino-int8"]
    assert graph["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"graph").hexdigest()}]
    metrics = graph["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    top1, drop, agreement = metrics
    assert top1["value"] == "0.9" and "400 images, measured" in top1["slice"]
    # Wilson's interval of 360 of 400
    assert top1["confidenceInterval"] == {"lowerBound": "0.866689", "upperBound": "0.925701"}
    assert drop["confidenceInterval"] == {"lowerBound": "-0.5", "upperBound": "1"}
    assert agreement["value"] == "0.985"
    assert components["package:torch"]["purl"] == "pkg:pypi/torch@2.13.0"
    assert components["network"]["hashes"][0]["content"] == "ef" * 32


def test_an_unknown_figure_is_absent_and_equal_runs_give_equal_texts(origin, tmp_path):
    assert evidence.bill_of_materials(origin) == evidence.bill_of_materials(dataclasses.replace(origin))
    row = dataclasses.replace(origin.graphs[0].accuracy, top1=None, drop_pp=None)
    shipped = dataclasses.replace(origin.graphs[0], accuracy=row)
    card = evidence.model_card(origin, shipped)
    assert [each["type"] for each in card["quantitativeAnalysis"]["performanceMetrics"]] == [
        "agreement with FP32"
    ]


@pytest.mark.slow
def test_others_check_the_openssf_signature(tmp_path, bundle):
    signing = pytest.importorskip("model_signing.signing", reason="the extra `signing` is not installed")
    from model_signing import verifying

    key, public = tmp_path / "key.pem", tmp_path / "public.pem"
    for command in (
        ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key],
        ["ec", "-in", key, "-pubout", "-out", public],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    made = bundle()
    signature = sign_openssf(made, openssf_signer(key))
    check = verifying.Config().use_elliptic_key_verifier(public_key=public)
    check.verify(made.path, signature)
    with made.path.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ValueError, match=r"(?i)mismatch|differ|expected"):
        check.verify(made.path, signature)
    with pytest.raises(DataError, match="cannot sign"):
        openssf_signer(made.path)
    assert signing


def test_signing_without_the_package_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(DataError, match="not installed") as caught:
        openssf_signer(tmp_path / "key")
    assert "edgeship[signing]" in caught.value.hint


def test_each_stage_and_graph_has_an_in_toto_statement(origin):
    statements = [json.loads(line) for line in evidence.provenance(origin).splitlines()]
    assert {each["_type"] for each in statements} == {"https://in-toto.io/Statement/v1"}
    load, quantize, graph = statements
    assert load["subject"] == [{"name": "load", "digest": {"sha256": DIGEST}}]
    definition = quantize["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {"effort": "fast"}
    assert definition["resolvedDependencies"] == [{"name": "load", "digest": {"sha256": DIGEST}}]
    assert graph["subject"][0]["digest"]["sha256"] == hashlib.sha256(b"graph").hexdigest()
    assert graph["predicate"]["buildDefinition"]["resolvedDependencies"][0]["name"] == "quantize"
