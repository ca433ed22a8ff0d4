"""Time per layer: every layer has one, fused ones are counted once, and together they are the inference."""

import json

import numpy as np
import pytest
from onnx import helper
from qdq_graphs import OPENVINO, residual_net, save

from edgeship import targets
from edgeship.targets._onnxruntime_profile import profile
from edgeship.targets._timing import interleave
from edgeship.targets.runner.backends.onnxruntime import OnnxRuntimeSession


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_the_times_of_the_layers_add_up_to_no_more_than_the_inference(tmp_path, target):
    model = save(residual_net(OPENVINO), tmp_path / "net.onnx")
    built = targets.get(target).compile(model, tmp_path / "engine", "int8")
    times_ms = {layer.name: layer.time_ms for layer in built.audit if layer.kind == "Convolution"}
    assert len(times_ms) == 6
    assert all(time is not None and time >= 0 for time in times_ms.values())
    images = np.zeros((1, 3, 32, 32), np.float32)
    for _ in range(10):  # other work may disturb the one or the other
        with targets.get(target).open(tmp_path / "engine" / built.file, threads=1) as session:
            whole_ms = np.median(interleave({"it": lambda: session.infer(images)}, count=50)["it"])
        together_ms = sum(layer.time_ms or 0.0 for layer in built.audit)
        if together_ms < 3 * whole_ms:
            break
        built = targets.get(target).compile(model, tmp_path / "engine", "int8")
    assert 0 < together_ms < 3 * whole_ms  # the profile costs time too
    assert {file.name for file in (tmp_path / "engine").iterdir()} <= {"model.onnx", "model.xml", "model.bin"}


class Profiled:
    """A session with a given profile."""

    def __init__(self, trace, events, shape):
        self.trace, self.shape, self.runs = trace, shape, 0
        trace.parent.mkdir()
        trace.write_text(json.dumps([{"cat": "Session", "name": "load", "dur": 9}, *events]))

    def get_inputs(self):
        return [type("Entry", (), {"name": "images", "shape": self.shape, "type": "tensor(float)"})]

    get_outputs = get_inputs

    def run(self, _outputs, feeds):
        assert feeds["images"].shape == (1, 3, 8, 8)
        self.runs += 1
        return [feeds["images"]]

    def end_profiling(self):
        return str(self.trace)


NODES = [
    helper.make_node("Conv", ["images", "w"], ["a"], name="conv1"),
    helper.make_node("Relu", ["a"], ["b"], name="relu1"),
    helper.make_node("Conv", ["b", "v"], ["c"], name="conv2"),
    helper.make_node("Add", ["c", "b"], ["d"], name="add"),
    helper.make_node("Relu", ["d"], ["e"], name="relu2"),
    helper.make_node("MaxPool", ["e"], ["f"], name="pool"),
]


def event(name, dur):
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur}


def test_a_fused_layer_is_found_by_the_name_of_what_it_took_in(tmp_path):
    events = [
        *(event("relu1_nchwc", microseconds) for microseconds in (30, 10, 90, 20, 31)),
        event("conv2_token_7", 50),
        event("pool", 4),
        event("made_by_a_fusion", 5),
    ]
    session = Profiled(tmp_path / "profile" / "trace.json", events, ["batch", 3, 8, 8])
    found = profile(OnnxRuntimeSession(session, 1), NODES, {"conv1", "conv2", "add"})
    assert found == pytest.approx({"conv1": 0.015, "conv2": 0.05})  # of five the quickest two: 10 and 20 us
    assert session.runs > 1
    assert not (tmp_path / "profile").exists()


def test_an_input_that_cannot_be_made_up_is_not_run(tmp_path):
    session = Profiled(tmp_path / "profile" / "trace.json", [event("conv1", 1)], [1, 3, "height", "width"])
    assert profile(OnnxRuntimeSession(session, 1), NODES, {"conv1"}) == {}
    assert session.runs == 0
