"""trtexec's tuner: flags as the released program has them, and references that belong together."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from qdq_graphs import TENSORRT, images, residual_net, save

from edgeship.targets import onnxruntime
from edgeship.targets.tensorrt import jetson_folder, tuner

# flags of trtexec 11.1, from NVIDIA/TensorRT samples/common/sampleOptions.cpp
FLAGS = {
    *("--onnx", "--saveEngine", "--memPoolSize", "--timingCacheFile", "--profilingVerbosity"),
    *("--builderOptimizationLevel", "--tuneBuildRouteFile", "--tuningSearch", "--tuningCacheFile"),
    *("--tuningTimeOut", "--accuracyAlgorithm", "--accuracyThreshold"),
    *("--refPair", "--loadInputs", "--loadRefOutputs"),
}


def commands(folder):
    lines = (folder / "README.md").read_text().splitlines()
    return [shlex.split(line) for line in lines if "--tuneBuildRouteFile" in line]


@pytest.mark.parametrize("batch", [1, 16, 32, "batch"])
def test_the_export_for_11_4_has_the_tuner_with_reference_outputs(batch, tmp_path):
    model = save(residual_net(TENSORRT, batch=batch), tmp_path / "net.onnx")
    jetson_folder.write(model, tmp_path / "out", version="11.4", module="Thor", images=images(32))
    (line,) = commands(tmp_path / "out")
    assert {word.split("=")[0] for word in line[1:]} <= FLAGS
    assert "--skipInference" not in line  # the accuracy check runs the engine
    count = {1: 4, 16: 2, 32: 1, "batch": 4}[batch]
    positions = [place for place, word in enumerate(line) if word.startswith("--refPair=")]
    assert [line[place] for place in positions] == [
        f"--refPair={i}" for i in range(count if count > 1 else 0)
    ]
    pairs = [line[place : place + 3] for place in positions] or [["", *line[-2:]]]
    size = batch if isinstance(batch, int) else 1
    with onnxruntime.simulate(model) as session:
        for index, (_, inputs, outputs) in enumerate(pairs):
            assert inputs.startswith("--loadInputs=images:") and outputs.startswith(
                "--loadRefOutputs=logits:"
            )
            x = np.fromfile(tmp_path / "out" / inputs.split(":")[1], np.float32).reshape(size, 3, 32, 32)
            y = np.fromfile(tmp_path / "out" / outputs.split(":")[1], np.float32).reshape(size, -1)
            np.testing.assert_array_equal(x, images(32)[index * size : (index + 1) * size])
            np.testing.assert_allclose(session.infer(x), y, atol=1e-4)


@pytest.mark.parametrize("version", ["8.6.2", "10.16"])
def test_an_older_trtexec_has_no_tuner(version, tmp_path):
    model = save(residual_net(TENSORRT), tmp_path / "net.onnx")
    module = "Orin Nano" if version == "8.6.2" else "Thor"
    jetson_folder.write(model, tmp_path / "out", version=version, module=module)
    assert commands(tmp_path / "out") == [] and not (tmp_path / "out" / tuner.FOLDER).exists()


def test_knobs_are_read_from_the_installed_program(tmp_path):
    knobs = [
        {"option": "-conv_lowering", "allowed_values": "-conv_lowering=[on|off]", "default_value": "on"},
        {"option": "-conv_split", "allowed_values": "=[0|1|...|8]", "default_value": "0"},
        {"option": "-conv_width", "allowed_values": "=int32_t", "default_value": "1"},
        {"option": "-kgen:tiling", "allowed_values": "[0|1|2]", "default_value": "0"},
    ]
    text = (
        "[I] TensorRT v11.4\n"
        + json.dumps({"tuner_version": "3", "tuner_options": knobs}, indent=1)
        + "\nPASSED"
    )
    (tmp_path / "routes.py").write_text(tuner.ROUTES)
    outputs = [
        subprocess.run(
            [sys.executable, tmp_path / "routes.py", *words],
            input=text,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for words in ([], ["conv"])
    ]
    assert outputs == [["-conv_lowering=[on|off]", "-kgen:tiling=[0|1|2]"], ["-conv_lowering=[on|off]"]]
