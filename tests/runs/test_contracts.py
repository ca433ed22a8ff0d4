"""The next stage reads exactly the record that a stage wrote; a damaged file is named with its field."""

from dataclasses import replace
from pathlib import Path

import pytest

from edgeship.toolkit.core.artifact import plain, write_json
from edgeship.toolkit.core.errors import DataError
from edgeship.toolkit.core.results import LayerAudit
from edgeship.toolkit.core.tensors import Preprocess
from edgeship.toolkit.runs import compiled
from edgeship.toolkit.runs.compiled import CompiledVariant, CompiledVariants
from edgeship.toolkit.runs.index import RunIndex, StageResult
from edgeship.toolkit.runs.measured import (
    Accuracies,
    AccuracyRow,
    EvaluationData,
    EvaluationTime,
    Latencies,
    LatencyRecord,
)
from edgeship.toolkit.runs.network import ExportedGraph, ExportedGraphs, ModelInfo
from edgeship.toolkit.runs.quantized import ChannelCounts
from edgeship.toolkit.runs.variant_id import REFERENCE, VariantId

PREPROCESS = Preprocess(resize=(40, 50), crop=(32, 48))
INT8 = VariantId("openvino", "int8", pruned=True)
BUILT = CompiledVariant(
    "model.xml", "OpenVINO", True, "compiled", (LayerAudit("fc", "FullyConnected", "int8", True),), ("w",),
    12, "uint8", "graphs/a.onnx", "float-input/a/model.xml",
)  # fmt: skip
RECORDS = CompiledVariants(
    {
        REFERENCE.name: CompiledVariant("model.onnx", runs_here=True),
        INT8.name: BUILT,
        "tensorrt-int8": CompiledVariant(error="no SDK", hint="install it"),
    }
)
FILES = [
    ModelInfo("net", "0" * 64, 9, 2, PREPROCESS, "stated", (("a", "cat"), ("dog",)), ("a note",)),
    ExportedGraphs({"float": ExportedGraph("float.onnx", 3, 2)}, 1e-6, None, 2, (), PREPROCESS),
    RECORDS,
    Accuracies(
        EvaluationData("digits", 5, ("a", "b")),
        {INT8.name: AccuracyRow(5, "simulated", "here", 0.8, None, 0.5, (-1.0, 2.0), 0.9, 31.5)},
    ),
    EvaluationTime(12.5, 0.125),
    Latencies("one call", 1, 4, {INT8.name: LatencyRecord((1.0, 2.0), energy_mj=0.5)}, {"a": "b"}),
    RunIndex(
        1, {"load": {"model": "auto"}}, None, (StageResult("load", Path("/x"), "ab", 0.5, True),), ("a",)
    ),
]


@pytest.mark.parametrize("content", FILES, ids=lambda content: content.FILE)
def test_every_file_comes_back_as_it_was_written(tmp_path, content):
    content.write(tmp_path)
    assert type(content).read(tmp_path) == content


@pytest.mark.parametrize("content", FILES, ids=lambda content: content.FILE)
def test_a_file_without_a_field_is_refused_by_name(tmp_path, content):
    stored = plain(content)
    name = next(iter(stored))
    del stored[name]
    write_json(tmp_path / content.FILE, stored)
    with pytest.raises(DataError, match=f"{content.FILE}: field '{name}' is None, expected a value"):
        type(content).read(tmp_path)


def test_engines_are_found_below_the_folder_of_the_stage(tmp_path):
    RECORDS.write(tmp_path)
    folders = {"compile": tmp_path, "export": Path("e"), "quantize": Path("q")}
    assert list(RECORDS.built()) == [REFERENCE, INT8]
    assert compiled.engines(folders) == {
        REFERENCE.name: ("onnxruntime", tmp_path / "onnxruntime-fp32/model.onnx"),
        INT8.name: ("openvino", tmp_path / "openvino-int8-pruned/model.xml"),
    }
    assert compiled.float_engines(folders) == {INT8.name: ("openvino", tmp_path / "float-input/a/model.xml")}
    assert compiled.graph_file(INT8, BUILT, folders) == tmp_path / "graphs/a.onnx"
    assert compiled.graph_file(INT8, replace(BUILT, graph=None), folders) == Path("q/openvino-pruned.onnx")
    assert str(compiled.published_folder(INT8)) == "engines/openvino/openvino-int8-pruned"


def test_channels_by_position():
    counts = ChannelCounts(8, (8, 16), (((4,), ()), ((12, 3),)))
    assert counts.by_position() == {
        "stem": 8, "stream1": 8, "layer1.0.inner1": 4, "stream2": 16, "layer2.0.inner1": 12,
        "layer2.0.inner2": 3,
    }  # fmt: skip
